"""The artifact: manifests and specs as data, and reading them from any content-addressed source.

An artifact is an OCI image index with one image manifest per variant (CNCF ModelPack media types, raw layers);
certificate, evaluation and report are referrers of that index. ``penstock.artifact.layout`` writes and reads it as an
OCI image layout on disk. Nothing here touches a disk or a network: callers pass ``read``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from penstock.artifact import certificates
from penstock.artifact.blobs import digest_of
from penstock.artifact.certificates import Certificate, Subject
from penstock.errors import ArtifactError, DigestMismatch
from penstock.policy.decoding import CLASSES, Decoder, Decoding
from penstock.policy.text_answers import AnswerSpec
from penstock.policy.text_rows import EmbeddingSpec
from penstock.wire.tensors import TensorSpec

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
MODEL_FILE = "application/vnd.cncf.model.weight.config.v1.raw"
VARIANT_SPEC = "application/vnd.penstock.variant.v1+json"
GOLDEN = "application/vnd.penstock.golden.v1+msgpack"
CERTIFICATE = certificates.MEDIA_TYPE
EVIDENCE = "application/vnd.penstock.evidence.v1+msgpack"
EVALUATION = "application/vnd.penstock.evaluation.v1+json"
REPORT = "application/vnd.penstock.report.v1+html"
REFERENCE = "application/vnd.penstock.reference.v1+json"
LOCK = "application/vnd.penstock.lock.v1+json"
SIGNATURE = "application/vnd.penstock.signature.v1+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"

REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
MODEL = "org.penstock.model"
ROLE = "org.penstock.role"
TARGET = "org.penstock.target"
PROVIDER = "org.penstock.provider"
EXECUTION_PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""What a variant calls an execution provider, and what onnxruntime calls it."""
PRECISION = "org.penstock.precision"

_T = TypeVar("_T")
Role = str
"""A rung of the cascade: ``edge`` on the device, ``cloud``, and names of a recipe's own for rungs between them."""

Read = Callable[[str], bytes]
"""Digest in, verified bytes out (``BlobStore.read`` or a like function)."""

# one path component of the OCI distribution specification's <name>, and its <reference>
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_RESERVED = frozenset({"models", "health", "repository"})  # first segments that the OIP owns under /v2


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI content descriptor. Unknown fields are allowed: the specification says to ignore them."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI image manifest."""

    schema_version: int
    media_type: str = ""
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI image index."""

    schema_version: int
    media_type: str = ""
    artifact_type: str | None = None
    manifests: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class VariantSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to run one variant. Stored as a layer beside the weights; its bytes are part of the variant's digest.

    Attributes:
        engine: name in ``penstock.runtime`` (``onnx``).
        provider: execution provider, ``cpu`` by default.
        score_output: the output the cascade scores, shape [-1, classes]; ``score_kind`` says what it holds.
        preprocessing: what was done to raw data before it becomes ``inputs``, as plain JSON; see
            :func:`preprocessing_digest`.
        golden_tolerance: largest absolute difference accepted when golden inputs are replayed on the target.
        probe_output: the output [-1] that holds the variant's own confidence in each row, which no client sees; left
            out where it has none, so that such a spec is read by releases that know of no such output.
        decoding: how the scored output is read, where it holds no classes; left out where it does.
        answer: of a language model; left out for others, and by releases that did not know it.
        embedding: how texts become the inputs of a model that gives a vector for each; left out for others.
    """

    model: str
    role: Role
    engine: str
    target: str
    provider: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    score_output: str
    score_kind: Literal["logits", "probabilities"] = "logits"
    labels: tuple[str, ...] = ()
    max_batch: int = 64
    preprocessing: dict[str, Any] = {}
    golden_tolerance: float = 1e-3
    probe_output: str | msgspec.UnsetType = msgspec.UNSET
    decoding: Decoding | msgspec.UnsetType = msgspec.UNSET
    answer: AnswerSpec | msgspec.UnsetType = msgspec.UNSET
    embedding: EmbeddingSpec | msgspec.UnsetType = msgspec.UNSET

    @property
    def probe(self) -> str:
        """Return the name of the output that holds the variant's own confidence; "" where it has none."""
        return self.probe_output or ""

    @property
    def answers(self) -> tuple[TensorSpec, ...]:
        """List the outputs that are answers: what clients see, and what the cloud gives as well."""
        return tuple(output for output in self.outputs if output.name != self.probe)


