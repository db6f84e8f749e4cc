"""The inputs of a fitted scikit-learn estimator: one matrix of numbers, or columns of text and numbers by name.

Decides what an estimator takes: the recipe says it, or the factory's examples show it, or the estimator tells: one that
begins with one encoder of categories or texts, or one that was fitted with named columns and looks for some of them by
name, which takes an input for each. In their order, inputs are the estimator's columns. Also makes the examples that an
export is compared with. Knows estimators by their attributes; exporting is ``compiler.sources.estimators``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.graph.vocabulary import Words
from compiler.recipe.source_section import InputSection
from penstock.errors import ConfigError
from penstock.wire.tensors import Array, bytes_elements

INPUT = "x"
TEXT, NUMBERS = "BYTES", "FP32"

_ROWS = (64, 65)  # of the examples: the second proves that the batch is free
_SCALES = np.array([1.0, 10.0, 100.0, 1000.0], dtype=np.float32)
"""What is typical of the features is not known, so examples cover four decades."""
_UNKNOWN = ("penstock", "")
_PARTS = (
    "steps",
    "transformers_",
    "transformer_list",
    "estimators_",
    "best_estimator_",
    "calibrated_classifiers_",
    "estimator",
)
_ADVICE = (
    'say which columns are text: [edge.source.inputs.NAME] shape = [-1, COLUMNS], datatype = "BYTES" or "FP32" for '
    "each input in the order of the columns, or let the factory return (estimator, {name: examples})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Some columns that travel as one tensor [N, columns].

    Attributes:
        low: least value of examples that are made up.
        high: their largest value.
        values: the only ones that examples may have, where an encoder knows no others; () for any.
    """

    name: str
    datatype: str
    columns: int
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()


def inputs_of(estimator: Any, given: Any, sections: Mapping[str, InputSection], *, features: int) -> tuple[Input, ...]:
    """Return the inputs in the order of the estimator's columns.

    Args:
        given: examples by input name, or one array; None for none.
        sections: the recipe's table ``source.inputs``.
        features: columns that the estimator was fitted with; 1 for one that takes texts.

    Raises:
        ConfigError: inputs that are not its columns, text in columns that nobody names, or categories that are numbers
            which FP32 does not hold.
    """
    _check_categories(estimator)
    if sections:
        _check_names(given, list(sections))
        found = tuple(_described(name, section) for name, section in sections.items())
    elif isinstance(given, Mapping):
        found = tuple(_shown(name, array) for name, array in given.items())
    elif given is not None:
        found = (_shown(INPUT, given),)
    elif text_columns := _own_text_columns(estimator):
        found = (Input(name=INPUT, datatype=TEXT, columns=text_columns),)
    elif named := _named_columns(estimator):
        found = named
    elif any(_is_text_encoder(part) for part in parts(estimator)):
        raise ConfigError(f"model: {type(estimator).__name__} takes text in some of its columns; {_ADVICE}")
    else:
        found = (Input(name=INPUT, datatype=NUMBERS, columns=features),)
    columns = sum(one.columns for one in found)
    if columns != features:
        whose = "source.inputs" if sections else "the factory's examples"
        shown = ", ".join(f"{one.name} [rows, {one.columns}]" for one in found)
        raise ConfigError(
            f"model: {whose} have {columns} columns ({shown}), "
            f"expected {features}, in the order that {type(estimator).__name__} was fitted with"
        )
    return found


def columns_of(estimator: Any, inputs: tuple[Input, ...]) -> dict[str, list[str]]:
    """Return the columns of each input by the names that an estimator was fitted with; {} where it knows none, or
    where an input that is called like one of them stands in another place.
    """
    names = list(getattr(estimator, "feature_names_in_", ()))
    if not all(isinstance(name, str) for name in names) or len(names) != sum(one.columns for one in inputs):
        return {}
    found, start = {}, 0
    for one in inputs:
        found[one.name] = [str(name) for name in names[start : start + one.columns]]
        start += one.columns
    return {} if any(name in names and name not in columns for name, columns in found.items()) else found


