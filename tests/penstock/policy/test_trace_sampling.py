from __future__ import annotations

import pytest

from penstock.policy.trace_sampling import is_traced

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"


@pytest.mark.parametrize(
    ("traceparent", "share", "follows", "draw", "expected"),
    [
        ("", 0.1, True, 0.05, True),
        ("", 0.1, True, 0.1, False),
        ("", 0.0, True, 0.0, False),
        (TRACE + "01", 0.0, True, 0.9, True),
        (TRACE + "03", 0.0, True, 0.9, True),
        (TRACE + "00", 1.0, True, 0.0, False),
        (TRACE + "02", 1.0, True, 0.0, False),
        (TRACE + "01", 0.1, False, 0.9, False),
        (TRACE + "00", 0.1, False, 0.05, True),
    ],
)
def test_a_callers_decision_counts_before_a_draw(
    traceparent: str, share: float, follows: bool, draw: float, expected: bool
) -> None:
    assert is_traced(traceparent, share=share, follows=follows, draw=draw) is expected
