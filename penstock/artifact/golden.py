"""Golden vectors: inputs with the outputs one variant gave for them when it was compiled, replayed before it may serve.

Decides the document's form and whether outputs agree. Who runs the variant, and what happens when they do not, is the
business of the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from penstock.errors import ArtifactError, InvalidInput
from penstock.wire import tensors
from penstock.wire.tensors import Array

MAX_BYTES = 64 * 1024**2
"""Largest document that is packed, pushed and replayed: a device holds it in memory while it loads."""

SHARE_TOLERANCE = 0.05
"""How far a golden number in [0, 1] may be off: a sum that lands one rounding step off moves a confidence by less."""

_INPUT, _OUTPUT = "inputs/", "outputs/"  # an input and an output may have the same name


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Arrays by tensor name; dimension 0 is the batch and equal everywhere.

    Attributes:
        others: calls of other sizes, where a variant is made for several.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    others: tuple[Golden, ...] = ()

    @property
    def calls(self) -> tuple[Golden, ...]:
        """List everything that is replayed."""
        return (self, *self.others)


def encode(golden: Golden) -> bytes:
    """Write vectors as one document (``penstock.wire.tensors.pack``); same vectors, same bytes."""
    named: dict[str, Array] = {}
    for at, call in enumerate(golden.calls):
        named |= {_place(at, _INPUT) + name: array for name, array in call.inputs.items()}
        named |= {_place(at, _OUTPUT) + name: array for name, array in call.outputs.items()}
    return tensors.pack(named)


def decode(data: bytes | memoryview) -> Golden:
    """Read golden vectors.

    Raises:
        ArtifactError: not such a document, or one without inputs or outputs: it would prove nothing.
    """
    try:
        named = tensors.unpack(data)
    except InvalidInput as error:
        raise ArtifactError(f"golden vectors: {error.message}") from error
    others: list[Golden] = []
    while inputs := _with_prefix(named, _place(len(others) + 1, _INPUT)):
        outputs = _with_prefix(named, _place(len(others) + 1, _OUTPUT))
        others.append(Golden(inputs=inputs, outputs=outputs))
    golden = Golden(inputs=_with_prefix(named, _INPUT), outputs=_with_prefix(named, _OUTPUT), others=tuple(others))
    if not golden.inputs or not golden.outputs:
        raise ArtifactError(f"golden vectors: expected {_INPUT}* and {_OUTPUT}*, found {', '.join(named) or 'nothing'}")
    return golden


def check(golden: Golden, produced: Mapping[str, Array], *, tolerance: float, shares: Collection[str] = ()) -> None:
    """Compare outputs with the golden ones.

    Args:
        tolerance: largest absolute difference of a number; other datatypes must be equal.
        shares: outputs that lie in [0, 1], which ``tolerance``, made for larger numbers, may be no check of: they may
            differ by ``SHARE_TOLERANCE`` at most.

    Raises:
        ArtifactError: which output differs, and by how much. NaN never agrees with anything.
    """
    for name, expected in golden.outputs.items():
        found = produced.get(name)
        if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
            have = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise ArtifactError(f"golden output {name!r}: {have}, expected {expected.dtype}{list(expected.shape)}")
        if expected.dtype.kind != "f":
            if not np.array_equal(found, expected):
                raise ArtifactError(f"golden output {name!r} differs from the one recorded when it was compiled")
            continue
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        allowed = min(tolerance, SHARE_TOLERANCE) if name in shares else tolerance
        if not np.all(difference <= allowed):
            raise ArtifactError(
                f"golden output {name!r} is off by {np.max(difference):.4g}, more than the {allowed:.4g} allowed: "
                "this machine does not compute what was certified"
            )


def _place(at: int, kind: str) -> str:
    """Return the prefix of a call: the first is written as documents with one call always were."""
    return f"{at}/{kind}" if at else kind


def _with_prefix(named: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)}
