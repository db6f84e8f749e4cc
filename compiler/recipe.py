"""The recipe: what to build, from what, for which device, with which promise. A TOML file into typed, checked values.

Decides names and ranges only; whether the files fit each other is found when they are loaded. Paths in a recipe are
relative to the recipe's own directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from penstock import artifact as art
from penstock import config
from penstock.certificate import Harm
from penstock.confidence import SCORES
from penstock.errors import ArtifactError, ConfigError

Precision = Literal["int8", "fp32"]


class ModelSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both variants are.

    Attributes:
        version: the tag that points at the artifact; not part of its digest.
        labels: names of the classes, in order; optional.
        input_range: smallest and largest value an input may have. Data outside is refused, and the cloud's golden
            inputs are drawn from it.
        output: the output whose rows are scored; may be left out when there is only one.
        output_kind: what that output holds.
    """

    name: str
    version: str
    labels: tuple[str, ...] = ()
    input_range: tuple[float, float] | None = None
    output: str = ""
    output_kind: Literal["logits", "probabilities"] = "logits"
    max_batch: int = 64


class EdgeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variant for the device; ``target`` is a name of ``compiler.targets`` or ``host``."""

    onnx: str
    target: str = "host"
    precision: Precision = "int8"


class CloudSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variant for the cloud, packed as it is."""

    onnx: str


class SplitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Suffixes of the arrays of each split. Without ``temperature``, ``fit`` is divided in two."""

    fit: str = "fit"
    temperature: str = ""
    certify: str = "certify"
    test: str = "test"


class DataSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the examples are: arrays named ``<input>_<split>`` and ``<labels>_<split>`` in one npz file.

    Attributes:
        inputs: array names for inputs that are called differently: ``{pixels = "x"}`` reads input ``pixels`` from
            ``x_fit``, ``x_certify`` and ``x_test``.
        labels: name of the label arrays; "" when there are none.
        seed: divides ``fit`` into its two parts.
    """

    npz: str
    inputs: dict[str, str] = {}
    labels: str = "y"
    seed: int = 0
    splits: SplitsSection = SplitsSection()


class QualitySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gate for quantization: accuracy (agreement, without labels) it may cost on the test split."""

    max_accuracy_drop: float = 0.02


class CertificateSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The promise to be certified; see ``penstock.certificate.Certificate``."""

    max_harm: float = 0.02
    delta: float = 0.05
    harm: Harm = "labels"
    score: str = "max_prob"


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelSection
    edge: EdgeSection
    cloud: CloudSection
    data: DataSection
    quality: QualitySection = QualitySection()
    certificate: CertificateSection = CertificateSection()
    preprocessing: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe with its paths resolved."""

    model: ModelSection
    edge: EdgeSection
    data: DataSection
    quality: QualitySection
    certificate: CertificateSection
    preprocessing: dict[str, Any]
    edge_onnx: Path
    cloud_onnx: Path
    npz: Path

    @property
    def reference(self) -> str:
        """``name:version``."""
        return f"{self.model.name}:{self.model.version}"


def load(file: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: unreadable, a misspelt key (with the nearest known one), a wrong type or a value out of range.
    """
    parsed = config.load(_File, file=file)
    _check(parsed, file)
    base = file.parent
    return Recipe(
        model=parsed.model,
        edge=parsed.edge,
        data=parsed.data,
        quality=parsed.quality,
        certificate=parsed.certificate,
        preprocessing=parsed.preprocessing,
        edge_onnx=base / parsed.edge.onnx,
        cloud_onnx=base / parsed.cloud.onnx,
        npz=base / parsed.data.npz,
    )


def _check(parsed: _File, file: Path) -> None:
    model, promise = parsed.model, parsed.certificate
    try:
        art.check_model_name(model.name)
        art.check_tag(model.version)
    except ArtifactError as error:
        raise ConfigError(f"{file}: model: {error.message}") from error
    if promise.score not in SCORES:
        raise ConfigError(
            f"{file}: certificate.score: unknown score {promise.score!r}; {config.nearest(promise.score, SCORES)}"
        )
    low, high = model.input_range or (0.0, 1.0)
    in_range = {
        "model.input_range": (low < high, f"[{low:g}, {high:g}]", "the smallest value before the largest"),
        "model.max_batch": (1 <= model.max_batch <= 4096, model.max_batch, "1 to 4096"),
        "certificate.max_harm": (0 < promise.max_harm < 1, promise.max_harm, "a share between 0 and 1 (0.02 is 2%)"),
        "certificate.delta": (0 < promise.delta <= 0.5, promise.delta, "a share above 0 and at most 0.5"),
        "quality.max_accuracy_drop": (
            0 <= parsed.quality.max_accuracy_drop <= 1,
            parsed.quality.max_accuracy_drop,
            "a share between 0 and 1 (0.02 is two points)",
        ),
        "data.seed": (parsed.data.seed >= 0, parsed.data.seed, "0 or more"),
        "data.labels": (
            bool(parsed.data.labels) or promise.harm == "disagreement",
            "none",
            'the name of label arrays, because certificate.harm = "labels" (or set that to "disagreement")',
        ),
    }
    for name, (is_good, value, expected) in in_range.items():
        if not is_good:
            raise ConfigError(f"{file}: {name}: {value} given, expected {expected}")
