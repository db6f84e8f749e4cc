"""How figures are written for people, in the report, on command lines and in messages: one way for each kind. Pure.

A share of rows is a percentage with one decimal; where the rows are known, their count and its 95% interval are beside
it. A difference of shares (a cost, harm) is in points with two. What somebody promised or allowed is as they wrote it.
Bytes are counted in thousands, as registries and disks count them. Documents for programs hold plain numbers.
"""

from __future__ import annotations

from typing import Protocol

_WHOLE = 1e-6  # of a number of rows that is whole but for rounding
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Estimate(Protocol):
    """A figure with its interval."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


class Counted(Estimate, Protocol):
    """A share of ``n`` rows."""

    @property
    def n(self) -> int: ...


def percent(share: float | Estimate) -> str:
    """Write a share of rows."""
    return f"{100 * (share if isinstance(share, int | float) else share.value):.1f}%"


def count(share: Counted) -> str:
    """Write the rows that make a share; where rows are scored, how many there are."""
    rows = share.value * share.n
    return f"{round(rows)} of {share.n}" if abs(rows - round(rows)) < _WHOLE else f"mean of {share.n}"


def between(low: float, high: float) -> str:
    """Write an interval of shares."""
    return f"{percent(low)} to {percent(high)}"


def interval(share: Estimate) -> str:
    """Write the 95% interval of a share."""
    return between(share.low, share.high)


def counted(share: Counted) -> str:
    """Write a share with its rows and its interval."""
    return f"{percent(share)} ({count(share)}; {interval(share)})"


def points(share: float) -> str:
    """Write a difference of shares, without its unit."""
    return f"{100 * share:.2f}"


def allowed(share: float) -> str:
    """Write what somebody promised or allowed, in points and without the unit."""
    return f"{100 * share:g}"


def bound(share: float) -> str:
    """Write the rate of harm that audits are held to."""
    return f"{100 * share:.2f}%"


def confidence(delta: float) -> str:
    """Write how sure a promise is that is broken with a chance of ``delta``."""
    return f"{100 * (1 - delta):.4g}%"


def change(share: float) -> str:
    """Write by what share something grew, or shrank."""
    return f"{100 * share:+.1f}%"


def times(speedup: Estimate) -> str:
    """Write how many times as fast, with its interval."""
    return f"{speedup.value:.2f}x ({speedup.low:.2f}x to {speedup.high:.2f}x)"


def size(size_bytes: float) -> str:
    """Write a number of bytes, to a tenth of its unit below a hundred of them."""
    number, unit = float(size_bytes), 0
    while number >= 999.5 and unit < len(_UNITS) - 1:  # 999,500 B are 1.0 MB, never 1000 kB
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 or number >= 99.95 else f"{number:.1f} {_UNITS[unit]}"


def milliseconds(value: float) -> str:
    """Write three significant digits, never an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def brief(text: str, limit: int) -> str:
    """Write at most so many characters of a text, and show that there are more."""
    return text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."


def short(digest: str) -> str:
    """Write the first twelve digits of a digest."""
    return digest.removeprefix("sha256:")[:12]
