"""The tools that quantize a case's model: penstock's whole pipeline, and what others' documentation shows first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from onnxruntime import quantization as ortq

from benchmarks import environments
from benchmarks.compiler.case import Case
from benchmarks.environments import last_line
from compiler.artifact.evaluation import CascadeEvaluation
from compiler.cache.steps import StepCache
from compiler.data import Split, calls
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock.artifact.layout import Layout
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array

NNCF = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0")
"""The newest NNCF, and the onnx and onnxruntime that penstock is measured with."""

_CALIBRATION_BATCH = 32
_SEARCH_SHARE = 0.7
"""Of the time that penstock has: after it no further candidate is tried, and the rest is for judging and packing."""
_ERROR_CHARS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came out. ``model`` is None where nothing did, and ``problem`` says why.

    Attributes:
        note: what it is, e.g. which candidate ships.
        seconds: to make it, with everything that its maker measures.
        predicted: figures that its maker gives of it, before this benchmark measured any.
        max_batch: rows of a call that its maker lets it answer together; 0: any number.
        promise: what penstock certifies of it, or why it certifies nothing.
    """

    model: Path | None
    note: str = ""
    seconds: float = 0.0
    problem: str = ""
    predicted: Mapping[str, Any] = field(default_factory=dict)
    max_batch: int = 0
    promise: str = ""


Maker = Callable[[Case, Path, float], Made]
"""Called with a case, a new directory, and the seconds that it has at most."""


def float_model(case: Case, out: Path, budget_s: float) -> Made:
    """Take the model as it is."""
    del out, budget_s
    return Made(model=case.model, note="as it is")


def penstock(case: Case, out: Path, budget_s: float) -> Made:
    """Run ``penstock compile --budget`` by a recipe of defaults, with nothing kept from before."""
    file = out / "recipe.toml"
    file.write_text(case.recipe())
    began = time.monotonic()
    compiled = compilation.compile_recipe(
        recipes.load(file),
        out / "artifact",
        cache=StepCache(out / "cache"),
        watcher=Lines(_announce),
        require_certificate=False,
        budget_s=_SEARCH_SHARE * budget_s,
    )
    seconds = time.monotonic() - began
    target = compiled.evaluation.targets[0]
    layout = Layout(compiled.directory)
    variant = layout.artifact().variant("edge")
    drop = target.parent_test.quality.value - target.variant.quality.value
    predicted: dict[str, Any] = {"metric": target.metric, "drop": drop}
    if target.variant.speed is not None and target.parent_test.speed is not None:
        own, parent = target.variant.speed.p50_ms, target.parent_test.speed.p50_ms
        predicted["speedup"] = {batch: parent[batch] / own[batch] for batch in own}
    model = out / "model.onnx"
    shutil.copy(layout.blobs.path(variant.weights.digest), model)
    return Made(
        model=model,
        note=target.chosen,
        seconds=seconds,
        predicted=predicted,
        max_batch=variant.spec.max_batch,
        promise=_promise(target.cascade),
    )


def _promise(cascade: CascadeEvaluation | None) -> str:
    if cascade is None:
        return "none for this task"
    if cascade.certificate is None:
        return f"refused: {cascade.refusal}"
    return f"keeps {cascade.certificate.coverage:.0%} at {cascade.certificate.max_harm:.0%} harm"


def plain_static(case: Case, out: Path, budget_s: float) -> Made:
    """Run ``quantize_static`` without options, on the rows for ranges."""
    del budget_s

    class Reader(ortq.CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._batches = _batches(case)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._batches, None)

    return _timed(out, lambda model: ortq.quantize_static(str(case.model), str(model), Reader()), "defaults")


def plain_dynamic(case: Case, out: Path, budget_s: float) -> Made:
    """Run ``quantize_dynamic`` without options."""
    del budget_s
    return _timed(out, lambda model: ortq.quantize_dynamic(str(case.model), str(model)), "defaults")


def nncf(case: Case, out: Path, budget_s: float) -> Made:
    """Run NNCF's quantization with accuracy control, in an environment of its own; without control for tasks whose
    accuracy its user would have to program first.
    """
    is_controlled = case.task in ("classification", "embedding")
    takes = load_engine("onnx", case.model, EngineOptions(threads=1)).inputs
    job = {
        "model": str(case.model),
        "data": str(case.data),
        "task": case.task if is_controlled else "",
        "kind": "encoder" if case.is_transformer else "",
        "output": case.output,
        "has_labels": case.has_labels,
        "max_drop": case.max_drop,
        "shapes": {spec.name: list(spec.shape) for spec in takes},
        "out": str(out / "model.onnx"),
    }
    try:
        python = environments.interpreter(case.model.parent.parent / "nncf", NNCF, announce=_announce)
    except environments.NotInstalled as error:
        return Made(model=None, problem=str(error))
    began = time.monotonic()  # installing is not compiling
    command = [str(python), str(Path(__file__).parent / "nncf_quantize.py"), json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=budget_s, check=False)
    except subprocess.TimeoutExpired:
        return Made(model=None, problem=f"not done after {budget_s:.0f} s", seconds=time.monotonic() - began)
    if done.returncode != 0:
        return Made(model=None, problem=last_line(done.stderr), seconds=time.monotonic() - began)
    note = "accuracy control" if is_controlled else "no accuracy control"
    return Made(model=out / "model.onnx", note=note, seconds=time.monotonic() - began)


MAKERS: Mapping[str, Maker] = {
    "fp32": float_model,
    "penstock": penstock,
    "ort static": plain_static,
    "ort dynamic": plain_dynamic,
    "nncf": nncf,
}


def _timed(out: Path, make: Callable[[Path], object], note: str) -> Made:
    model = out / "model.onnx"
    began = time.monotonic()
    try:
        with _quietly():
            make(model)
    except Exception as error:  # the quantizer raises whatever it meets
        problem = f"{type(error).__name__}: {error}"[:_ERROR_CHARS]
        return Made(model=None, problem=problem, seconds=time.monotonic() - began)
    return Made(model=model, note=note, seconds=time.monotonic() - began)


@contextmanager
def _quietly() -> Iterator[None]:
    with redirect_stdout(StringIO()):
        yield


def _batches(case: Case) -> Iterator[dict[str, Array]]:
    takes = load_engine("onnx", case.model, EngineOptions(threads=1)).inputs
    return calls.each(Split(name="fit", inputs=case.rows("fit"), labels=None), _CALIBRATION_BATCH, takes)


def _announce(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
