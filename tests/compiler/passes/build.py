"""Small models for tests of passes, and running a pass on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.graph import equivalence, files
from compiler.passes.job import PassJob, PassResult
from compiler.recipe import targets
from tests.factories import onnx_model

Run = Callable[[PassJob], PassResult]


def model(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, list[int | str]],
    outputs: Mapping[str, list[int | str]],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A float32 model."""
    return onnx_model(nodes, constants, inputs=inputs, outputs=outputs, opset=opset)


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def apply(
    run: Run,
    source: onnx.ModelProto,
    directory: Path,
    options: Mapping[str, Any] | None = None,
    *,
    examples: list[dict[str, Any]] | None = None,
    target: str = "x86-64-vnni",
    keep_float: frozenset[str] = frozenset(),
) -> tuple[onnx.ModelProto, PassResult]:
    """Run a pass; the model it made, read back, and its result."""
    out = directory / f"out-{len(list(directory.iterdir()))}"
    out.mkdir()
    path = directory / "source.onnx"
    files.write(source, path)

    def batches() -> Iterator[dict[str, Any]]:
        yield from (dict(batch) for batch in examples or [])

    job = PassJob(
        source=path,
        out=out,
        target=targets.resolve(target, here="x86-64-vnni"),
        options=dict(options or {}),
        calibration=batches if examples is not None else None,
        keep_float=keep_float,
    )
    result = run(job)
    made = out / result.model
    return (files.read(made, field="made") if made.suffix == ".onnx" else source), result


def answer(made: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What onnxruntime computes."""
    return equivalence.Session(made).run(feeds)


def constants(made: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


def kinds(made: onnx.ModelProto) -> list[str]:
    """Operators in order."""
    return [node.op_type for node in made.graph.node]
