"""Which requests are traced."""

from __future__ import annotations

_FLAGS = slice(53, 55)
_SAMPLED = 1


def is_traced(traceparent: str, *, share: float, follows: bool, draw: float) -> bool:
    """Say whether a request is traced: as its caller decided, else by a draw.

    Args:
        traceparent: W3C trace context of version 00; "" where the caller has no trace.
        share: of requests without a caller's decision that are traced.
        follows: whether a caller's decision counts.
        draw: uniform in [0, 1).
    """
    if traceparent and follows:
        return bool(int(traceparent[_FLAGS], 16) & _SAMPLED)
    return draw < share
