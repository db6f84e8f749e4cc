"""How figures are written for people, in the report as on the command line: one way for each kind. Pure.

A share of rows is a percentage with one decimal; where the rows are known, their count and its 95% interval are beside
it. A difference of shares (a cost, harm) is in points with two. What somebody promised or allowed is as they wrote it.
"""

from __future__ import annotations

from compiler.artifact.evaluation import Share, Speedup

_WHOLE = 1e-6  # of a number of rows that is whole but for rounding


def percent(share: float | Share) -> str:
    """Write a share of rows."""
    return f"{100 * (share.value if isinstance(share, Share) else share):.1f}%"


def count(share: Share) -> str:
    """Write the rows that make a share; where rows are scored, how many there are."""
    rows = share.value * share.n
    return f"{round(rows)} of {share.n}" if abs(rows - round(rows)) < _WHOLE else f"mean of {share.n}"


def interval(share: Share) -> str:
    """Write the 95% interval of a share."""
    return f"{percent(share.low)} to {percent(share.high)}"


def counted(share: Share) -> str:
    """Write a share with its rows and its interval."""
    return f"{percent(share)} ({count(share)}; {interval(share)})"


def points(share: float) -> str:
    """Write a difference of shares, without its unit."""
    return f"{100 * share:.2f}"


def allowed(share: float) -> str:
    """Write what somebody promised or allowed, in points and without the unit."""
    return f"{100 * share:g}"


def times(speedup: Speedup) -> str:
    """Write how many times as fast, with its interval."""
    return f"{speedup.value:.2f}x ({speedup.low:.2f}x to {speedup.high:.2f}x)"


def size(count: int) -> str:
    """Say bytes in words for people."""
    if count < 1000:
        return f"{count} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def milliseconds(value: float) -> str:
    """Format three significant digits, never an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def short(digest: str) -> str:
    """Write the first twelve digits of a digest."""
    return digest.removeprefix("sha256:")[:12]
