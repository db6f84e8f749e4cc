"""Run one variant: the Engine port and the table from engine names to lazy factories.

Deliberately thin: no queue, no batching, no threads. Importing this package imports no runtime library.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, TensorSpec

# onnxruntime's builds tell Microsoft what they run, and keep files below ~/.cache for that, from their import on: a
# device dials nobody but its cloud. Whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine may use the machine.

    Attributes:
        threads: intra-op threads of one run.
        usual_rows: the largest batch that is usual. Memory that a much larger one took may be given back.
        device_index: of several devices of a kind, the one that runs it; nothing to an engine that computes on the CPU.
    """

    provider: str = "cpu"
    threads: int = 1
    usual_rows: int = 1
    device_index: int = 0


class Engine(Protocol):
    """One loaded variant; tests/penstock/runtime/test_engine_contract.py says what each one keeps to.

    Not assumed to be thread-safe: its owner calls it from one thread at a time, not always the same.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch: checked inputs in, wanted outputs (all by default) out, rows in the same order.

        Raises:
            InvalidInput: the runtime refuses the inputs, or has no such output.
            Internal: the runtime failed, or the engine is closed.
        """
        ...

    def close(self) -> None:
        """Release the runtime's memory; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One engine.

    Attributes:
        module: has ``load(path, options)``; imported when the first model of this engine is loaded.
        platform: what model metadata say runs the model, ``project_format`` as the Open Inference Protocol has it.
    """

    module: str
    platform: str


_ENGINES: Mapping[str, _Row] = {
    "onnx": _Row(module="penstock.runtime.onnx", platform="onnxruntime_onnx"),  # the protocol's own word for it
    "echo": _Row(module="penstock.runtime.echo", platform="penstock_echo"),
    "scripted": _Row(module="penstock.runtime.scripted", platform="penstock_scripted"),
}


TEXT_ENGINES = frozenset({"genai"})
"""Engines of variants that answer token by token (``penstock.runtime.generation``)."""


def not_served(name: str) -> str:
    """Say why agents and cores cannot run variants of an engine; "" where they can."""
    if name in _ENGINES or name in TEXT_ENGINES:
        return ""
    known = ", ".join(sorted({*_ENGINES, *TEXT_ENGINES} - {"echo", "scripted"}))
    return f"no agent or core of this release loads engine {name!r}; they load {known}"


def load_engine(name: str, path: Path, options: EngineOptions) -> Engine:
    """Load a model file with the named engine.

    Raises:
        InvalidInput: no such engine. MissingExtra: its library is not installed. ArtifactError: the file is no model.
    """
    if name not in _ENGINES:
        raise InvalidInput(f"engine: unknown engine {name!r}; known: {', '.join(sorted(_ENGINES))}", field="engine")
    engine: Engine = importlib.import_module(_ENGINES[name].module).load(path, options)
    return engine


def platform_of(name: str) -> str:
    """Name the platform of an engine as model metadata do; one that this release does not know is named as it is."""
    return _ENGINES[name].platform if name in _ENGINES else f"penstock_{name}"
