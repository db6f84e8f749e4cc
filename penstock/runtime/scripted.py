"""An engine that obeys a script, for tests of what runs it: it multiplies numbers, and fails, hangs or dies when told
to.

Its "model file" is a JSON object (:class:`Script`). What it does depends on the first column of its input alone, so
that a test says by the rows that it sends what shall become of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from penstock.errors import ArtifactError, Internal, InvalidInput
from penstock.runtime import EngineOptions
from penstock.wire.tensors import Array, TensorSpec

DIED = 70
"""The exit status of a process in which it died."""


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of rows.

    Attributes:
        width: of a row of ``x`` and of ``y``; -1 for any.
        factor: what rows are multiplied with.
        slow_on: a run with this value takes ``slow_s``.
        die_on: the process ends at once on a run with this value in its first column.
        hang_on: a run with this value never ends.
    """

    width: int = 4
    factor: float = 2.0
    slow_s: float = 0.0
    slow_on: float | None = None
    die_on: float | None = None
    hang_on: float | None = None


class ScriptedEngine:
    """Answers ``x`` FP32 [-1, width] times the script's factor, as ``y``; refuses rows that are not numbers."""

    def __init__(self, script: Script) -> None:
        self.inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, script.width)),)
        self.outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, script.width)),)
        self._script = script
        self._is_closed = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self._is_closed:
            raise Internal("the engine is closed")
        if outputs is not None and set(outputs) != {"y"}:
            raise InvalidInput(f"outputs: the script gives y, not {', '.join(outputs)}", field="outputs")
        if "x" not in inputs:
            raise InvalidInput("inputs: the script takes x, which is missing", field="inputs.x")
        x = np.asarray(inputs["x"], np.float32)
        first = x[:, 0].tolist()
        if self._script.die_on in first:
            os._exit(DIED)
        while self._script.hang_on in first:
            time.sleep(1.0)
        if self._script.slow_on in first:
            time.sleep(self._script.slow_s)
        if np.isnan(x).any():
            raise Internal("the model failed: NaN")
        return {"y": np.asarray(x * np.float32(self._script.factor))}

    def close(self) -> None:
        self._is_closed = True


def load(path: Path, options: EngineOptions) -> ScriptedEngine:
    """Load a script.

    Raises:
        ArtifactError: not a script.
    """
    del options  # nothing to tune
    try:
        return ScriptedEngine(msgspec.json.decode(path.read_bytes(), type=Script))
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path.name}: not a script: {error}") from error
