"""One compilation from recipe to artifact: load, quantize, calibrate, evaluate, gate, certify, pack, publish.

Composes the other modules and owns their order, which is part of the promise: everything that is fitted or can refuse a
candidate comes before the one look at the certifying split, and nothing appears at the destination before everything
has succeeded.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compiler import candidate as candidates
from compiler import certify, evaluate, models, pack, report, targets
from compiler.candidate import Candidate
from compiler.certify import Certified, CertifyData, RiskCoveragePoint
from compiler.evaluation import CurvePoint, Evaluation, Machine, SplitFigures
from compiler.models import Loaded
from compiler.recipe import Recipe
from penstock import machine
from penstock.certificate import Certificate
from penstock.errors import CalibrationError
from penstock.layout import VariantDraft

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a compilation produced. ``certificate_digest`` is "" without a certificate; ``evaluation`` says why."""

    reference: str
    digest: str
    directory: Path
    certificate_digest: str
    evaluation: Evaluation


class Steps:
    """Progress: a line a step, with its duration."""

    def __init__(self, say: Say) -> None:
        self._say = say

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[str]]:
        """Time a step; what it appends to the yielded list is shown beside its name."""
        began = time.perf_counter()
        notes: list[str] = []
        yield notes
        self._say(f"{name:<10} {time.perf_counter() - began:5.2f} s  {'; '.join(notes)}".rstrip())


def compile_recipe(recipe: Recipe, out: Path, *, require_certificate: bool = True, say: Say) -> Compiled:
    """Compile and publish at ``out``, or raise and leave ``out`` as it was.

    Args:
        require_certificate: False packs without one when certification is refused.
        say: receives progress lines.

    Raises:
        InvalidInput, CompileError: models or data are wrong. GateRefused: too much accuracy lost to quantization.
        CalibrationError: certification refused, with the samples needed. Conflict: ``out`` holds something else.
        StorageError: the disk said no.
    """
    steps = Steps(say)
    out = out.resolve()
    pack.check_destination(out)
    with pack.workspace(out) as scratch:
        with steps("load") as notes:
            loaded = models.load(recipe, scratch)
            notes.append(str(loaded))
        with steps("quantize") as notes:
            candidate = candidates.make(loaded, scratch)
            notes.append(str(candidate))
        evaluation, drafts = _judge(loaded, candidate, scratch / "artifact", require_certificate, steps)
        with steps("pack") as notes:
            digest, certificate_digest = pack.write(
                scratch / "artifact", drafts, evaluation, report.render(evaluation), tag=recipe.model.version
            )
            pack.publish(scratch / "artifact", out, scratch)
            notes.append(str(out))
    return Compiled(
        reference=recipe.reference,
        digest=digest,
        directory=out,
        certificate_digest=certificate_digest,
        evaluation=evaluation,
    )


def plan(recipe: Recipe, out: Path) -> list[tuple[str, str]]:
    """The steps that :func:`compile_recipe` would take, with what it found in the inputs; writes nothing at ``out``.

    Raises:
        As :func:`load`, and Conflict for the destination.
    """
    pack.check_destination(out.resolve())
    with tempfile.TemporaryDirectory(prefix="penstock-plan-") as scratch:
        loaded = models.load(recipe, Path(scratch))
    data, promise = loaded.data, recipe.certificate
    needed = certify.samples_needed(promise.max_harm, promise.delta)
    enough = "" if data.certify.rows >= needed else ": TOO FEW, this will be refused"
    quantize = "none, fp32 as it is"
    if recipe.edge.precision == "int8":
        types = targets.integer_types(loaded.target)
        quantize = f"static int8 {types}, per-channel weights, ranges from {data.ranges.rows} rows"
    return [
        ("load", str(loaded)),
        ("quantize", quantize),
        ("calibrate", f"temperature from {data.temperature.rows} rows"),
        ("gate", f"accuracy drop <= {recipe.quality.max_accuracy_drop:g} on {data.test.rows} test rows"),
        (
            "certify",
            f"{promise.harm} harm <= {promise.max_harm:g} at delta {promise.delta:g} by {promise.score}, on "
            f"{data.certify.rows} rows ({needed} needed at least{enough})",
        ),
        ("pack", f"{recipe.reference}: edge/{loaded.target.name}, cloud/{pack.CLOUD_TARGET} -> {out}"),
    ]


