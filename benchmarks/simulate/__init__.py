"""Simulations of the sequential tests: what they promise, and what they see, as tables for the docs."""
