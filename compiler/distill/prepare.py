"""From a recipe, or from a command line without one, to a distillation that can be run: its teacher and its rows.

Composes: names become teachers, tables become splits. Decides only where rows come from; see ``compiler.distill.rows``
for what may be learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compiler import sources
from compiler.cache.steps import default_root
from compiler.data import loading, npz, untrusted
from compiler.data.dataset import Dataset, Split
from compiler.distill.cache import AnswerCache
from compiler.distill.student import Request
from compiler.distill.teacher import CoreTeacher, LocalTeacher, Teacher, ToolchainTeacher, local_teacher
from compiler.distill.toolchain_models import Directory, ToolchainModel
from compiler.progress import Progress
from compiler.recipe import recipes
from compiler.recipe.data_section import LimitsSection
from compiler.recipe.distill_section import DistillSection, factory_of, settled
from compiler.recipe.recipes import Recipe
from compiler.sources import SourceSection
from penstock.errors import ConfigError, InvalidInput
from penstock.policy.confidence import Kind
from penstock.process.config import nearest
from penstock.sdk.client import Client
from penstock.wire import tensors
from penstock.wire.addresses import parse_target
from penstock.wire.tensors import Array, TensorSpec

HELD_OUT = ("tune", "certify", "test")
TRAINING = ("train", "fit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A distillation without a recipe.

    Attributes:
        data: an npz file; see :func:`arrays`.
        labels: name of its labels, "" for none.
        output: the teacher's output, as in a recipe's [model].
        output_kind: what that output holds, likewise.
    """

    teacher: str
    data: Path
    labels: str | None
    output: str
    output_kind: Kind
    section: DistillSection


@contextmanager
def from_recipe(
    file: Path, flags: Mapping[str, Any], *, out: Path, work: Path, token: str, progress: Progress
) -> Iterator[Request]:
    """Read what a recipe's tables [distill], [cloud], [data] and [model] say, changed by flags.

    Raises:
        ConfigError, InvalidInput: what is wrong with the recipe, the models or the data. Unavailable: no core there.
    """
    recipe = recipes.load(file)
    student = next((rung.section.model for rung in recipe.rungs if rung.section.distill), "")
    section = settled(recipe.distill, student=student, flags=flags)
    if recipe.model.task != "classification":
        raise ConfigError(f"{file}: model.task: a student is made of a classifier, and this is {recipe.model.task}")
    named = section.teacher or (recipe.cloud.model if recipe.cloud else "")
    if not named:
        raise ConfigError(f"{file}: name the teacher: [cloud] model, or distill.teacher")
    with opened(recipe, section, work=work, token=token, progress=progress) as teacher:
        classes = teacher.output.shape[1]
        found = with_split(recipe, section.split, teacher.inputs, classes=None if classes == -1 else classes)
        yield Request(
            section=section,
            base=file.parent,
            teacher=teacher,
            teacher_name=named,
            teacher_model=framework_model(named, file.parent),
            output_kind=recipe.model.kind,
            train=found.ranges,
            held_out=held_out(found),
            cache=AnswerCache(answers_root()),
            work=work,
            out=out,
            progress=progress,
        )


def held_out(data: Dataset) -> tuple[Split, ...]:
    """Return the splits whose rows train nothing; none where rows repeat by nature: each is then a draw by itself, and
    one that happens to equal a certifying one says nothing of it that service does not say too."""
    return () if data.repeats.taken_for == "natural" else (data.tune, data.certify, data.test)


@contextmanager
def opened(recipe: Recipe, section: DistillSection, *, work: Path, token: str, progress: Progress) -> Iterator[Teacher]:
    """Open the teacher that [distill] names, or else the recipe's cloud model, exported where it is no ONNX file.

    Raises:
        InvalidInput, CompileError, MissingToolchain: it cannot be had. Unavailable: no core there.
    """
    cloud = recipe.cloud
    named = section.teacher or (cloud.model if cloud else "")
    settings = cloud.source if cloud and not section.teacher else SourceSection()
    with _asked(named, recipe.model.output, token) as core:
        yield core or _exported(named, settings, recipe, work, progress)


