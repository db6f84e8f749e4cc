"""The report that a person reads."""

from __future__ import annotations

import html

from compiler.evaluation import Evaluation


def render(evaluation: Evaluation) -> str:
    """One page."""
    return f"<!doctype html><title>{html.escape(evaluation.model)}</title>"


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1000:
        return f"{count} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def milliseconds(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
