"""Is the export the same model? Its answers against the original's, for examples of two batch sizes.

The original ran where it lives (a toolchain, or in this process) and left its answers in files; the export is run by
onnxruntime here. The second case has another batch, and other free dimensions, than the one that was exported: a size
that was frozen into the graph shows there. Decides what counts as the same; does not make examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import CompileError, InvalidInput, PenstockError
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire.tensors import Array

_INPUT, _OUTPUT = "inputs/", "outputs/"
MAX_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Examples with the original's answers, by tensor name; dimension 0 is the batch."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


def read_case(path: Path) -> Case:
    """Read a case as a runner saved it: one npz file with ``inputs/NAME`` and ``outputs/NAME``.

    Raises:
        CompileError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise CompileError(f"{path.name}: the original's answers cannot be read: {error}") from error
    return Case(inputs=_under(arrays, _INPUT), outputs=_under(arrays, _OUTPUT))


def check(model: Path, cases: Sequence[Case], *, tolerance: float) -> dict[str, Any]:
    """Compare an export with its original, and return what was seen, as plain JSON.

    Args:
        cases: the first is the one that was exported with.
        tolerance: largest difference of a float, as a share of the output's largest value (of 1, if that is larger);
            other datatypes must be equal.

    Raises:
        CompileError: an input's batch is fixed, an output is missing, or answers differ; the message shows each
            difference and where it is largest.
    """
    engine = load_engine("onnx", model, EngineOptions(threads=1))
    try:
        _check_free_batch(engine)
        return {"tolerance": tolerance, "cases": [_compare(engine, case, cases[0], tolerance) for case in cases]}
    finally:
        engine.close()


def _check_free_batch(engine: Engine) -> None:
    for spec in engine.inputs:
        if not spec.shape or spec.shape[0] != -1:
            raise CompileError(
                f"the export has fixed the batch: input {spec.name!r} is {spec.datatype}{list(spec.shape)}, expected a "
                "free first dimension. Look in forward for sizes that are taken as numbers (int(x.shape[0]), reshape "
                "or expand to a number)"
            )


def _compare(engine: Engine, case: Case, exported: Case, tolerance: float) -> dict[str, Any]:
    try:
        produced = engine.run(case.inputs)
    except PenstockError as error:
        frozen = "" if case is exported else f"exported with {_sizes(exported)}, and something of that was frozen: "
        raise CompileError(f"the export cannot answer {_sizes(case)}: {frozen}{error.message[:600]}") from error
    differences, seen = [], {}
    for name, found in produced.items():
        if name not in case.outputs:
            raise CompileError(f"the export has an output {name!r} that the original does not give")
        problem, seen[name] = _difference(found, case.outputs[name], tolerance)
        differences += [f"output {name!r} {problem}"] if problem else []
    if differences:
        shown = "; ".join(differences[:MAX_SHOWN])
        raise CompileError(
            f"the export does not answer as the original, for {_sizes(case)}: {shown}. The model may depend on values "
            "or sizes in a way that the exporter cannot follow; raise source.tolerance if such differences are harmless"
        )
    return {"rows": case.rows, "outputs": seen}


def _difference(found: Array, expected: Array, tolerance: float) -> tuple[str, dict[str, Any]]:
    """Return what is wrong ("" if nothing), and figures."""
    if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
        return (
            f"is {found.dtype}{list(found.shape)}, and the original gives {expected.dtype}{list(expected.shape)}",
            {},
        )
    if expected.dtype.kind != "f":
        wrong = np.asarray(found != expected)
        if not wrong.any():
            return "", {"equal": True}
        return f"differs in {int(wrong.sum())} of {wrong.size} values{_at(wrong, found, expected)}", {"equal": False}
    return _float_difference(found.astype(np.float64), expected.astype(np.float64), tolerance)


def _float_difference(found: Array, expected: Array, tolerance: float) -> tuple[str, dict[str, Any]]:
    if expected.size == 0:
        return "", {"max_abs": 0.0, "allowed": tolerance}
    if not np.isfinite(expected).all():
        raise InvalidInput(
            "the original itself answers NaN or infinity for the examples; give other examples", field="model"
        )
    off = np.abs(np.asarray(found) - np.asarray(expected))
    off = np.where(np.isnan(off), np.inf, off)
    allowed = float(tolerance * max(1.0, float(np.abs(expected).max())))
    figures = {
        "max_abs": float(f"{off.max():.3g}") if np.isfinite(off.max()) else None,
        "allowed": float(f"{allowed:.3g}"),
    }
    if off.max() <= allowed:
        return "", figures
    share = f"{int((off > allowed).sum())} of {off.size} values"
    return f"is off by up to {off.max():.4g}, {allowed:.2g} allowed ({share}){_at(off, found, expected)}", figures


def _at(size: Array, found: Array, expected: Array) -> str:
    """Say in words where the difference is largest."""
    where = np.unravel_index(int(np.argmax(size)), size.shape)
    place = ", ".join(str(int(index)) for index in where)
    return f", most at [{place}]: {found[where]:.6g} instead of {expected[where]:.6g}"


def _sizes(case: Case) -> str:
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in case.inputs.items())
    return f"{case.rows} rows ({shapes})"


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
