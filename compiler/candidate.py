"""The edge variant that may ship: quantized, asked, compared with the float student and the teacher, and gated.

Decides whether quantization cost too much accuracy. What may be promised of the candidate is ``compiler.certify``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler import calibrate, evaluate, models, targets
from compiler.certify import CertifyData
from compiler.dataset import Split
from compiler.evaluate import VariantFigures
from compiler.evaluation import Quantization
from compiler.models import Loaded
from compiler.recipe import Recipe
from penstock import confidence
from penstock.errors import CompileError
from penstock.runtime import Engine
from penstock.tensors import Array


class GateRefused(CompileError):
    """The candidate runs, but costs more accuracy than the recipe allows: a refusal, not a failure."""

    code = "gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The edge variant that will ship; the float student itself when the recipe asks for fp32."""

    engine: Engine
    path: Path
    quantization: Quantization | None

    def __str__(self) -> str:
        done = self.quantization
        if done is None:
            return "none: fp32 as it is"
        integer, floating = sum(done.integer_nodes.values()), sum(done.float_nodes.values())
        left = f", {floating} LEFT IN FLOAT ({', '.join(done.float_nodes)})" if floating else ""
        return f"{done.types}, {done.rows} rows, {integer} of {integer + floating} products in integers{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What three models say to one split: scored outputs [N, C] of the candidate, and everyone's classes [N]."""

    outputs: Array
    edge: NDArray[np.int64]
    fp32: NDArray[np.int64]
    cloud: NDArray[np.int64]
    labels: NDArray[np.int64] | None


def make(loaded: Loaded, scratch: Path) -> Candidate:
    """Optimize and quantize as the recipe says.

    Raises:
        CompileError: a pass failed, or changed what the model takes or gives.
    """
    recipe = loaded.recipe
    if recipe.edge.precision == "fp32":
        return Candidate(engine=loaded.edge, path=loaded.edge_path, quantization=None)
    from compiler.passes import optimize, quantize

    ready, path = scratch / "optimized.onnx", scratch / "int8.onnx"
    optimize.optimize(loaded.edge_path, ready, field="edge.onnx")
    done = quantize.quantize(
        ready,
        path,
        types=targets.integer_types(loaded.target),
        inputs=loaded.data.ranges.inputs,
        max_batch=recipe.model.max_batch,
    )
    engine = models.engine(path)
    if engine.inputs != loaded.edge.inputs or engine.outputs != loaded.edge.outputs:
        raise CompileError('int8 quantization changed the model\'s inputs or outputs; set precision = "fp32"')
    return Candidate(engine=engine, path=path, quantization=done)


def temperature(loaded: Loaded, candidate: Candidate) -> float:
    """The temperature of the candidate's own outputs, from the split set apart for it.

    Raises:
        CalibrationError: it cannot be fitted.
    """
    recipe, split = loaded.recipe, loaded.data.temperature
    answered = answers(loaded, candidate, split)
    classes = answered.cloud if answered.labels is None else answered.labels
    fitted = calibrate.temperature(answered.outputs, classes, kind=recipe.model.output_kind)
    return float(f"{fitted:.4g}")  # more digits would only be noise of the last bits, and differ between machines


def answers(loaded: Loaded, candidate: Candidate, split: Split) -> Answers:
    """Ask all three models.

    Raises:
        CompileError: one of them answers with NaN or infinities.
    """

    def of(engine: Engine, what: str) -> Array:
        return evaluate.answers(
            engine, split.inputs, output=loaded.output, max_batch=loaded.recipe.model.max_batch, what=what
        )

    outputs = of(candidate.engine, "edge variant")
    fp32 = outputs if candidate.quantization is None else of(loaded.edge, "edge.onnx")
    return Answers(
        outputs=outputs,
        edge=confidence.predicted(outputs),
        fp32=confidence.predicted(fp32),
        cloud=confidence.predicted(of(loaded.cloud, "cloud.onnx")),
        labels=split.labels,
    )


def certify_data(recipe: Recipe, answered: Answers, temperature: float) -> CertifyData:
    """Answers as the certificate looks at them: scored, and with labels only where harm is counted by labels."""
    scores = confidence.score(
        answered.outputs, kind=recipe.model.output_kind, name=recipe.certificate.score, temperature=temperature
    )
    with_labels = recipe.certificate.harm == "labels"
    return CertifyData(
        scores=scores,
        edge_predictions=answered.edge,
        cloud_predictions=answered.cloud,
        labels=answered.labels if with_labels else None,
    )


def figures(loaded: Loaded, candidate: Candidate, test: Answers) -> tuple[VariantFigures, ...]:
    """The table: float student, candidate where it is another, teacher."""
    recipe = loaded.recipe
    lines = [("student fp32", "edge", "fp32", loaded.edge_path, loaded.edge, test.fp32)]
    if candidate.quantization is not None:
        lines.append((f"student {recipe.edge.precision}", "edge", "int8", candidate.path, candidate.engine, test.edge))
    lines.append(("teacher fp32", "cloud", "fp32", loaded.cloud_path, loaded.cloud, test.cloud))
    latencies = evaluate.latencies_ms({line[0]: line[4] for line in lines}, loaded.data.test.inputs)
    return tuple(
        VariantFigures(
            name=name,
            role=role,
            precision=precision,
            size_bytes=path.stat().st_size,
            accuracy=None if test.labels is None else evaluate.share(np.asarray(classes == test.labels)),
            agreement_fp32=evaluate.share(np.asarray(classes == test.fp32)),
            agreement_cloud=evaluate.share(np.asarray(classes == test.cloud)),
            latency_p50_ms=latencies[name],
        )
        for name, role, precision, path, _, classes in lines
    )


def gate(recipe: Recipe, variants: tuple[VariantFigures, ...]) -> str:
    """The quantization gate, in words.

    Raises:
        GateRefused: with the figures.
    """
    if len(variants) == 2:
        return "no quantization, nothing to gate"
    fp32, int8 = variants[0], variants[1]
    if fp32.accuracy is not None and int8.accuracy is not None:
        drop, what = fp32.accuracy.value - int8.accuracy.value, "accuracy"
    else:
        drop, what = 1 - int8.agreement_fp32.value, "agreement"
    text = f"int8 costs {100 * drop:.2f} points of {what}, {100 * recipe.quality.max_accuracy_drop:g} allowed"
    if drop > recipe.quality.max_accuracy_drop:
        raise GateRefused(
            f'refused: {text}. Give calibration more (or more typical) examples, set precision = "fp32", or allow '
            "more in quality.max_accuracy_drop"
        )
    return text
