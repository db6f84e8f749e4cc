"""Requests, answers and streams as OpenAI's API has them, for servers and clients. Knows no engine and no socket."""
