"""New examples for an artifact that is already packed: found, read, and divided into what tunes and what certifies.

Decides which rows may certify: all of a source without splits of its own, unless a choice is made on some of them. How
sources are read and rows dealt is ``compiler.data``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from compiler.data import DataSection, Dataset, Split, calls, infer, loading, table, text
from compiler.data.dataset import Repeats
from compiler.data.parts import Request, silent
from compiler.measure.quality import Judge
from compiler.recipe.data_section import SharesSection, kind_of
from penstock.artifact import tensor_names
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ConfigError, InvalidInput
from penstock.policy.decoding import joined

_MAX_TOML_BYTES = 1024**2
_TUNE_SHARE = 1 / 3
_FEW = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSource:
    """Say where new examples are.

    Attributes:
        data: what ``data.source`` of a recipe may be, or a TOML file with a table ``[data]``.
        labels: name of an array or column; None takes what the table says, or guesses.
        group_by: the same for the groups; None takes what the table says.
        cluster_by: the same for what examples belong to.
        repeats: "natural" or "copies"; None takes what the table says.
    """

    data: str
    labels: str | None = None
    group_by: str | None = None
    cluster_by: str | None = None
    repeats: Literal["natural", "copies"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """New examples, divided.

    Attributes:
        tune: what choices are made on; shares no row with ``certify`` where there are any to make.
        certify: what is looked at once.
        repeats: what was found of rows that repeat or belong together.
        group_by: what groups are called; "" without groups.
    """

    tune: Split
    certify: Split
    repeats: Repeats
    group_by: str


def read(source: ExampleSource, spec: VariantSpec, judge: Judge, *, needs_labels: bool, tunes: bool) -> Examples:
    """Read new examples for variants with the inputs and outputs of ``spec``.

    Args:
        judge: of the answers; it says what labels look like.
        tunes: whether a score is chosen, so that a third of the rows (or their split) is not certified on.

    Raises:
        ConfigError, InvalidInput: settings or examples are wrong. MissingExtra: a library to read them.
    """
    section, base = _section(source, spec)
    if not needs_labels and source.labels is None:
        section = msgspec.structs.replace(section, labels="")
    if needs_labels and not section.labels:
        raise InvalidInput(
            f"{source.data}: harm is counted by labels and there are none; name them with --labels, or use --harm "
            "disagreement",
            field="labels",
        )
    is_whole = not loading.has_splits(section, base, calls.as_rows(spec.inputs))
    if is_whole:
        # which row goes where is the data's business (equal rows together); the parts are put together again below
        shares = SharesSection(fit=_FEW, tune=_TUNE_SHARE - _FEW, certify=1 - _TUNE_SHARE - _FEW, test=_FEW)
        section = msgspec.structs.replace(section, shares=shares)
    (output,) = (out for out in spec.outputs if out.name == spec.score_output)
    classes = max(2, output.shape[1]) if len(output.shape) == 2 and output.shape[1] > 0 else None
    inputs = calls.as_rows(spec.inputs)
    dataset = loading.load(section, base, inputs, classes=classes, labels_as=judge.label_form, labels=spec.labels)
    if judge.takes_tokens:
        dataset = dataset.with_labels(lambda labels: text.label_tokens(labels, section, base))
    dataset = dataset.with_labels(judge.references)
    tune, certify = _divided(dataset, is_whole=is_whole, tunes=tunes)
    return Examples(tune=tune, certify=certify, repeats=dataset.repeats, group_by=section.group_by)


def _divided(dataset: Dataset, *, is_whole: bool, tunes: bool) -> tuple[Split, Split]:
    if not is_whole:
        return dataset.tune, dataset.certify
    tune = _joined([dataset.ranges, dataset.tune], name="tune")
    certifying = [dataset.certify, dataset.test]
    if not tunes:
        certifying += [dataset.ranges, dataset.tune]
    return tune, _joined(certifying, name="certify")


def _joined(splits: Sequence[Split], *, name: str) -> Split:
    first = splits[0]
    return Split(
        name=name,
        inputs={key: np.concatenate([split.inputs[key] for split in splits]) for key in first.inputs},
        labels=None if first.labels is None else joined([split.labels for split in splits if split.labels is not None]),
        groups=None if first.groups is None else np.concatenate([split.groups for split in splits]),
        clusters=None if first.clusters is None else np.concatenate([split.clusters for split in splits]),
        copies=None if first.copies is None else np.concatenate([split.copies for split in splits]),
    )


def _section(source: ExampleSource, spec: VariantSpec) -> tuple[DataSection, Path]:
    """Return the settings of the new examples, and what relative paths in them are relative to.

    Columns of a table are those that the model was made with, by their names: new files may have another order.
    """
    given, columns = Path(source.data), tensor_names.columns_of(spec)
    if given.suffix == ".toml":
        section, base = _from_toml(given), given.parent
        if columns and kind_of(section.source) in ("csv", "parquet"):
            request = Request(
                section=section, base=base, inputs=calls.as_rows(spec.inputs), wants_labels=False, progress=silent
            )
            section = msgspec.structs.replace(section, columns=table.matched(request, columns))
    else:
        section, base = infer(source.data, calls.as_rows(spec.inputs), columns=columns), Path()
    asked = {
        "labels": source.labels,
        "group_by": source.group_by,
        "cluster_by": source.cluster_by,
        "repeats": source.repeats,
    }
    return msgspec.structs.replace(section, **{name: value for name, value in asked.items() if value is not None}), base


def _from_toml(path: Path) -> DataSection:
    try:
        with path.open("rb") as file:
            tables = msgspec.toml.decode(file.read(_MAX_TOML_BYTES))
        return msgspec.convert(tables["data"], DataSection)
    except KeyError:
        raise ConfigError(f"{path}: no table [data]; expected one as in a recipe") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: [data]: {error}") from error