def _judge(
    loaded: Loaded, candidate: Candidate, directory: Path, require_certificate: bool, steps: Steps
) -> tuple[Evaluation, tuple[VariantDraft, ...]]:
    """Calibrate, measure, gate and certify a candidate; its variants are drafted into ``directory``."""
    recipe, data = loaded.recipe, loaded.data
    with steps("calibrate") as notes:
        temperature = candidates.temperature(loaded, candidate)
        notes.append(f"temperature {temperature:.3f} from {data.temperature.rows} rows")
    with steps("evaluate") as notes:
        test = candidates.answers(loaded, candidate, data.test)
        testing = candidates.certify_data(recipe, test, temperature)
        variants = candidates.figures(loaded, candidate, test)
        gate = candidates.gate(recipe, variants)
        notes.append(gate)
    with steps("certify") as notes:
        drafts = _drafts(loaded, candidate)
        certifying = candidates.certify_data(recipe, candidates.answers(loaded, candidate, data.certify), temperature)
        found, refusal = _certify(recipe, certifying, require_certificate)
        certificate = None
        if found is not None:
            certificate = pack.bind(found, drafts, directory, recipe, temperature=temperature, data=data.certify)
        notes.append(_describe_certificate(certificate, refusal))
    evaluation = Evaluation(
        model=recipe.model.name,
        version=recipe.model.version,
        target=loaded.target.name,
        machine=_machine(),
        splits={use: SplitFigures(rows=split.rows, digest=split.digest) for use, split in data.by_use().items()},
        variants=variants,
        quantization=candidate.quantization,
        gate=gate,
        harm=recipe.certificate.harm,
        score=recipe.certificate.score,
        temperature=temperature,
        cascade=None if certificate is None else evaluate.cascade(testing, certificate.threshold),
        curve_certify=_curve(certify.risk_coverage(certifying)),
        curve_test=_curve(certify.risk_coverage(testing)),
        certificate=certificate,
        refusal=refusal,
    )
    return evaluation, drafts


def _drafts(loaded: Loaded, candidate: Candidate) -> tuple[VariantDraft, ...]:
    recipe = loaded.recipe
    edge = pack.draft(
        recipe,
        candidate.engine,
        candidate.path,
        pack.edge_golden_inputs(loaded.data.ranges),
        output=loaded.output,
        role="edge",
        target=loaded.target.name,
    )
    cloud = pack.draft(
        recipe,
        loaded.cloud,
        loaded.cloud_path,
        pack.cloud_golden_inputs(loaded.cloud.inputs, recipe.model.input_range),
        output=loaded.output,
        role="cloud",
        target=pack.CLOUD_TARGET,
    )
    return edge, cloud


def _certify(recipe: Recipe, data: CertifyData, require_certificate: bool) -> tuple[Certified | None, str]:
    """The one look at the certifying split."""
    promise = recipe.certificate
    try:
        return certify.certify(data, max_harm=promise.max_harm, delta=promise.delta), ""
    except CalibrationError as error:
        if require_certificate:
            raise
        return None, error.message.rstrip(".") + "."


def _curve(points: list[RiskCoveragePoint]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(threshold=p.threshold, coverage=p.coverage, harm=p.harm) for p in points)


def _machine() -> Machine:
    from importlib.metadata import version

    return Machine(
        target=machine.edge_target(),
        processor=machine.processor_name(),
        cores=os.cpu_count() or 1,
        onnxruntime=version("onnxruntime"),
    )


def _describe_certificate(certificate: Certificate | None, refusal: str) -> str:
    if certificate is None:
        return f"REFUSED: {refusal}"
    return (
        f"{certificate.score} >= {certificate.threshold:.4f} keeps {certificate.coverage:.1%}; "
        f"{certificate.harm_count} of {certificate.n} harmful"
    )