@contextmanager
def from_flags(plain: Plain, *, out: Path, work: Path, token: str, progress: Progress) -> Iterator[Request]:
    """Prepare from a teacher, a student and one npz file; paths are relative to the current directory.

    Raises:
        As :func:`from_recipe`.
    """
    base = Path.cwd()
    model = framework_model(plain.teacher, base)
    found = arrays(plain.data, plain.section.split, labels=plain.labels)
    with _asked(plain.teacher, plain.output, token) as core:
        if core is not None:
            teacher: Teacher = core
        elif model is not None:
            specs = [_spec_of(name, array) for name, array in found.inputs.items()]
            teacher = ToolchainTeacher(model, specs, work=work / "asked", base=base)
        else:
            teacher = _local(sources.detect(plain.teacher, base), plain.output)
        train = _checked(found, teacher, plain.data.name)
        yield Request(
            section=plain.section,
            base=base,
            teacher=teacher,
            teacher_name=plain.teacher,
            teacher_model=model,
            output_kind=plain.output_kind,
            train=train,
            held_out=found.held_out,
            cache=AnswerCache(answers_root()),
            work=work,
            out=out,
            progress=progress,
        )


def with_split(recipe: Recipe, split: str, inputs: tuple[TensorSpec, ...], *, classes: int | None) -> Dataset:
    """Return the recipe's examples with what may train as ``ranges``; the others are held out. See
    ``compiler.distill.rows``.

    A split of its own is read in the place of ``fit``, and ``fit`` in the place of ``tune``: the checks that keep a
    promise's rows apart then keep those of training apart from them too.

    Args:
        split: "" for the part of ``fit`` that gives integer ranges.
        classes: how many the teacher has, where that is known.

    Raises:
        ConfigError: a split that is for something else. InvalidInput: from :func:`compiler.data.loading.load`.
    """
    section = recipe.data
    own = bool(split) and split != section.splits.fit
    if own:
        if split in (section.splits.tune, section.splits.certify, section.splits.test):
            raise ConfigError(
                f"distill.split: {split!r} is for something else; rows that choose, certify or test never train"
            )
        names = msgspec.structs.replace(section.splits, fit=split, tune=section.splits.tune or section.splits.fit)
        section = msgspec.structs.replace(section, splits=names)
    loaded = loading.load(
        section,
        recipe.base,
        inputs,
        classes=classes,
        input_range=recipe.model.input_range,
        labels=recipe.model.labels,
    )
    if own and loaded.ranges.name != split:
        raise ConfigError(
            f"distill.split: {section.source} has no splits of its own, and so none called {split!r}; leave "
            "distill.split out to train on the share of fit (data.shares.fit)"
        )
    return loaded


def answers_root() -> Path:
    """Return where teachers' answers are kept."""
    return default_root() / "distill" / "answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Arrays of an npz file. ``split`` is "" when they are all for training; ``held_out`` as the file has them."""

    split: str
    inputs: Mapping[str, Array]
    labels: Array | None
    labels_name: str
    held_out: Sequence[Split]


def arrays(path: Path, split: str, *, labels: str | None) -> Found:
    """Read training arrays ``<input>_<split>`` of an npz file, or ``<input>`` where it has no splits.

    Args:
        split: "" takes ``train`` or ``fit`` or, without either, arrays without a suffix.
        labels: "" for none; None for ``y`` if it is there.

    Raises:
        InvalidInput: an unreadable file, or no such arrays.
    """
    held = npz.arrays_of(path, LimitsSection().max_bytes)
    if split in HELD_OUT:
        raise ConfigError(f"--split: {split!r} is for something else; rows that choose, certify or test never train")
    chosen = split or next((name for name in TRAINING if any(key.endswith(f"_{name}") for key in held)), "")
    mine = _with_suffix(held, chosen)
    name = "y" if labels is None else labels
    if labels and name not in mine:
        raise InvalidInput(f"{path}: no labels {_key(name, chosen)!r}; {nearest(name, mine)}", field=name)
    inputs = {key: array for key, array in mine.items() if key != name}
    if not inputs:
        raise InvalidInput(
            f"{path}: no arrays {_key('<input>', chosen)!r} to learn from; it has {', '.join(held) or 'none'}",
            field="data",
        )
    others = []
    for use in HELD_OUT:
        other = _with_suffix(held, use)
        if all(key in other for key in inputs):
            others.append(Split(name=use, inputs={key: other[key] for key in inputs}, labels=None))
    return Found(split=chosen, inputs=inputs, labels=mine.get(name), labels_name=name, held_out=others)


