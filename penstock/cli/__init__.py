"""The umbrella command ``penstock``. Rooms plug in by entry point and load only when their word is used."""

from __future__ import annotations

from penstock.cli.main import main

__all__ = ["main"]
