"""From measured variants to an artifact on disk: specs, golden vectors, certificate, and a directory that is all or
nothing.

Owns that the same inputs give the same digests, and that the cloud variant's digest depends only on the cloud model and
what the recipe says of the model (``compiler.artifact.golden_inputs``). So versions that share a cloud model share its
variant, and a core loads it once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from compiler.cache.sharing import locked
from compiler.cache.steps import ENTRY_FILE
from compiler.data import calls
from penstock.artifact import golden, manifests, row_reference
from penstock.artifact.blobs import as_the_umask_says, disk_errors, fsync_directory
from penstock.artifact.certificates import Certificate
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec
from penstock.artifact.row_reference import Reference
from penstock.errors import CompileError, Conflict, PenstockError, StorageError
from penstock.policy import distributions, row_features
from penstock.runtime import Engine
from penstock.wire.tensors import Array

REPORT_FILE, EVALUATION_FILE, LOCK_FILE = "report.html", "evaluation.json", "lock.json"
REFERENCE_FILE = "reference.json"
CLOUD_TARGET = "cpu"

_STEPS = {"fp32": 1e-3, "none": 1e-3, "fp16": 1e-2}
_OURS = frozenset({"oci-layout", "index.json", "blobs", REPORT_FILE, EVALUATION_FILE, LOCK_FILE})


def draft(
    spec: VariantSpec, weights: Path, onnx: Engine, asked: Sequence[Mapping[str, Array]], *, files: Mapping[str, Path]
) -> VariantDraft:
    """Make a variant ready to pack, with its own outputs as golden vectors.

    Args:
        spec: complete but for the tolerance of the golden outputs, which depends on them.
        onnx: computes the golden outputs; the model itself, or the graph that its engine was built from.
        asked: the inputs of a call; of one for every size that the variant is made for, where there are several.
        files: further files of the model, by their names in the artifact.

    Raises:
        CompileError: it answers the golden inputs with NaN or infinities, or one row of them is too large to replay.
    """
    found, document = _golden(spec.role, onnx, asked)
    spec = msgspec.structs.replace(spec, golden_tolerance=_tolerance(found, spec.precision))
    return VariantDraft(spec=spec, weights=weights, golden=document, files=files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Referring:
    """A document that refers to the artifact.

    Attributes:
        kind: its artifact type.
        title: its name in the artifact.
        copy: its name beside the layout, for people; "" for no copy.
    """

    kind: str
    content: bytes
    title: str
    copy: str = ""


def evidence(document: bytes) -> Referring:
    """Wrap the document that a certificate can be recomputed from."""
    return Referring(kind=manifests.EVIDENCE, content=document, title="evidence.msgpack")


def row_reference_of(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """Describe how rows were distributed, in few bins and without any row: what is served later is compared with it.

    Returns:
        b"" where there is no column of rows to describe.
    """
    rows = min((len(array) for array in inputs.values() if array.ndim), default=0)
    columns = row_features.features(inputs, outputs, rows, max_features=row_reference.MAX_FEATURES)
    if not rows or not columns:
        return b""
    described = tuple(distributions.described(name, values) for name, values in columns.items())
    return row_reference.encode(Reference(rows=rows, columns=described))


def documents(*, lock: bytes, evaluation: bytes, report: str, reference: bytes) -> tuple[Referring, ...]:
    """Wrap the documents that an artifact carries besides certificates; a ``reference`` of b"" is left out."""
    found = (Referring(kind=manifests.REFERENCE, content=reference, title=REFERENCE_FILE),) if reference else ()
    return (
        *found,
        Referring(kind=manifests.LOCK, content=lock, title=LOCK_FILE, copy=LOCK_FILE),
        Referring(kind=manifests.EVALUATION, content=evaluation, title=EVALUATION_FILE, copy=EVALUATION_FILE),
        Referring(kind=manifests.REPORT, content=report.encode(), title=REPORT_FILE, copy=REPORT_FILE),
    )


def write(
    directory: Path,
    drafts: Sequence[VariantDraft],
    certificates: Sequence[Certificate],
    referring: Sequence[Referring],
    *,
    tag: str,
) -> Layout:
    """Write the whole artifact, its referrers and the copies for people into an empty directory, and verify it.

    Raises:
        CertificateMismatch, ArtifactError, StorageError: nothing that fails here is ever published.
    """
    layout = Layout.create(directory)
    layout.pack(drafts, tag=tag)
    for certificate in certificates:
        layout.attach_certificate(certificate)
    for document in referring:
        layout.attach(document.kind, document.content, title=document.title)
        if document.copy:
            with disk_errors(f"writing {directory}"):
                (directory / document.copy).write_bytes(document.content)
    problems = layout.verify()
    if problems:
        raise CompileError(f"the artifact just written does not verify: {'; '.join(problems[:3])}")
    return layout


def check_destination(out: Path) -> None:
    """Check that an artifact can be published at ``out``, before hours of work.

    Raises:
        Conflict: something is there that an earlier compilation did not write, and that would be lost.
        StorageError: it cannot be looked into.
    """
    with disk_errors(f"looking into {out}"):
        if not out.exists() and not out.is_symlink():
            _check_parent(out)
            return
        names = {path.name for path in out.iterdir()}
    if not names:
        return
    foreign = names - _OURS
    try:
        is_ours = not foreign and any(manifests.MODEL in entry.annotations for entry in Layout(out).index.manifests)
    except PenstockError:
        is_ours = False
    if not is_ours:
        what = f"{', '.join(sorted(foreign)[:3])}" if foreign else "no artifact of ours"
        raise Conflict(f"{out} exists and holds {what}; choose another directory, or remove this one")


def _check_parent(out: Path) -> None:
    """Check that a directory can be made at ``out``.

    Raises:
        StorageError: it cannot.
    """
    parent = next(path for path in out.parents if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise StorageError(f"{out}: nothing can be written in {parent}; choose another directory")


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """Make a scratch directory beside ``out`` (so that a rename can publish from it), and remove it whatever happens.

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


