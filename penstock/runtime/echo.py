"""An engine that returns its inputs: for load tests of the runtime around it, and for tests without onnxruntime.

Its "model file" is a JSON list of tensor specs, used for inputs and outputs alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from penstock.errors import ArtifactError
from penstock.runtime import EngineOptions
from penstock.wire.tensors import Array, TensorSpec


class EchoEngine:
    """Returns each input under its own name."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self._specs = specs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._specs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._specs

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {name: inputs[name] for name in (outputs if outputs is not None else inputs)}

    def close(self) -> None:
        """Nothing to release."""


def load(path: Path, options: EngineOptions) -> EchoEngine:
    """
    Raises:
        ArtifactError: not a JSON list of tensor specs.
    """
    del options  # nothing to tune
    try:
        return EchoEngine(msgspec.json.decode(path.read_bytes(), type=tuple[TensorSpec, ...]))
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path.name}: not an echo model: {error}") from error
