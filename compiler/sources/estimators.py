"""scikit-learn estimators through skl2onnx, in this process; they pass through the compiler unquantized.

A factory is the recipe author's own code and is run as such. A pickled file is somebody's bytes and runs whatever they
say, so it is loaded only where the recipe allows it. Classifiers give one output, the probabilities of their classes in
the order of ``classes_``; the label that skl2onnx adds is their largest, and is dropped. Inputs may be text
(``compiler.sources.estimator_inputs``).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.graph import files, rewrite, vocabulary
from compiler.progress import Progress
from compiler.recipe.source_section import SourceSection
from compiler.sources import equivalence, estimator_inputs
from compiler.sources.detection import Source
from compiler.sources.estimator_inputs import NUMBERS, TEXT, Input
from compiler.sources.exported import Exported
from penstock.errors import CompileError, ConfigError, missing_extra
from penstock.process.python_code import importable, module_in
from penstock.wire.tensors import Array

try:
    import joblib
    import skl2onnx
    import sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.base import BaseEstimator, is_classifier
    from sklearn.exceptions import InconsistentVersionWarning
    from sklearn.feature_extraction.text import CountVectorizer
except ImportError as error:  # the libraries are behind an extra
    raise missing_extra("scikit-learn and skl2onnx", "sklearn", "compiling scikit-learn models") from error

PROBABILITIES, VALUES = "probabilities", "values"
_TYPES: Mapping[str, Any] = {NUMBERS: FloatTensorType, TEXT: StringTensorType}
_LOCALE = "C.UTF-8"
_TOKENS: Mapping[str | None, str] = {r"(?u)\b\w\w+\b": r"[\p{L}\p{N}_]{2,}", r"(?u)\b\w+\b": r"[\p{L}\p{N}_]+"}
"""What scikit-learn's patterns mean, as ONNX's tokenizer reads patterns."""
_MAX_OPSET = 21  # that every supported onnxruntime runs; operators for trees have not changed since


def export(source: Source, section: SourceSection, out: Path, *, progress: Progress, seed: int) -> Exported:
    """Export a fitted scikit-learn estimator.

    Raises:
        ConfigError: a pickled file that is not allowed, or something that is no fitted estimator.
        CompileError: skl2onnx cannot convert it, or the graph answers differently.
    """
    progress(0.1, "loading the estimator")
    with warnings.catch_warnings():  # whoever waits can do nothing about a library's; an older pickle is told apart
        warnings.simplefilter("ignore")
        return _export(source, section, out, progress, seed)


def _export(source: Source, section: SourceSection, out: Path, progress: Progress, seed: int) -> Exported:
    estimator, examples, fitted_with = _load(source, section)
    features = _features(estimator, source)
    examples = estimator_inputs.by_name(examples)
    inputs = estimator_inputs.inputs_of(estimator, examples, section.inputs, features=features)
    progress(0.4, "converting")
    model = _converted(estimator, inputs, section)
    target = out / "model.onnx"
    files.write(model, target)
    files.check_runnable(target, field="model")
    progress(0.8, "comparing with the original")
    cases = [_of_graph(case, model) for case in _cases(estimator, examples, inputs, model, seed)]
    seen = equivalence.check(target, cases, tolerance=section.tolerance)
    progress(1.0, "exported")
    facts: dict[str, Any] = {
        "framework": "sklearn",
        "class": type(estimator).__name__,
        "opset": files.opset(model),
        "versions": {"scikit-learn": sklearn.__version__, "skl2onnx": skl2onnx.__version__},
    }
    if is_classifier(estimator):
        facts["labels"] = [str(label) for label in estimator.classes_]
    read = {value.name for value in model.graph.input}
    if columns := estimator_inputs.columns_of(estimator, inputs):
        facts["columns"] = {name: given for name, given in columns.items() if name in read}
    return Exported(
        model=target,
        how=f"{type(estimator).__name__} converted by skl2onnx {skl2onnx.__version__}" + _warning(fitted_with),
        facts=facts,
        passthrough=True,
        parity=seen,
    )


def _warning(fitted_with: str) -> str:
    if not fitted_with:
        return ""
    return (
        f" (WARNING: fitted with scikit-learn {fitted_with} and loaded by {sklearn.__version__}, which may answer "
        "otherwise: fit it again, or install what it was fitted with)"
    )


def _load(source: Source, section: SourceSection) -> tuple[Any, Any, str]:
    """Load the fitted estimator, example rows where the factory gives them, and the other version that fitted it ("").

    Raises:
        ConfigError, CompileError.
    """
    if source.factory:
        made = _call(source)
        return (*made, "") if isinstance(made, tuple) and len(made) == 2 else (made, None, "")
    if not section.allow_pickle:
        raise ConfigError(
            f"model: {source.location.name} is pickled, and loading it runs whatever code its author put in. If you "
            "trust where it comes from, set allow_pickle = true under [edge.source] (or [cloud.source]) in the "
            'recipe, or give --allow-pickle where there is none; safer: a factory "file.py:function" that fits it'
        )
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", InconsistentVersionWarning)
            estimator = joblib.load(source.location)
        other = [one.message for one in seen if isinstance(one.message, InconsistentVersionWarning)]
        return estimator, None, other[0].original_sklearn_version if other else ""
    except Exception as error:  # unpickling runs arbitrary code, which may raise anything
        raise CompileError(
            f"model: {source.location.name} cannot be loaded by scikit-learn {sklearn.__version__}: "
            f"{type(error).__name__}: {str(error)[:300]}. Is it a file that joblib.dump wrote? Pickles only load with "
            "the versions they were made with"
        ) from error


def _call(source: Source) -> Any:
    named = f"{source.module or source.location.name}:{source.factory}"
    with importable(source.base, source.location.parent):
        try:
            module = importlib.import_module(source.module) if source.module else module_in(source.location)
            return getattr(module, source.factory)()
        except AttributeError as error:
            if not hasattr(module, source.factory):
                raise ConfigError(f"model: {named}: there is no function {source.factory!r}") from error
            raise CompileError(f"model: {named} fails: AttributeError: {error}") from error
        except ImportError as error:
            raise CompileError(f"model: {named}: {error}") from error
        except Exception as error:  # the recipe author's code may raise anything
            raise CompileError(f"model: {named} fails: {type(error).__name__}: {str(error)[:300]}") from error


def _features(estimator: Any, source: Source) -> int:
    """Count the columns of a fitted estimator; a list of texts counts as one."""
    if not isinstance(estimator, BaseEstimator):
        is_module = any(kind.__module__.startswith("torch.") for kind in type(estimator).__mro__)
        advice = 'set framework = "torch"' if is_module else "expected a fitted estimator"
        raise ConfigError(f"model: {source.what} gives {type(estimator).__name__}, no scikit-learn estimator; {advice}")
    if estimator_inputs.takes_texts(estimator):
        return 1
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise ConfigError(f"model: {type(estimator).__name__} is not fitted; call fit before it is returned or saved")
    return int(features)


def _converted(estimator: Any, inputs: Sequence[Input], section: SourceSection) -> Any:
    is_classes = is_classifier(estimator)
    if is_classes and not hasattr(estimator, "predict_proba"):
        raise CompileError(
            f"model: {type(estimator).__name__} has no predict_proba, and a cascade needs probabilities; wrap it in "
            "CalibratedClassifierCV"
        )
    estimator = estimator_inputs.without_text_imputers(estimator)
    opset = section.opset or min(_MAX_OPSET, skl2onnx.__max_supported_opset__)
    options: dict[int, Any] = {id(estimator): {"zipmap": False}} if is_classes else {}
    options |= {id(part): _tokenizing(part) for part in estimator_inputs.parts(estimator) if _is_vectorizer(part)}
    try:
        model = skl2onnx.convert_sklearn(
            estimator,
            "estimator",
            initial_types=[(one.name, _TYPES[one.datatype]([None, one.columns])) for one in inputs],
            options=options or None,
            target_opset={"": opset, "ai.onnx.ml": 3},
        )
    except Exception as error:  # skl2onnx raises its own classes, NameError, RuntimeError, ...
        advice = ""
        if len(inputs) > 1 and hasattr(estimator, "calibrated_classifiers_"):
            advice = ". It does where the columns come first: make_pipeline(columns, CalibratedClassifierCV(...))"
        name = type(estimator).__name__
        raise CompileError(
            f"model: skl2onnx {skl2onnx.__version__} cannot convert {name}: {str(error)[:500]}{advice}"
        ) from error
    _name_inputs(model.graph, inputs)
    return _one_output(model, PROBABILITIES if is_classes else VALUES, is_classes)


def _name_inputs(graph: Any, inputs: Sequence[Input]) -> None:
    """Call columns by their names, which skl2onnx does not where there are spaces; drop those that nobody reads."""
    for value, one in zip(list(graph.input), inputs, strict=True):
        if value.name != one.name:
            rewrite.rename(graph, value.name, one.name)
            value.name = one.name
    if len(inputs) > 1:
        read = {name for node in graph.node for name in node.input}
        for value in [value for value in graph.input if value.name not in read]:
            graph.input.remove(value)


def _of_graph(case: equivalence.Case, model: Any) -> equivalence.Case:
    return replace(case, inputs={value.name: case.inputs[value.name] for value in model.graph.input})


def _is_vectorizer(part: Any) -> bool:
    return isinstance(part, CountVectorizer)


def _tokenizing(vectorizer: Any) -> dict[str, str]:
    """Return what makes skl2onnx lower and cut text as scikit-learn does, in every language and on every machine.

    By itself it wants a locale that few machines have, and takes letters outside of ASCII for the ends of words.
    """
    cut = _TOKENS.get(vectorizer.token_pattern) if vectorizer.analyzer == "word" else None
    return {"locale": _LOCALE} | ({"tokenexp": cut} if cut else {})


def _one_output(model: Any, name: str, is_classes: bool) -> Any:
    """Keep the scored output alone, under our name, and name the batch."""
    graph = model.graph
    kept = graph.output[1] if is_classes else graph.output[0]
    old = kept.name
    rewrite.rename(graph, old, name)
    kept.name = name
    if is_classes:
        del graph.output[0]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def _cases(estimator: Any, examples: Any, inputs: tuple[Input, ...], model: Any, seed: int) -> list[equivalence.Case]:
    """Ask the estimator what its export is compared with.

    Raises:
        ConfigError, InvalidInput: examples that do not fit. CompileError: the estimator refuses them.
    """
    if examples is not None:
        return [_case(estimator, rows) for rows in estimator_inputs.given_examples(examples, inputs)]
    words = vocabulary.words_of_inputs(model)
    if words:
        try:
            made = estimator_inputs.made_examples(inputs, words, seed, has_unknown=True)
            return [_case(estimator, rows) for rows in made]
        except CompileError:
            pass  # an encoder may refuse words that it does not know
    return [_case(estimator, rows) for rows in estimator_inputs.made_examples(inputs, words, seed, has_unknown=False)]


def _case(estimator: Any, inputs: Mapping[str, Array]) -> equivalence.Case:
    rows = len(next(iter(inputs.values())))
    x = estimator_inputs.matrix(estimator, inputs)
    try:
        given = estimator.predict_proba(x) if is_classifier(estimator) else np.asarray(estimator.predict(x))
    except Exception as error:  # scikit-learn's, the estimator's own, or a library's below it
        raise CompileError(
            f"model: {type(estimator).__name__} cannot answer examples: {type(error).__name__}: {str(error)[:300]}. "
            "Let the factory return (estimator, {name: examples})"
        ) from error
    name = PROBABILITIES if is_classifier(estimator) else VALUES
    outputs: Mapping[str, Array] = {name: np.asarray(given, dtype=np.float32).reshape(rows, -1)}
    return equivalence.Case(inputs=inputs, outputs=outputs)
