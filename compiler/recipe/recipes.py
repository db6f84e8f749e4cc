"""The recipe: what to build, from what, for which devices, with which promise. A TOML file into typed, checked values.

Decides names and ranges only; whether the files fit each other is found when they are loaded. Paths in a recipe are
relative to the recipe's own directory. Each capability owns its table: ``[data]`` is ``compiler.recipe.data_section``,
``[certificate]`` is ``compiler.recipe.certificate_section``, and so on; this module puts them together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from compiler.recipe import certificate_section, data_section, shapes_section, source_section, targets
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.choices import Objective, Task
from compiler.recipe.data_section import DataSection
from compiler.recipe.distill_section import DistillSection
from compiler.recipe.generation_section import GenerationSection
from compiler.recipe.shapes_section import Buckets
from compiler.recipe.source_section import SourceSection
from compiler.recipe.targets import Precision
from penstock.artifact import manifests
from penstock.errors import ArtifactError, ConfigError
from penstock.policy.confidence import Kind
from penstock.policy.decoding import DecodingSettings
from penstock.process import config

MAX_TARGETS = 16
EDGE, CLOUD = "edge", "cloud"


class ModelSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all variants are.

    Attributes:
        name: of the model, in the registry and in requests.
        version: the tag that points at the artifact; not part of its digest.
        task: how answers are read and judged (docs/how-to/judge-answers.md). A cascade is certified where something
            says how sure an answer is; regressions and embeddings are packed without a certificate, unless
            ``probe_output`` names an output that does.
        labels: names of the classes, in order; optional.
        input_range: smallest and largest value an input may have. Data outside is refused, and the cloud's golden
            inputs are drawn from it.
        output: the output whose rows are scored; may be left out where only one fits the task by its shape and name.
        output_kind: what that output holds; "auto" tells by its values: probabilities where each row is a distribution.
        max_batch: rows of one batch, at most.
        max_run_s: seconds of processor time in which a model has to load and answer one row. Each is tried in a process
            of its own first, so that a graph that loops without end ends nothing but that.
        max_run_bytes: memory that it may take for that; 0 for four fifths of what is free.
        shapes: sizes that the models leave open: of a dimension by its name, fixed (``height = 640``) or held to a few
            (``width = { buckets = [160, 320, 640] }``; other sizes are refused), or the shape of an input by the
            input's name (``x = [-1, 3, 48, 320]``, where -1 stays open).
        metric: how good an answer is: a name (docs/how-to/judge-answers.md), or a function of yours as
            ``module:function`` or ``file.py:function`` that takes answers and references and gives a number from 0 to 1
            for each row. "" takes the task's own. Of a generation it takes three texts, prompt, answer and reference,
            and gives one number: the certificate is then about it (docs/how-to/compile-a-language-model.md).
        correct: a function of yours that takes answers and labels and says for each row whether it is right; harm is
            what the cloud gets right and the device does not. "" takes rows with a metric of at least ``correct_at``.
        correct_at: metric from which a row is right; 0 takes the metric's own.
        decoding: how the scored output is read.
        probe_output: an output [batch] or [batch, 1] in [0, 1] by which your model itself says how sure it is of a row:
            the score "probe". Clients of an agent do not see it. "" for none.
    """

    name: str
    version: str = "v1"
    task: Task = "classification"
    labels: tuple[str, ...] = ()
    input_range: tuple[float, float] | None = None
    output: str = ""
    output_kind: Literal["auto", "logits", "probabilities"] = "auto"
    max_batch: int = 64
    max_run_s: float = 60.0
    max_run_bytes: int = 0
    shapes: dict[str, int | tuple[int, ...] | Buckets] = {}
    metric: str = ""
    correct: str = ""
    correct_at: float = 0.0
    decoding: DecodingSettings = DecodingSettings()
    probe_output: str = ""

    @property
    def kind(self) -> Kind:
        """Return what the scored output holds; logits where only its values will tell."""
        return "logits" if self.output_kind == "auto" else self.output_kind

    @property
    def has_cascade(self) -> bool:
        """Say whether something tells how sure an answer is, so that a cascade can be certified."""
        return self.task not in _UNSURE or bool(self.probe_output)


_UNSURE: frozenset[Task] = frozenset({"regression", "embedding"})
"""Tasks whose outputs do not say by themselves how sure they are."""


class PruneSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights that are taken out before quantization. The gate measures what that costs.

    Attributes:
        share: of the weights, or of the channels.
        method: small weights wherever they are ("magnitude"), or whole channels ("channels").
    """

    share: float
    method: Literal["magnitude", "channels"] = "magnitude"


class RungSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rung of the cascade that is not the cloud. One in ``[[middle]]`` also has a ``name``, its role in the artifact.

    Attributes:
        model: an ONNX file, a Hugging Face directory, ``module:factory``, an ExportedProgram, ...
            (docs/how-to/compile-a-model.md).
        distill: the model is a student to be trained: see ``[distill]``; ``model`` then says what it looks like.
        targets: devices to build a variant for; one variant each.
        precisions: candidates; by default what each target lists. The gate ships one of them.
        objective: the fastest candidate that keeps the quality budget, or the smallest.
        prune: weights to take out first; none by default.
        passes: options by pass, e.g. ``passes.int8.percentile = 99.9``; each pass checks its own when a compilation
            starts (``compiler.passes.table``).
    """

    model: str
    targets: tuple[str, ...] = (targets.HOST,)
    precisions: tuple[Precision, ...] = ()
    objective: Objective = "speed"
    source: SourceSection = SourceSection()
    distill: bool = False
    prune: PruneSection | None = None
    passes: dict[str, dict[str, Any]] = {}


