"""scikit-learn estimators through skl2onnx, in this process; they pass through the compiler unquantized.

A factory is the recipe author's own code and is run as such. A pickled file is somebody's bytes and runs whatever they
say, so it is loaded only where the recipe allows it. Classifiers give one output, the probabilities of their classes in
the order of ``classes_``; the label that skl2onnx adds is their largest, and is dropped.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.graph import files, rewrite
from compiler.progress import Progress
from compiler.python_code import importable, module_in
from compiler.recipe.source_section import SourceSection
from compiler.sources import equivalence
from compiler.sources.detection import Source
from compiler.sources.exported import Exported
from penstock.errors import CompileError, ConfigError, missing_extra
from penstock.wire.tensors import Array

try:
    import joblib
    import skl2onnx
    import sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.base import BaseEstimator, is_classifier
except ImportError as error:  # the libraries are behind an extra
    raise missing_extra("scikit-learn and skl2onnx", "sklearn", "compiling scikit-learn models") from error

INPUT, PROBABILITIES, VALUES = "x", "probabilities", "values"
_ROWS = (64, 65)  # of the examples: the second proves that the batch is free
_SCALES = (1.0, 10.0, 100.0, 1000.0)  # what is typical of the features is not known, so examples cover four decades
_MAX_OPSET = 21  # that every supported onnxruntime runs; operators for trees have not changed since


def export(source: Source, section: SourceSection, out: Path, *, progress: Progress, seed: int) -> Exported:
    """Export a fitted scikit-learn estimator.

    Raises:
        ConfigError: a pickled file that is not allowed, or something that is no fitted estimator.
        CompileError: skl2onnx cannot convert it, or the graph answers differently.
    """
    progress(0.1, "loading the estimator")
    estimator, examples = _load(source, section)
    features = _features(estimator, source)
    progress(0.4, "converting")
    model = _converted(estimator, features, section)
    target = out / "model.onnx"
    files.write(model, target)
    files.check_runnable(target, field="model")
    progress(0.8, "comparing with the original")
    cases = [_case(estimator, x) for x in _examples(examples, features, seed)]
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
    return Exported(
        model=target,
        how=f"{type(estimator).__name__} converted by skl2onnx {skl2onnx.__version__}",
        facts=facts,
        passthrough=True,
        parity=seen,
    )


def _load(source: Source, section: SourceSection) -> tuple[Any, Any]:
    """Load the fitted estimator, and example rows where the factory gives them.

    Raises:
        ConfigError, CompileError.
    """
    if source.factory:
        made = _call(source)
        return made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not section.allow_pickle:
        raise ConfigError(
            f"model: {source.location.name} is pickled, and loading it runs whatever code its author put in. If you "
            'trust where it comes from, set allow_pickle = true; safer: a factory "file.py:function" that fits it'
        )
    try:
        return joblib.load(source.location), None
    except Exception as error:  # unpickling runs arbitrary code, which may raise anything
        raise CompileError(
            f"model: {source.location.name} cannot be loaded by scikit-learn {sklearn.__version__}: "
            f"{type(error).__name__}: {str(error)[:300]}. Pickles only load with the versions they were made with"
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
    if not isinstance(estimator, BaseEstimator):
        is_module = any(kind.__module__.startswith("torch.") for kind in type(estimator).__mro__)
        advice = 'set framework = "torch"' if is_module else "expected a fitted estimator"
        raise ConfigError(f"model: {source.what} gives {type(estimator).__name__}, no scikit-learn estimator; {advice}")
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise ConfigError(f"model: {type(estimator).__name__} is not fitted; call fit before it is returned or saved")
    return int(features)


def _converted(estimator: Any, features: int, section: SourceSection) -> Any:
    is_classes = is_classifier(estimator)
    if is_classes and not hasattr(estimator, "predict_proba"):
        raise CompileError(
            f"model: {type(estimator).__name__} has no predict_proba, and a cascade needs probabilities; wrap it in "
            "CalibratedClassifierCV"
        )
    opset = section.opset or min(_MAX_OPSET, skl2onnx.__max_supported_opset__)
    try:
        model = skl2onnx.convert_sklearn(
            estimator,
            "estimator",
            initial_types=[(INPUT, FloatTensorType([None, features]))],
            options={id(estimator): {"zipmap": False}} if is_classes else None,
            target_opset={"": opset, "ai.onnx.ml": 3},
        )
    except Exception as error:  # skl2onnx raises its own classes, NameError, RuntimeError, ...
        raise CompileError(
            f"model: skl2onnx {skl2onnx.__version__} cannot convert {type(estimator).__name__}: {str(error)[:500]}"
        ) from error
    return _one_output(model, PROBABILITIES if is_classes else VALUES, is_classes)


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


def _case(estimator: Any, x: Array) -> equivalence.Case:
    given = estimator.predict_proba(x) if is_classifier(estimator) else np.asarray(estimator.predict(x))
    name = PROBABILITIES if is_classifier(estimator) else VALUES
    outputs: Mapping[str, Array] = {name: np.asarray(given, dtype=np.float32).reshape(len(x), -1)}
    return equivalence.Case(inputs={INPUT: x}, outputs=outputs)


def _examples(given: Any, features: int, seed: int) -> list[Array]:
    if given is not None:
        rows = np.asarray(next(iter(given.values())) if isinstance(given, Mapping) else given, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != features:
            raise ConfigError(
                f"model: the factory's examples have shape {list(rows.shape)}, expected [rows, {features}]"
            )
        return [rows, rows[::-1][: max(1, len(rows) - 1)].copy()]
    source = np.random.default_rng(seed)
    scales = np.array(_SCALES, dtype=np.float32)
    return [
        (source.standard_normal((rows, features)) * scales[np.arange(rows) % len(scales), None]).astype(np.float32)
        for rows in _ROWS
    ]