def decoder_of(spec: VariantSpec) -> Decoder:
    """Return what reads the scored output of a variant."""
    decoding = CLASSES if spec.decoding is msgspec.UNSET else spec.decoding
    return Decoder(output=spec.score_output, kind=spec.score_kind, decoding=decoding, probe=spec.probe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One variant of an artifact. ``digest`` is its manifest's; the other descriptors name its layers.

    Attributes:
        files: further files that belong to the model (external data, tokenizer), each with its name as title.
    """

    digest: str
    spec: VariantSpec
    weights: Descriptor
    golden: Descriptor | None
    files: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A parsed artifact. ``digest`` of the index is its identity (its *version*); names only point at it."""

    model: str
    digest: str
    variants: tuple[Variant, ...]

    def variant(self, role: Role, *, target: str | None = None) -> Variant:
        """Return the variant of a role, for a target where one is given.

        Raises:
            ArtifactError: there is none; the message lists what there is.
        """
        for variant in self.variants:
            if variant.spec.role == role and target in (None, variant.spec.target):
                return variant
        have = ", ".join(f"{v.spec.role}/{v.spec.target}" for v in self.variants) or "none"
        wanted = role if target is None else f"{role}/{target}"
        raise ArtifactError(f"artifact {self.digest} of {self.model!r} has no variant {wanted}; it has {have}")


def check_file_name(name: str) -> str:
    """Check a title under which a file of a variant may be put beside the others.

    Raises:
        ArtifactError: empty, a path, or a name with characters that some file system or terminal treats specially.
    """
    if not _FILE_NAME.fullmatch(name) or ".." in name:
        raise ArtifactError(
            f"{name[:140]!r} is no name for a file of a model: up to 128 letters, digits and . _ - + and no path"
        )
    return name


def canonical_json(value: object) -> bytes:
    """Write JSON with sorted keys and no spaces: same value, same bytes, same digest."""
    return msgspec.json.encode(value, order="sorted")


def preprocessing_digest(preprocessing: Mapping[str, Any]) -> str:
    """Return what a certificate binds of the preprocessing."""
    return digest_of(canonical_json(dict(preprocessing)))


def check_model_name(name: str) -> str:
    """Check that a model's name can be a repository's.

    Raises:
        ArtifactError: not usable as a repository name.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED or len(name) > 128:
        raise ArtifactError(
            f"{name[:140]!r} is not a model name; use lower-case letters, digits and single . _ - between them "
            f"(not {', '.join(sorted(_RESERVED))})"
        )
    return name


def check_tag(tag: str) -> str:
    """Check that a version's name can be a tag.

    Raises:
        ArtifactError: not usable as a tag.
    """
    if not _TAG.fullmatch(tag):
        raise ArtifactError(f"{tag[:140]!r} is not a version tag; use up to 128 letters, digits and . _ -")
    return tag


def load(digest: str, read: Read) -> Artifact:
    """Parse the artifact whose index has ``digest``. ``read`` verifies bytes against digests.

    Raises:
        ArtifactError: malformed. DigestMismatch, NotFound: from ``read``.
    """
    index = decode_index(read(digest))
    variants = tuple(_load_variant(entry, read) for entry in index.manifests)
    if not variants:
        raise ArtifactError(f"artifact {digest} has no variants")
    models = {variant.spec.model for variant in variants}
    if len(models) != 1:
        raise ArtifactError(f"artifact {digest} mixes models {sorted(models)}")
    return Artifact(model=models.pop(), digest=digest, variants=variants)


def load_certificate(digest: str, read: Read) -> Certificate:
    """Load the certificate that a referrer manifest carries.

    Raises:
        ArtifactError: the manifest holds none, or a malformed one.
    """
    manifest = decode_manifest(read(digest))
    if manifest.artifact_type != CERTIFICATE or len(manifest.layers) != 1:
        raise ArtifactError(f"{digest} is not a certificate manifest (artifactType {manifest.artifact_type!r})")
    return certificates.decode(read_described(manifest.layers[0], read))


def subject_of(artifact: Artifact, edge: Variant | None) -> Subject:
    """Name what a certificate of the variant ``edge`` of an artifact has to be about."""
    return Subject(
        model=artifact.model,
        edge_digest=edge.digest if edge else "",
        cloud_digest=next((variant.digest for variant in artifact.variants if variant.spec.role == "cloud"), ""),
        preprocessing_digest=preprocessing_digest(edge.spec.preprocessing) if edge else "",
    )


def shares_file(artifact: Artifact, edge: Variant, name: str) -> bool:
    """Say whether a variant and the cloud's have the very same file of a name; without a cloud variant, or where both
    lack the file, yes."""
    clouds = [variant for variant in artifact.variants if variant.spec.role == "cloud"]
    return all(_file_of(edge, name) == _file_of(cloud, name) for cloud in clouds)


def _file_of(variant: Variant, name: str) -> str:
    return next((file.digest for file in variant.files if file.annotations.get(TITLE) == name), "")


def check_certificate(certificate: Certificate, artifact: Artifact) -> None:
    """Check that a certificate fits one of an artifact's own variants (:func:`penstock.artifact.certificates.check`).

    Raises:
        CertificateMismatch: issued for other digests.
    """
    certified = next((v for v in artifact.variants if v.digest == certificate.edge_digest), None)
    if certified is None:  # any edge variant will do for the message
        certified = next((v for v in artifact.variants if v.spec.role == "edge"), None)
    certificates.check(certificate, subject_of(artifact, certified))


def decode_index(data: bytes) -> Index:
    """Read an image index.

    Raises:
        ArtifactError: not an image index.
    """
    index = _decode(data, Index, "image index")
    if index.schema_version != 2:
        raise ArtifactError(f"image index: schemaVersion is {index.schema_version}, expected 2")
    return index


def decode_manifest(data: bytes) -> Manifest:
    """Read an image manifest.

    Raises:
        ArtifactError: not an image manifest.
    """
    return _decode(data, Manifest, "image manifest")


def read_described(descriptor: Descriptor, read: Read) -> bytes:
    """Read a described blob, whose size must be the one described.

    Raises:
        DigestMismatch: another size.
    """
    data = read(descriptor.digest)
    if len(data) != descriptor.size:
        raise DigestMismatch(f"blob {descriptor.digest} has {len(data)} bytes, its descriptor says {descriptor.size}")
    return data


def _load_variant(entry: Descriptor, read: Read) -> Variant:
    manifest = decode_manifest(read_described(entry, read))
    spec = _decode(read_described(_layer(manifest, VARIANT_SPEC, entry.digest), read), VariantSpec, "variant spec")
    golden = next((layer for layer in manifest.layers if layer.media_type == GOLDEN), None)
    weights = _layer(manifest, MODEL_WEIGHT, entry.digest)
    files = tuple(layer for layer in manifest.layers if layer.media_type == MODEL_FILE)
    _check_files(entry.digest, weights, files)
    return Variant(digest=entry.digest, spec=spec, weights=weights, golden=golden, files=files)


def _check_files(digest: str, weights: Descriptor, files: tuple[Descriptor, ...]) -> None:
    """Refuse names of files that leave the directory, and two files in one place: names become paths on devices."""
    if not files:
        return
    names = [check_file_name(layer.annotations.get(TITLE, "")) for layer in (weights, *files)]
    folded = [name.lower() for name in names]  # some file systems know no case
    twice = sorted({name for name, same in zip(names, folded, strict=True) if folded.count(same) > 1})
    if twice:
        raise ArtifactError(f"variant {digest} has several files called {twice[0]!r}; every name may occur once")


def _layer(manifest: Manifest, media_type: str, digest: str) -> Descriptor:
    layers = [layer for layer in manifest.layers if layer.media_type == media_type]
    if len(layers) != 1:
        raise ArtifactError(f"variant {digest}: {len(layers)} layers of type {media_type}, expected exactly one")
    return layers[0]


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{what}: {error}") from error
