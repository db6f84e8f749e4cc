"""An engine that returns its inputs: for load tests of the runtime around it, and for tests without onnxruntime.

Its "model file" is a JSON list of tensor specs, used for inputs and outputs alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from penstock.errors import ArtifactError, Internal, InvalidInput
from penstock.runtime import EngineOptions
from penstock.wire.tensors import Array, TensorSpec


class EchoEngine:
    """Returns each input under its own name."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self.inputs = self.outputs = specs
        self._is_closed = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self._is_closed:
            raise Internal("the engine is closed")
        names = [spec.name for spec in self.outputs] if outputs is None else outputs
        try:
            return {name: inputs[name] for name in names}
        except KeyError as error:
            raise InvalidInput(f"inputs: no tensor {error} to give back", field="inputs") from error

    def close(self) -> None:
        self._is_closed = True


def load(path: Path, options: EngineOptions) -> EchoEngine:
    """Load a JSON list of tensor specs as a model that returns its inputs.

    Raises:
        ArtifactError: not a JSON list of tensor specs.
    """
    del options  # nothing to tune
    try:
        return EchoEngine(msgspec.json.decode(path.read_bytes(), type=tuple[TensorSpec, ...]))
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path.name}: not an echo model: {error}") from error