def _with_suffix(held: Mapping[str, Array], split: str) -> dict[str, Array]:
    if not split:
        known = tuple(f"_{name}" for name in (*TRAINING, *HELD_OUT))
        return {key: array for key, array in held.items() if not key.endswith(known)}
    return {key.removesuffix(f"_{split}"): array for key, array in held.items() if key.endswith(f"_{split}")}


def _key(name: str, split: str) -> str:
    return f"{name}_{split}" if split else name


def _checked(found: Found, teacher: Teacher, file: str) -> Split:
    """Return the rows that the teacher takes, checked as a recipe's are."""
    inputs, rows = {}, 0
    for spec in teacher.inputs:
        key = f"{file}:{_key(spec.name, found.split)}"
        if spec.name not in found.inputs:
            raise InvalidInput(f"{key}: not there; {nearest(spec.name, found.inputs)}", field=spec.name)
        untrusted.check_input(found.inputs[spec.name], spec, None, field=key)
        inputs[spec.name] = found.inputs[spec.name]
        rows = len(inputs[spec.name])
    labels = None
    if found.labels is not None:
        classes = teacher.output.shape[1]
        labels = untrusted.class_labels(
            found.labels,
            rows,
            classes=None if classes == -1 else classes,
            names=(),
            field=f"{file}:{_key(found.labels_name, found.split)}",
        )
    return Split(name=found.split or "all rows", inputs=inputs, labels=labels)


@contextmanager
def _asked(named: str, output: str, token: str) -> Iterator[CoreTeacher | None]:
    """Return the model of a running core, if the name is one's address: ``grpc://host:port/model:version``."""
    scheme, found, rest = named.partition("://")
    if not found:
        yield None
        return
    address, slash, model = rest.partition("/")
    if scheme not in ("grpc", "grpcs", "http", "https") or not slash or not model:
        raise ConfigError(
            f"teacher: {named!r}: expected grpc://host:port/model, http://host:port/model (grpcs:// and https:// over "
            "TLS), or one of these with :version"
        )
    name, _, version = model.partition(":")
    target = parse_target(f"{scheme}://{address}")
    with Client(str(target), token=token or None, retries=CoreTeacher.tries) as client:
        yield CoreTeacher(client, name, version=version, output=output)


def framework_model(named: str, base: Path) -> ToolchainModel | None:
    """Return a torch factory or a Hugging Face directory: what ``layers:K`` takes from; None for any other name."""
    path = base / named
    if path.is_dir():
        has_weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
        return Directory(path=path) if (path / "config.json").is_file() and has_weights else None
    return None if "://" in named else factory_of(named, base, field="teacher")


def _exported(named: str, settings: SourceSection, recipe: Recipe, work: Path, progress: Progress) -> LocalTeacher:
    """Export the recipe's cloud model to ONNX, however it comes."""
    source = sources.detect(named, recipe.base, settings)
    if source.kind == "onnx":
        return _local(source, recipe.model.output)
    out = work / "exported-teacher"
    out.mkdir(parents=True, exist_ok=True)
    made = sources.export(source, settings, out, progress=progress, seed=recipe.seed)
    return local_teacher(made.model, content=sources.fingerprint(source, settings), output=recipe.model.output)


def _local(source: sources.Source, output: str) -> LocalTeacher:
    if source.kind != "onnx":
        raise ConfigError(
            f"teacher: {source.location.name} is {source.what}; expected an ONNX file, a Hugging Face directory, a "
            "torch factory or grpc://host:port/model. A recipe's [cloud] takes more"
        )
    return local_teacher(source.location, content=sources.fingerprint(source), output=output)


def _spec_of(name: str, array: Array) -> TensorSpec:
    shape = (-1, *array.shape[1:]) if array.ndim else ()
    return TensorSpec(name=name, datatype=tensors.datatype_of(np.asarray(array), field=name), shape=shape)