def publish(built: Path, out: Path, scratch: Path, *, finish: Callable[[Path], None] | None = None) -> None:
    """Copy a finished artifact to ``out``; what an earlier compilation wrote there is replaced as a whole, by one
    compilation at a time.

    Args:
        finish: called with the copy before it takes its place.

    Raises:
        StorageError: a copy or a rename failed; ``out`` is as it was.
    """
    with locked(out.parent), disk_errors(f"publishing {out}"):
        ready, previous = scratch / "ready", scratch / "previous"
        shutil.copytree(built, ready, ignore=shutil.ignore_patterns(ENTRY_FILE))
        if out.exists():
            _carry_over(out, ready)
        if finish is not None:
            finish(ready)
        as_the_umask_says(ready)
        if not out.exists():
            os.rename(ready, out)
            fsync_directory(out.parent)
            return
        os.rename(out, previous)
        try:
            os.rename(ready, out)
        except OSError:
            os.rename(previous, out)
            raise
        fsync_directory(out.parent)


def _carry_over(out: Path, ready: Path) -> None:
    """Keep what joined the very same artifact after it was compiled: certificates made on a device, signatures."""
    try:
        old, new = Layout(out), Layout(ready)
        same = old.digest == new.digest
    except PenstockError:  # nothing there that could be kept
        return
    if not same:
        return
    known = {entry.digest for entry in new.index.manifests}
    joined = [entry for entry in old.index.manifests if entry.digest not in known]
    kinds = {manifests.CERTIFICATE, manifests.EVIDENCE, manifests.SIGNATURE}
    kept = [entry for entry in joined if entry.artifact_type in kinds]
    for entry in kept:
        manifest = manifests.decode_manifest(old.blobs.read(entry.digest))
        for digest in (entry.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)):
            new.blobs.put_file(old.blobs.path(digest))
    artifact, *referrers = new.index.manifests
    new.adopt(artifact, [*referrers, *kept])


def _golden(role: Role, onnx: Engine, asked: Sequence[Mapping[str, Array]]) -> tuple[Golden, bytes]:
    """Make golden vectors of as many rows as a device can hold: large pictures are proved with fewer of them."""
    can_take_fewer = calls.has_rows(onnx.inputs)
    rows = max(len(array) for array in asked[0].values()) if can_take_fewer else 1
    while True:
        first, *others = [
            _call(role, onnx, {name: array[:rows] if can_take_fewer else array for name, array in inputs.items()})
            for inputs in asked
        ]
        found = replace(first, others=tuple(others))
        document = golden.encode(found)
        if len(document) <= golden.MAX_BYTES:
            return found, document
        if rows == 1:
            raise CompileError(
                f"{role} variant: one row with its outputs is {len(document)} bytes, and devices replay at most "
                f"{golden.MAX_BYTES}"
            )
        rows //= 2


def _call(role: Role, onnx: Engine, inputs: Mapping[str, Array]) -> Golden:
    outputs = onnx.run(inputs)
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CompileError(
                f"{role} variant: output {name!r} is not finite for golden inputs; set model.input_range in the recipe"
            )
    return Golden(inputs=inputs, outputs=outputs)


def _tolerance(found: Golden, precision: str) -> float:
    """Say how far golden outputs may be off on another machine.

    Float kernels add in another order on another processor: a thousandth of the largest value. Half precision has ten
    bits: a hundredth. In integers a sum next to a rounding border may land one step off and carry on from there: four
    of 256 steps of the largest value. Saturated products, which is what the check must catch, are off by far more.
    """
    outputs = [array for call in found.calls for array in call.outputs.values()]
    values = [np.abs(array.astype(np.float64)) for array in outputs if array.dtype.kind == "f"]
    largest = max((float(array.max()) for array in values if array.size), default=0.0)
    step = _STEPS.get(precision, 4 / 256)
    return float(f"{max(1e-3, step * largest):.3g}")
