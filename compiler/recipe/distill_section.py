"""The recipe's table [distill]: which student learns from which teacher, and how.

Decides names, defaults and ranges; touches no disk. What the words do is in ``compiler/runners/distill*.py``, which
train in a toolchain, and in ``compiler.distill.student``, which prepares and judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from penstock.errors import ConfigError
from penstock.process.config import nearest

Defer = Literal["none", "labels", "gatekeeper"]
QuantizationAware = Literal["never", "needed", "always"]
LAYERS = "layers:"
LATER = ("quantization_aware", "quantization_epochs")
"""What becomes of a student when it is there: it is the same student, whatever they say."""

DEFAULT_ALPHA = 0.3
MAX_EPOCHS, MAX_ROWS_A_STEP, MAX_KEEP_EVERY, MAX_THREADS = 10_000, 65_536, 64, 1024


class DistillSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a student for the device is trained from a teacher.

    Attributes:
        student: "" for the model of the recipe's rung that says ``distill = true``. ``module:factory`` or
            ``file.py:factory`` (returns a torch module), a Hugging Face config (its directory or ``config.json``), or
            ``layers:K``: the teacher with every K-th of its layers.
        teacher: "" for the recipe's cloud model; an ONNX file, a Hugging Face directory, a torch factory, or a model of
            a running core, ``grpc://host:port/model`` or ``grpc://host:port/model:version`` (or ``http://``).
        split: the split that trains; "" for the part of ``fit`` that gives integer ranges.
        epochs: passes over the rows, at most.
        batch_size: rows in a step.
        lr: highest learning rate; 0 for 0.003 with a factory, 0.0003 with a config, 0.00005 with layers of a teacher.
        temperature: softens both models' answers.
        alpha: weight of the labels, the rest is the teacher's; -1 for 0.3 where there are labels and 0 where there are
            none.
        defer: how training ends, so that confidence tells right from wrong: "none", on "labels" alone, or
            "gatekeeper", which also makes the student unsure where it is wrong. Undone where it does not help.
        defer_weight: for "gatekeeper", the weight of being sure where it is right; the rest is being unsure.
        quantization_aware: whether the student is fine-tuned with the rounding of static int8 in the loop, as one more
            candidate beside ``int8``: "never"; where no ``int8`` is shown to keep the quality budget ("needed"); or
            "always".
        quantization_epochs: passes over the rows for that; patience does not end them.
        patience: epochs without a better validation loss before training stops; 0 never stops early.
        validation: share of the rows that judges and does not train.
        seed: of weights, order and dropout.
        threads: part of the result, too; 0 for one, or for all processors where the student has a million parameters
            or more.
        max_seconds: training stops after so long, and the best student so far is taken.
        checkpoint_s: seconds between checkpoints; 0 for one after every step.
    """

    student: str = ""
    teacher: str = ""
    split: str = ""
    epochs: int = 60
    batch_size: int = 64
    lr: float = 0.0
    temperature: float = 2.0
    alpha: float = -1.0
    defer: Defer = "none"
    defer_weight: float = 0.5
    quantization_aware: QuantizationAware = "never"
    quantization_epochs: int = 30
    patience: int = 10
    validation: float = 0.15
    seed: int = 0
    threads: int = 0
    max_seconds: float = 86400.0
    checkpoint_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A function that makes a torch module; of ``module`` and ``file`` one is given."""

    named: str
    function: str
    module: str = ""
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A Hugging Face architecture with fresh weights: a ``config.json``."""

    file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The teacher with every ``keep_every``-th of its layers, weights copied."""

    keep_every: int


StudentKind = Factory | Config | Layers

_LEARNING_RATES = {Factory: 3e-3, Config: 3e-4, Layers: 5e-5}


def student_of(section: DistillSection, base: Path) -> StudentKind:
    """Find what ``section.student`` names; paths are relative to ``base``.

    Raises:
        ConfigError: none of the forms, or a file that is not there.
    """
    text = section.student
    if text.startswith(LAYERS):
        number = text.removeprefix(LAYERS)
        if not (number.isascii() and number.isdigit() and 2 <= int(number) <= MAX_KEEP_EVERY):
            raise ConfigError(
                f"distill.student: {text!r}: expected layers:K with K from 2 to {MAX_KEEP_EVERY}; layers:2 keeps every "
                "second layer of the teacher"
            )
        return Layers(keep_every=int(number))
    found = factory_of(text, base, field="distill.student")
    if found is not None:
        return found
    path = base / text
    file = path / "config.json" if path.is_dir() else path
    if file.suffix == ".json" and file.is_file():
        return Config(file=file)
    raise ConfigError(
        f"distill.student: {text!r}: expected module:factory, file.py:factory, a Hugging Face directory with "
        "config.json (or the config.json itself), or layers:K"
        + (f"; there is no {file}" if file.suffix == ".json" else "")
    )


def factory_of(text: str, base: Path, *, field: str) -> Factory | None:
    """Read ``module:factory`` or ``file.py:factory``; None for anything else.

    Raises:
        ConfigError: a Python file that is not there, or one without a function named.
    """
    where, colon, function = text.rpartition(":")
    if text.endswith(".py"):
        raise ConfigError(f"{field}: {text!r}: say which function makes the model, {text}:make")
    if not colon or not function.isidentifier():
        return None
    if where.endswith(".py"):
        file = base / where
        if not file.is_file():
            raise ConfigError(f"{field}: {file}: no such file")
        return Factory(named=text, function=function, file=file)
    is_module = bool(where) and all(part.isidentifier() for part in where.split("."))
    return Factory(named=text, function=function, module=where) if is_module else None


def learning_rate(section: DistillSection, student: StudentKind) -> float:
    """Return the recipe's rate, or the usual one for that kind of student: new weights can take more than trained
    ones."""
    return section.lr or _LEARNING_RATES[type(student)]


def label_weight(section: DistillSection, *, has_labels: bool) -> float:
    """Return ``alpha`` as it will be used.

    Raises:
        ConfigError: labels are to count and there are none.
    """
    if section.alpha >= 0:
        if section.alpha > 0 and not has_labels:
            raise ConfigError(
                f"distill.alpha: {section.alpha:g} given, but the training data have no labels; set alpha = 0 to learn "
                "from the teacher alone, or give labels (data.labels)"
            )
        return section.alpha
    return DEFAULT_ALPHA if has_labels else 0.0


def settled(table: object, *, student: str = "", flags: Mapping[str, Any] | None = None) -> DistillSection:
    """Return the table as it will be used: the recipe's, completed and then changed by flags; checked.

    Args:
        table: a ``DistillSection``, a mapping, or None for the defaults.
        student: taken where the table names none.
        flags: by name; None means "not given".

    Raises:
        ConfigError: an unknown name, a wrong type or a value out of range.
    """
    tree = {} if table is None else dict(msgspec.to_builtins(table))
    known = DistillSection.__struct_fields__
    for name in tree:
        if name not in known:
            raise ConfigError(f"distill: unknown setting {name!r}; {nearest(name, known)}")
    tree["student"] = tree.get("student") or student
    tree |= {name: value for name, value in (flags or {}).items() if value is not None}
    if "defer" in tree and tree["defer"] not in (words := get_args(Defer)):
        raise ConfigError(f"distill.defer: {tree['defer']!r}: expected one of {', '.join(words)}")
    wanted = tree.get("quantization_aware", "never")
    if wanted not in (words := get_args(QuantizationAware)):
        raise ConfigError(f"distill.quantization_aware: {wanted!r}: expected one of {', '.join(words)}")
    try:
        section = msgspec.convert(tree, DistillSection)
    except msgspec.ValidationError as error:
        raise ConfigError(f"distill: {error}") from error
    check(section)
    return section


def check(section: DistillSection, *, where: str = "") -> None:
    """Check the values of the table.

    Args:
        where: put in front of messages, such as ``recipe.toml: ``.

    Raises:
        ConfigError: which one is out of range, and what was expected.
    """
    alpha = section.alpha
    in_range = {
        "student": (bool(section.student), repr(section.student), "a factory, a config, or layers:K"),
        "epochs": (1 <= section.epochs <= MAX_EPOCHS, section.epochs, f"1 to {MAX_EPOCHS}"),
        "batch_size": (1 <= section.batch_size <= MAX_ROWS_A_STEP, section.batch_size, f"1 to {MAX_ROWS_A_STEP}"),
        "lr": (0 <= section.lr <= 10, section.lr, "a rate up to 10, or 0 for the usual one"),
        "temperature": (0.1 <= section.temperature <= 100, section.temperature, "0.1 to 100"),
        "alpha": (0 <= alpha <= 1 or alpha == -1, alpha, "a weight from 0 to 1, or -1 for the usual one"),
        "defer_weight": (0 < section.defer_weight < 1, section.defer_weight, "a weight between 0 and 1"),
        "quantization_epochs": (
            1 <= section.quantization_epochs <= MAX_EPOCHS,
            section.quantization_epochs,
            f"1 to {MAX_EPOCHS}",
        ),
        "patience": (0 <= section.patience <= MAX_EPOCHS, section.patience, f"0 (never) to {MAX_EPOCHS}"),
        "validation": (0 < section.validation <= 0.5, section.validation, "a share above 0 and at most 0.5"),
        "seed": (0 <= section.seed < 2**31, section.seed, "0 to 2147483647"),
        "threads": (0 <= section.threads <= MAX_THREADS, section.threads, f"0 (all) to {MAX_THREADS}"),
        "max_seconds": (1 <= section.max_seconds <= 30 * 86400, section.max_seconds, "1 to 2592000 (30 days)"),
        "checkpoint_s": (0 <= section.checkpoint_s <= 86400, section.checkpoint_s, "0 to 86400"),
    }
    for name, (is_good, value, expected) in in_range.items():
        if not is_good:  # NaN compares false with everything, and so is refused too
            raise ConfigError(f"{where}distill.{name}: {value} given, expected {expected}")
