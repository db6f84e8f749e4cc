"""The recipe's ``model.shapes``: sizes that models leave open, fixed to one or held to a few.

Decides names and ranges only; whether a model has such a dimension is ``compiler.graph.interface``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import msgspec

MAX_COMBINATIONS = 12
"""Every candidate is asked and timed at each of them."""


class Buckets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The only sizes that a free dimension may have.

    Attributes:
        buckets: two or more, each once.
    """

    buckets: tuple[int, ...]


Shapes = Mapping[str, int | tuple[int, ...] | Buckets]


class Dimension(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dimension that stays open for a few sizes.

    Attributes:
        name: in the model.
        sizes: in order.
        axes: input and axis of each place where it is.
    """

    name: str
    sizes: tuple[int, ...]
    axes: tuple[tuple[str, int], ...]


def is_good(shapes: Shapes) -> bool:
    """Say whether every size can be one, and whether there are few enough combinations to try them all."""
    buckets = [wanted.buckets for wanted in shapes.values() if isinstance(wanted, Buckets)]
    return prod(len(sizes) for sizes in buckets) <= MAX_COMBINATIONS and all(
        _is_size(wanted) for wanted in shapes.values()
    )


def _is_size(wanted: int | tuple[int, ...] | Buckets) -> bool:
    match wanted:
        case int():
            return wanted >= 1
        case Buckets(buckets=sizes):
            return len(set(sizes)) == len(sizes) >= 2 and min(sizes) >= 1
        case _:
            return all(size == -1 or size >= 1 for size in wanted)