class MiddleSection(RungSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rung between the device and the cloud, e.g. a gateway on the premises.

    Attributes:
        name: its role in the artifact.
    """

    name: str


class CloudSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variant for the cloud, packed as it is.

    Attributes:
        model: as in ``[edge]``.
    """

    model: str
    source: SourceSection = SourceSection()


class QualitySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gate: accuracy (agreement, without labels) that a candidate may cost against its float parent.

    Attributes:
        max_accuracy_drop: a share: 0.02 is two points. A candidate has to be *shown* to cost no more on the tuning
            rows, which takes some hundreds of them: about 4.5 / this share if none is lost.
        delta: chance that a variant ships that costs more; divided by the number of candidates.
        restore_operators: over the budget, send sensitive operators of an int8 candidate back to float until it fits.
        max_perplexity_increase: the budget of a generation, as a share of the float model's perplexity.
        mixed_rows: what becomes of a model whose rows change each other's answers in a batch: it is measured,
            certified and served one row at a time ("alone"), or refused with the operator that mixes them.
    """

    max_accuracy_drop: float = 0.02
    delta: float = 0.05
    restore_operators: bool = True
    mixed_rows: Literal["alone", "refuse"] = "alone"
    max_perplexity_increase: float = 0.10


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a recipe can say.

    Attributes:
        preprocessing: what is done to raw data before they are an input; packed into each variant, and the certificate
            is bound to it.
        seed: of whatever is random: weights that a factory leaves open, golden inputs, divisions.
    """

    model: ModelSection
    edge: RungSection
    middle: tuple[MiddleSection, ...] = ()
    cloud: CloudSection | None = None
    data: DataSection
    quality: QualitySection = QualitySection()
    certificate: CertificateSection = CertificateSection()
    distill: DistillSection | None = None
    generation: GenerationSection = GenerationSection()
    preprocessing: dict[str, Any] = {}
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A rung that is not the cloud, under its role's name."""

    role: str
    section: RungSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe. ``base`` is the directory that its paths are relative to.

    Attributes:
        rungs: device first. ``cloud`` is None when the float model of the last rung is to be the cloud's.
    """

    base: Path
    model: ModelSection
    rungs: tuple[Rung, ...]
    cloud: CloudSection | None
    data: DataSection
    quality: QualitySection
    certificate: CertificateSection
    distill: DistillSection | None
    generation: GenerationSection
    preprocessing: dict[str, Any]
    seed: int

    @property
    def reference(self) -> str:
        """Return ``name:version``, as an artifact is referred to."""
        return f"{self.model.name}:{self.model.version}"


def load(file: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: unreadable, a misspelt key (with the nearest known one), a wrong type or a value out of range.
    """
    return _checked(config.load(RecipeFile, file=file), file.parent, str(file))


def of_model(
    model: str,
    data: DataSection,
    *,
    base: Path,
    target: str = targets.HOST,
    precisions: tuple[str, ...] = (),
    task: str | None = None,
    max_harm: float | None = None,
    output: str = "",
    layout: str = "",
    source: SourceSection | None = None,
) -> Recipe:
    """Make the recipe of a compilation without one: one model, quantized for the device and as it is for the cloud.

    Args:
        output: the output that is scored, where the model has several.
        layout: of boxes, for a detector.
        source: how the model is exported.

    Raises:
        ConfigError: as :func:`load`.
    """
    scored = {"output": output} if output else {}
    decoding = {"decoding": {"layout": layout}} if layout else {}
    tree: dict[str, Any] = {
        "model": {"name": _name_of(model), **({} if task is None else {"task": task}), **scored, **decoding},
        "edge": {"model": model, "targets": (target,), "precisions": precisions, "source": source or SourceSection()},
        "data": data,
        "certificate": {
            "harm": "labels" if data.labels else "disagreement",
            **({} if max_harm is None else {"max_harm": max_harm}),
        },
    }
    return _checked(config.convert(tree, RecipeFile, where="command line: "), base, "command line")


def _name_of(model: str) -> str:
    """Make a model name from a path or ``module:factory``: what is left of its last part after odd characters."""
    place, colon, _ = model.partition(":")
    stem = place.rpartition(".")[2] if colon and not place.endswith(".py") else Path(place).stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "model"


def _checked(parsed: RecipeFile, base: Path, where: str) -> Recipe:
    try:
        manifests.check_model_name(parsed.model.name)
        manifests.check_tag(parsed.model.version)
    except ArtifactError as error:
        raise ConfigError(f"{where}: model: {error.message}") from error
    rungs = (Rung(role=EDGE, section=parsed.edge), *(Rung(role=m.name, section=m) for m in parsed.middle))
    roles = [rung.role for rung in rungs]
    if len(set(roles)) != len(roles) or CLOUD in roles:
        raise ConfigError(f"{where}: middle.name: {', '.join(roles[1:])}: names differ, and are not edge or cloud")
    for rung in rungs:
        _check_rung(rung, where)
    _check_ranges(parsed, where)
    if parsed.cloud is not None:
        source_section.check(parsed.cloud.source, field=f"{where}: cloud.source")
    certificate_section.check(parsed.certificate, where=f"{where}: ")
    if parsed.model.task != "generation":  # whose examples are prompts
        try:
            data_section.check(parsed.data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}") from error
    if any(rung.section.distill for rung in rungs) and (parsed.distill is None or parsed.cloud is None):
        raise ConfigError(f"{where}: edge.distill: a student needs a table [distill] and a teacher in [cloud]")
    return Recipe(
        base=base,
        model=parsed.model,
        rungs=rungs,
        cloud=parsed.cloud,
        data=parsed.data,
        quality=parsed.quality,
        certificate=parsed.certificate,
        distill=parsed.distill,
        generation=parsed.generation,
        preprocessing=parsed.preprocessing,
        seed=parsed.seed,
    )


def _check_rung(rung: Rung, where: str) -> None:
    section, key = rung.section, f"{where}: {rung.role}"
    try:
        manifests.check_model_name(rung.role)
        resolved = [targets.resolve(name).name for name in section.targets]
    except (ArtifactError, ConfigError) as error:
        raise ConfigError(f"{key}: {error.message}") from error
    if not 1 <= len(resolved) <= MAX_TARGETS or len(set(resolved)) != len(resolved):
        raise ConfigError(f"{key}.targets: {list(section.targets)}: expected 1 to {MAX_TARGETS} different targets")
    source_section.check(section.source, field=f"{key}.source")
    if section.prune is not None and not 0 < section.prune.share < 1:
        raise ConfigError(f"{key}.prune.share: {section.prune.share} given, expected a share between 0 and 1")


def _is_decodable(settings: DecodingSettings) -> bool:
    shares = (settings.threshold, settings.suppress, settings.overlap, settings.similarity)
    return all(0 <= share <= 1 for share in shares) and 0 <= settings.within < float("inf")


def _check_ranges(parsed: RecipeFile, where: str) -> None:
    model, quality = parsed.model, parsed.quality
    low, high = model.input_range or (0.0, 1.0)
    in_range = {
        "model.input_range": (low < high, f"[{low:g}, {high:g}]", "the smallest value before the largest"),
        "model.max_batch": (1 <= model.max_batch <= 4096, model.max_batch, "1 to 4096"),
        "model.shapes": (
            shapes_section.is_good(model.shapes),
            dict(model.shapes),
            "sizes of 1 or more, shapes of them where -1 stays open, or two or more buckets that differ (at most "
            f"{shapes_section.MAX_COMBINATIONS} combinations)",
        ),
        "quality.max_accuracy_drop": (
            0 <= quality.max_accuracy_drop <= 1,
            quality.max_accuracy_drop,
            "a share between 0 and 1 (0.02 is two points)",
        ),
        "quality.delta": (0 < quality.delta <= 0.5, quality.delta, "a chance above 0 and at most 0.5"),
        "quality.max_perplexity_increase": (
            0 <= quality.max_perplexity_increase <= 10,
            quality.max_perplexity_increase,
            "a share from 0 to 10 (0.1 is a tenth more)",
        ),
        "model.max_run_s": (0 < model.max_run_s <= 86400, model.max_run_s, "seconds above 0, and at most a day"),
        "model.max_run_bytes": (model.max_run_bytes >= 0, model.max_run_bytes, "bytes, or 0 for what is free"),
        "model.correct_at": (0 <= model.correct_at <= 1, model.correct_at, "0 to 1"),
        "model.decoding": (_is_decodable(model.decoding), model.decoding, "shares from 0 to 1, and within 0 or more"),
        "seed": (0 <= parsed.seed < 2**32, parsed.seed, "0 to 4294967295"),
        "data.tokenizer": (
            bool(parsed.data.text) or not parsed.data.tokenizer.file or model.task in ("seq2seq", "generation"),
            f"file {parsed.data.tokenizer.file!r} and no data.text",
            'a column of text, or labels that are text (task "seq2seq")',
        ),
        "data.labels": (
            bool(parsed.data.labels)
            or parsed.certificate.harm == "disagreement"
            or model.task == "generation"
            or not model.has_cascade,
            "none",
            'the name of label arrays, because certificate.harm = "labels" (or set that to "disagreement")',
        ),
    }
    for name, (is_good, value, expected) in in_range.items():
        if not is_good:
            raise ConfigError(f"{where}: {name}: {value} given, expected {expected}")
