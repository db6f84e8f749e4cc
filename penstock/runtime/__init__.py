"""Run one variant: the Engine port and the table from engine names to lazy factories.

Deliberately thin: no queue, no batching, no threads. Importing this package imports no runtime library.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine may use the machine. ``threads`` is intra-op threads; 0 lets the runtime choose."""

    provider: str = "cpu"
    threads: int = 1


class Engine(Protocol):
    """One loaded variant. Not assumed to be thread-safe: its owner calls it from one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch; checked inputs in, wanted outputs (all by default) out, rows in the same order.

        Raises:
            InvalidInput: the runtime refuses the inputs. Internal: the runtime failed.
        """
        ...

    def close(self) -> None:
        """Release the runtime's memory; idempotent."""
        ...


_FACTORIES: Mapping[str, str] = {"onnx": "penstock.runtime.onnx:load", "echo": "penstock.runtime.echo:load"}


def load_engine(name: str, path: Path, options: EngineOptions) -> Engine:
    """Load a model file with the named engine.

    Raises:
        InvalidInput: no such engine. MissingExtra: its library is not installed. ArtifactError: the file is no model.
    """
    if name not in _FACTORIES:
        raise InvalidInput(f"engine: unknown engine {name!r}; known: {', '.join(sorted(_FACTORIES))}", field="engine")
    module, _, function = _FACTORIES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), function)(path, options)
    return engine
