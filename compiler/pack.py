"""From measured variants to an artifact on disk: specs, golden vectors, certificate, and a directory that is all or
nothing.

Owns that the same inputs give the same digests, and that the cloud variant's digest depends only on the cloud model and
what the recipe says of the model: its golden inputs are drawn from a fixed seed, never from the edge's examples. So
versions that share a cloud model share its variant, and a core loads it once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from compiler import evaluation as evaluations
from compiler.certify import Certified
from compiler.dataset import Split
from compiler.evaluation import Evaluation
from compiler.recipe import Recipe
from penstock import artifact as art
from penstock import golden
from penstock.artifact import Role, VariantSpec
from penstock.blobs import disk_errors, fsync_directory
from penstock.certificate import Certificate
from penstock.errors import CompileError, Conflict, PenstockError
from penstock.golden import Golden
from penstock.layout import Layout, VariantDraft, variant_digest
from penstock.runtime import Engine
from penstock.tensors import Array, TensorSpec, numpy_dtype

REPORT_FILE, EVALUATION_FILE = "report.html", "evaluation.json"
CLOUD_TARGET = "cpu"

_GOLDEN_ROWS = 16
_GOLDEN_SEED = 0
_FREE_DIMENSION = 8  # of a golden input, where the model leaves a dimension other than the batch free
_OURS = frozenset({"oci-layout", "index.json", "blobs", REPORT_FILE, EVALUATION_FILE})


def draft(
    recipe: Recipe, engine: Engine, weights: Path, inputs: Mapping[str, Array], *, output: str, role: Role, target: str
) -> VariantDraft:
    """A variant ready to pack, with its own outputs for ``inputs`` as golden vectors.

    Raises:
        CompileError: it answers the golden inputs with NaN or infinities.
    """
    precision = recipe.edge.precision if role == "edge" else "fp32"
    outputs = engine.run(inputs)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CompileError(
                f"{role} variant: output {name!r} is not finite for golden inputs; set model.input_range in the recipe"
            )
    spec = VariantSpec(
        model=recipe.model.name,
        role=role,
        engine="onnx",
        target=target,
        provider="cpu",
        precision=precision,
        inputs=engine.inputs,
        outputs=engine.outputs,
        score_output=output,
        score_kind=recipe.model.output_kind,
        labels=recipe.model.labels,
        max_batch=recipe.model.max_batch,
        preprocessing=recipe.preprocessing,
        golden_tolerance=_tolerance(outputs, precision),
    )
    return VariantDraft(spec=spec, weights=weights, golden=golden.encode(Golden(inputs=inputs, outputs=outputs)))


def edge_golden_inputs(split: Split) -> dict[str, Array]:
    """The first rows of a split. They travel to devices: never of the certifying one."""
    return dict(split.take(slice(0, _GOLDEN_ROWS), name="golden").inputs)


def cloud_golden_inputs(specs: tuple[TensorSpec, ...], value_range: tuple[float, float] | None) -> dict[str, Array]:
    """Noise from a fixed seed over the declared range (0 to 1 where none is): equal for all who share a cloud model."""
    low, high = value_range or (0.0, 1.0)
    source = np.random.default_rng(_GOLDEN_SEED)
    inputs: dict[str, Array] = {}
    for spec in specs:
        shape = (_GOLDEN_ROWS, *(_FREE_DIMENSION if size == -1 else size for size in spec.shape[1:]))
        dtype = numpy_dtype(spec.datatype)
        if dtype.kind == "f":
            inputs[spec.name] = source.uniform(low, high, shape).astype(dtype)
        else:
            inputs[spec.name] = source.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
    return inputs


def bind(
    found: Certified,
    drafts: tuple[VariantDraft, ...],
    directory: Path,
    recipe: Recipe,
    *,
    temperature: float,
    data: Split,
) -> Certificate:
    """The certificate of what was found, for exactly these variants, this preprocessing and this data.

    Args:
        drafts: edge and cloud. ``directory``: where :func:`write` will pack them.
    """
    edge_digest, cloud_digest = (variant_digest(item, directory) for item in drafts)
    return Certificate(
        model=recipe.model.name,
        edge_digest=edge_digest,
        cloud_digest=cloud_digest,
        preprocessing_digest=art.preprocessing_digest(recipe.preprocessing),
        harm=found.harm,
        score=recipe.certificate.score,
        temperature=temperature,
        threshold=found.threshold,
        max_harm=recipe.certificate.max_harm,
        delta=recipe.certificate.delta,
        n=found.n,
        harm_count=found.harm_count,
        kept_count=found.kept_count,
        coverage=found.coverage,
        coverage_low=found.coverage_low,
        coverage_high=found.coverage_high,
        audit_max_harm=found.audit_max_harm,
        data_digest=data.digest,
    )


def write(
    directory: Path, drafts: tuple[VariantDraft, ...], evaluation: Evaluation, report: str, *, tag: str
) -> tuple[str, str]:
    """Write the whole artifact, its referrers and the copies for people into an empty directory, and verify it.

    Returns:
        Digest of the artifact, and of the certificate's manifest ("" without one).

    Raises:
        CertificateMismatch, ArtifactError, StorageError: nothing that fails here is ever published.
    """
    layout = Layout.create(directory)
    packed = layout.pack(drafts, tag=tag)
    certificate_digest = ""
    if evaluation.certificate is not None:
        certificate_digest = layout.attach_certificate(evaluation.certificate).digest
    encoded, page = evaluations.encode(evaluation), report.encode()
    layout.attach(art.EVALUATION, encoded, title=EVALUATION_FILE)
    layout.attach(art.REPORT, page, title=REPORT_FILE)
    with disk_errors(f"writing {directory}"):
        (directory / EVALUATION_FILE).write_bytes(encoded)
        (directory / REPORT_FILE).write_bytes(page)
    problems = layout.verify()
    if problems:
        raise CompileError(f"the artifact just written does not verify: {'; '.join(problems[:3])}")
    return packed.digest, certificate_digest


def check_destination(out: Path) -> None:
    """
    Raises:
        Conflict: something is there that an earlier compilation did not write, and that would be lost.
        StorageError: it cannot be looked into.
    """
    with disk_errors(f"looking into {out}"):
        if not out.exists() and not out.is_symlink():
            return
        names = {path.name for path in out.iterdir()}
    if not names:
        return
    foreign = names - _OURS
    try:
        is_ours = not foreign and any(art.MODEL in entry.annotations for entry in Layout(out).index.manifests)
    except PenstockError:
        is_ours = False
    if not is_ours:
        what = f"{', '.join(sorted(foreign)[:3])}" if foreign else "no artifact of ours"
        raise Conflict(f"{out} exists and holds {what}; choose another directory, or remove this one")


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A scratch directory beside ``out`` (so that a rename can publish from it), gone afterwards whatever happens.

    Raises:
        StorageError: the parent directory cannot be written.
    """
    with disk_errors(f"creating a directory beside {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(built: Path, out: Path, scratch: Path) -> None:
    """Move a finished directory to ``out``; what an earlier compilation wrote there is replaced as a whole.

    Raises:
        StorageError: a rename failed; ``out`` is as it was.
    """
    with disk_errors(f"publishing {out}"):
        if not out.exists():
            os.rename(built, out)
            fsync_directory(out.parent)
            return
        previous = scratch / "previous"
        os.rename(out, previous)
        try:
            os.rename(built, out)
        except OSError:
            os.rename(previous, out)
            raise
        fsync_directory(out.parent)


def _tolerance(outputs: Mapping[str, Array], precision: str) -> float:
    """How far golden outputs may be off elsewhere.

    Float kernels add in another order on another processor: a thousandth of the largest value. In INT8 a sum next to a
    rounding border may land one step off and carry on from there: four of 256 steps of the largest value. Saturated
    products, which is what the check must catch, are off by far more.
    """
    values = [np.abs(array.astype(np.float64)) for array in outputs.values() if array.dtype.kind == "f"]
    largest = max((float(array.max()) for array in values if array.size), default=0.0)
    step = 4 / 256 if precision == "int8" else 1e-3
    return float(f"{max(1e-3, step * largest):.3g}")