def by_name(given: Any) -> Any:
    """Return examples as arrays by name where names matter: a mapping, or a data frame that holds text; else an array
    or None.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in given.items()}
        is_one_matrix = len(arrays) == 1 and not any(map(_is_text, arrays.values()))
        return next(iter(arrays.values())) if is_one_matrix else arrays
    if hasattr(given, "columns") and hasattr(given, "dtypes"):
        arrays = {str(name): np.asarray(given[name]) for name in given.columns}
        return arrays if any(map(_is_text, arrays.values())) else np.asarray(given)
    return np.asarray(given)


def takes_texts(estimator: Any) -> bool:
    """Say whether an estimator takes a list of texts and no matrix: one that begins with a fitted text vectorizer."""
    first = _first_step(estimator)
    while union := getattr(first, "transformer_list", None):
        first = _first_step(union[0][1])
    return hasattr(first, "vocabulary_") and hasattr(first, "token_pattern")


def parts(estimator: Any) -> Iterator[Any]:
    """Yield an estimator and everything that it is made of."""
    yield estimator
    for attribute in _PARTS:
        for item in np.ravel(np.array(getattr(estimator, attribute, ()), dtype=object)):
            if hasattr(item, "fit") or hasattr(item, "transform"):
                yield from parts(item)


def matrix(estimator: Any, inputs: Mapping[str, Array]) -> Any:
    """Put inputs together as the estimator takes them: texts [N], a matrix, or a data frame."""
    arrays = list(inputs.values())
    if takes_texts(estimator):
        return arrays[0][:, 0]
    is_mixed = any(array.dtype == object for array in arrays)
    joined = np.hstack([array.astype(object) if is_mixed else array for array in arrays])
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return joined
    try:
        import pandas as pd
    except ImportError:  # the estimator's own error says what it misses
        return joined
    return pd.DataFrame({name: joined[:, at] for at, name in enumerate(names)}).infer_objects()


def given_examples(given: Any, inputs: tuple[Input, ...]) -> list[dict[str, Array]]:
    """Return the factory's examples as two cases of different size.

    Raises:
        ConfigError, InvalidInput: they are not what the inputs take.
    """
    arrays = given if isinstance(given, Mapping) else {inputs[0].name: given}
    rows: dict[str, Array] = {}
    for one in inputs:
        array = np.asarray(arrays[one.name])
        if one.datatype == TEXT:
            words = [item.decode() for item in bytes_elements(array, field=f"model: examples of {one.name}")]
            rows[one.name] = np.array([*words, None], dtype=object)[:-1].reshape(-1, one.columns)
        else:
            rows[one.name] = _numbers(array, one.name).reshape(len(array), one.columns)
    count = len(next(iter(rows.values())))
    return [rows, {name: array[::-1][: max(1, count - 1)].copy() for name, array in rows.items()}]


def _numbers(array: Array, name: str) -> Array:
    try:
        return array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: the factory's examples of {name} are no numbers: {error}") from error


def made_examples(
    inputs: tuple[Input, ...], words: Mapping[str, Words], seed: int, *, has_unknown: bool
) -> list[dict[str, Array]]:
    """Make up two cases: numbers of several sizes, and text of the words that the exported graph knows.

    Args:
        has_unknown: whether some text is of unknown words, or empty.
    """
    source = np.random.default_rng(seed)
    return [
        {one.name: _made(one, words.get(one.name, Words()), rows, source, has_unknown) for one in inputs}
        for rows in _ROWS
    ]


def _made(one: Input, words: Words, rows: int, source: np.random.Generator, has_unknown: bool) -> Array:
    if one.datatype == TEXT:
        text = words.drawn((rows, one.columns), source)
        if words.is_prose:  # case is folded: in every language that the vocabulary has
            text[::2] = np.vectorize(str.title, otypes=[object])(text[::2])
        for row, unknown in enumerate(_UNKNOWN if has_unknown else ()):
            text[row] = unknown
        return text
    if one.values:
        return source.choice(np.array(one.values, np.float32), (rows, one.columns))
    if one.low is not None or one.high is not None:
        low = 0.0 if one.low is None else one.low
        high = low + 1 if one.high is None else one.high
        return source.uniform(low, high, (rows, one.columns)).astype(np.float32)
    scales = _SCALES[np.arange(rows) % len(_SCALES), None]
    return (source.standard_normal((rows, one.columns)) * scales).astype(np.float32)


def _check_names(given: Any, names: list[str]) -> None:
    shown = list(given) if isinstance(given, Mapping) else names[:1] if given is not None else names
    if set(shown) != set(names):
        raise ConfigError(
            f"model: the factory's examples are of {', '.join(shown)}, but source.inputs has {', '.join(names)}"
        )


def _described(name: str, section: InputSection) -> Input:
    if len(section.shape) != 2 or section.shape[1] < 1 or section.datatype not in (TEXT, NUMBERS):
        raise ConfigError(
            f"source.inputs.{name}: {section.datatype} {list(section.shape)} given; an estimator takes columns: "
            f'shape = [-1, COLUMNS] and datatype = "{TEXT}" or "{NUMBERS}"'
        )
    return Input(name=name, datatype=section.datatype, columns=section.shape[1], low=section.low, high=section.high)


def _shown(name: str, examples: Any) -> Input:
    array = np.asarray(examples)
    if array.ndim not in (1, 2) or not array.size:
        raise ConfigError(
            f"model: the factory's examples of {name} have shape {list(array.shape)}, expected [rows, columns]"
        )
    is_text = _is_text(array)
    if is_text and array.ndim == 2 and not all(_is_text(one) for one in array.T):
        raise ConfigError(f"model: the factory's examples of {name} mix columns of text and of numbers; {_ADVICE}")
    return Input(name=name, datatype=TEXT if is_text else NUMBERS, columns=1 if array.ndim == 1 else array.shape[1])


def _is_text(array: Array) -> bool:
    return array.dtype.kind in "US" or (
        array.dtype == object and any(isinstance(item, str | bytes) for item in array.ravel().tolist())
    )


def _own_text_columns(estimator: Any) -> int:
    """Count the columns of an estimator that takes nothing but text, as its first step shows; 0 for any other."""
    if takes_texts(estimator):
        return 1
    categories = getattr(_first_step(estimator), "categories_", ())
    return len(categories) if len(categories) and all(_is_text(np.asarray(one)) for one in categories) else 0


def _named_columns(estimator: Any) -> tuple[Input, ...]:
    """Return an input for each column that an estimator was fitted with by name, in order; () where it needs none.

    It needs them where its first step sends columns different ways, by their names: then each is of a kind of its own.
    """
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    first = _first_step(estimator)
    if not names or not getattr(first, "transformers_", None):
        return ()
    seen = _kinds(first, list(range(len(names))))
    return tuple(
        Input(
            name=name,
            datatype=TEXT if _is_text(np.asarray(seen.get(column, ()))) else NUMBERS,
            columns=1,
            values=_numbers_of(seen.get(column, ())),
        )
        for column, name in enumerate(names)
    )


def _first_step(estimator: Any) -> Any:
    """Return what sees an estimator's columns first, through what only wraps it: a search, or a calibration."""
    while True:
        if steps := getattr(estimator, "steps", None):
            estimator = steps[0][1]
        elif best := getattr(estimator, "best_estimator_", None):
            estimator = best
        elif calibrated := getattr(estimator, "calibrated_classifiers_", None):
            estimator = calibrated[0].estimator
        else:
            return estimator


