"""What a gate says of a wave: one verdict, and those of the named tests that it follows from.

Values that are stored, sent and shown by whoever knows no test by name; the tests are in ``gates``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Verdict = Literal["pass", "fail", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTest:
    """How one named test of a wave came out.

    Attributes:
        reason: one phrase with the numbers.
        measured: what was measured, in the unit of ``limit``.
        limit: what it was compared with.
        samples: how many rows or devices were looked at.
        e_value: evidence against the claim under test; None where the test is a plain comparison.
        wake_at: when time alone could change the verdict; None when only a report can.
    """

    name: str
    verdict: Verdict
    reason: str
    measured: float
    limit: float
    samples: int
    e_value: float | None = None
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """A verdict on one wave, and the tests that it follows from.

    Attributes:
        wake_at: when time alone could change the verdict; None when only a report can.
    """

    verdict: Verdict
    reason: str
    tests: tuple[GateTest, ...]
    wake_at: datetime | None = None

    def test(self, name: str) -> GateTest | None:
        """Return the test of that name; None when the verdict has none, as one of an older release may."""
        return next((test for test in self.tests if test.name == name), None)
