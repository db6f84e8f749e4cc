"""What can become of a row: the one definition of the counters that device, wire, databases and metrics share.

A field of :class:`OutcomeCounts` is a column of the device's outbox and of the core's database, a field of
``penstock.v1.OutcomeCounts`` and a metric of the agent. To add a counter, add a field here and to ``fleet.proto``; a
test compares the two, and files that were written before get the new column when they are opened.

Every row of an admitted request ends in exactly one outcome. Requests that are refused before admission (malformed,
unknown model, queue full) have no rows here. The audit's counters come on top: an audited row has its outcome too.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

MAX_TOTAL = 2**62
"""Sums stop there, or the nonsense of one device would overflow a database's integers."""


def _counter(meaning: str, *, heading: str = "", is_outcome: bool = False) -> Any:
    """Define a counter: what it counts, and its heading in tables for people."""
    return field(default=0, metadata={"meaning": meaning, "heading": heading, "is_outcome": is_outcome})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """Counts rows by what became of them, for one artifact on one device.

    Attributes:
        kept: the device answered, because its score reached the certified threshold (reason ``confident``).
        escalated: the cloud answered. A call to the cloud that failed is not counted here.
        unreachable: the cloud should have answered; the device did instead, and the answer is flagged with the reason
            (``cloud_unreachable``, ``deadline``, ``budget`` or ``privacy``).
        not_finite: the row, or the answer that came of it, holds NaN or infinity (reason ``not_finite``), whoever
            answered: a broken sensor, or numbers that overflow, and no broken network.
        failed: there was no answer. The engine failed, the deadline passed, the client went away, or
            ``on_unreachable`` is ``fail`` and the cloud could not be asked.
        audited: rows drawn for the audit whose harm is known.
        audit_harm: of the audited rows, those that the device kept and the cloud answers differently. Where a metric
            says by how much one is worse, it counts with that probability.
    """

    kept: int = _counter("Answered on the device.", heading="kept", is_outcome=True)
    escalated: int = _counter("Answered by the cloud.", heading="escalated", is_outcome=True)
    unreachable: int = _counter("Answered on the device, flagged.", heading="unreachable", is_outcome=True)
    not_finite: int = _counter(
        "Flagged: NaN or infinity in the row or in its answer.", heading="not finite", is_outcome=True
    )
    failed: int = _counter("Not answered.", heading="failed", is_outcome=True)
    audited: int = _counter("Drawn rows whose harm is known.", heading="audited")
    audit_harm: int = _counter("Drawn and kept rows on which the cloud disagrees.", heading="harm")

    @property
    def requests(self) -> int:
        """Return how many rows entered: the sum over all outcomes."""
        total: int = sum(getattr(self, name) for name in OUTCOMES)
        return min(total, MAX_TOTAL)

    def __add__(self, other: OutcomeCounts) -> OutcomeCounts:
        return OutcomeCounts(**{name: min(getattr(self, name) + getattr(other, name), MAX_TOTAL) for name in COUNTERS})

    def since(self, baseline: OutcomeCounts) -> OutcomeCounts:
        """Return what was counted after ``baseline``; no counter becomes negative."""
        return OutcomeCounts(**{name: max(0, getattr(self, name) - getattr(baseline, name)) for name in COUNTERS})

    def columns(self) -> dict[str, int]:
        """Return every counter by name, and ``requests`` first, as tables, messages and documents show them."""
        return {name: getattr(self, name) for name in COLUMNS}


COUNTERS: tuple[str, ...] = tuple(item.name for item in fields(OutcomeCounts))
"""Names of all counters, in the order of the definition."""

OUTCOMES: tuple[str, ...] = tuple(item.name for item in fields(OutcomeCounts) if item.metadata["is_outcome"])
"""Names of the counters of which every row raises exactly one."""

COLUMNS: tuple[str, ...] = ("requests", *COUNTERS)
"""What tables and messages hold: the counters, and their sum for whoever reads them without this module."""

MEANINGS: dict[str, str] = {item.name: item.metadata["meaning"] for item in fields(OutcomeCounts)}
"""What each counter counts, in a sentence for people."""

HEADINGS: dict[str, str] = {"requests": "rows"} | {
    item.name: item.metadata["heading"] for item in fields(OutcomeCounts)
}
"""Headings of columns in tables for people."""

NOTHING = OutcomeCounts()


def summed(counts: Iterable[OutcomeCounts]) -> OutcomeCounts:
    """Return the sum; nothing of none."""
    found = tuple(counts)
    return functools.reduce(operator.add, found) if found else NOTHING


def from_columns(values: Any) -> OutcomeCounts:
    """Read counts from anything that has the counters as attributes, such as a message."""
    return OutcomeCounts(**{name: getattr(values, name) for name in COUNTERS})