def _kinds(part: Any, columns: Sequence[int]) -> dict[int, Any]:
    """Return values that a fitted part knows of some of its columns: its categories, or what it fills gaps with."""
    if hasattr(part, "transformers_"):
        indices = part._transformer_to_input_indices  # the columns by place, however they were chosen
        seen: dict[int, Any] = {}
        for name, inner, _ in part.transformers_:
            seen |= _kinds(inner, [columns[at] for at in indices.get(name, ())])
        return seen
    for step in _steps(part):
        if hasattr(step, "vocabulary_"):
            return dict.fromkeys(columns, ("",))
        known = getattr(step, "categories_", None)
        if known is None:
            fills = np.asarray(getattr(step, "statistics_", ()))
            known = [(fill,) for fill in fills.tolist()] if _is_text(fills) else None
        if known is not None and len(known) == len(columns):
            return dict(zip(columns, known, strict=True))
    return {}


def _steps(part: Any) -> Iterator[Any]:
    """Yield what a column meets one after the other, up to what may turn it into something else."""
    for _, step in getattr(part, "steps", ()) or (("", part),):
        if getattr(step, "steps", None):
            yield from _steps(step)
        else:
            yield step


def without_text_imputers(estimator: Any) -> Any:
    """Return a copy of an estimator without the imputers of its text columns; itself where it has none.

    A tensor of text has no missing values, so they change nothing; ONNX has no word for what they look for.
    """
    if not any(_is_text_imputer(part) for part in parts(estimator)):
        return estimator
    copied = deepcopy(estimator)
    for part in parts(copied):
        if steps := getattr(part, "steps", None):
            left = [(name, step) for name, step in steps if not _is_text_imputer(step)]
            part.steps = left or [(steps[0][0], "passthrough")]
        if hasattr(part, "transformers_"):
            part.transformers_ = [
                (name, "passthrough" if _is_text_imputer(inner) else inner, columns)
                for name, inner, columns in part.transformers_
            ]
    return copied


def _is_text_imputer(part: Any) -> bool:
    return _is_text(np.asarray(getattr(part, "statistics_", ())))


def _numbers_of(categories: Any) -> tuple[float, ...]:
    array = np.asarray(categories)
    return tuple(float(value) for value in array) if array.dtype.kind in "biuf" else ()


def _check_categories(estimator: Any) -> None:
    """Refuse numbers that inputs in FP32 would turn into others, which an encoder silently takes for unknown ones."""
    for part in parts(estimator):
        for values in getattr(part, "categories_", ()):
            array = np.asarray(values)
            if array.dtype.kind not in "iuf":
                continue
            lost = array[(array.astype(np.float32) != array) & (array == array)]
            if len(lost):
                raise ConfigError(
                    f"model: {type(part).__name__} encodes the number {lost[0]!s}, which an input in FP32 cannot hold: "
                    "it would be taken for an unknown one. Fit the estimator with that column as text, or with whole "
                    "numbers below 16,777,217"
                )


def _is_text_encoder(part: Any) -> bool:
    if hasattr(part, "vocabulary_") and hasattr(part, "token_pattern"):
        return True
    return any(_is_text(np.asarray(one)) for one in getattr(part, "categories_", ()))
