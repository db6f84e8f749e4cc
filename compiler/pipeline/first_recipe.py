"""A first recipe for a model: what can be seen in it, what is guessed and why, and what its author has to fill in.

Returns text; the command writes it. The text is a recipe that loads: every line that is a guess says so beside it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from compiler import sources
from compiler.certificate.binomial import samples_needed
from compiler.data import calls, infer, loading
from compiler.data.dataset import Repeats
from compiler.measure import quality
from compiler.recipe import recipes, targets
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.data_section import DataSection, SharesSection
from compiler.recipe.recipes import QualitySection
from compiler.recipe.source_section import SourceSection
from compiler.sources import inspection
from compiler.sources.detection import Source
from compiler.sources.inspection import Seen
from penstock.errors import PenstockError

_GENAI = (targets.GENAI_CPU, targets.GENAI_CUDA)
_WIDTH = 48  # where comments start
_MAX_LABELS = 200
_LABELLED = frozenset(task for task, row in quality.TASKS.items() if row.are_labels_wanted)
"""Tasks whose answers are judged by labels, and that have a cascade."""

_DATA_FILES: Mapping[str, str] = {"arrays": "data.npz", "text": "data.csv", "images": "images"}


def relocated(model: str, here: Path, base: Path) -> str:
    """Return a model, or examples, as a recipe in ``base`` has to name it, where somebody in ``here`` wrote the name.

    Paths become relative to the recipe's directory; so does a module beside ``here``, as the file that it is.
    """
    path, colon, factory = model.rpartition(":") if ":" in model else (model, "", "")
    as_file = Path(*path.split(".")).with_suffix(".py")
    if here.resolve() == base.resolve() or Path(path).is_absolute():
        return model
    if (here / path).exists():
        return os.path.relpath((here / path).resolve(), base.resolve()) + colon + factory
    if colon and (here / as_file).is_file():
        return os.path.relpath((here / as_file).resolve(), base.resolve()) + colon + factory
    return model


def recipe_for(model: str, base: Path, *, target: str = "", data: str = "", allow_pickle: bool = False) -> str:
    """Write a commented recipe for ``model``, as TOML that :func:`compiler.recipe.recipes.load` takes.

    Args:
        model: as in a recipe, relative to ``base``, where the recipe will lie.
        target: for ``[edge] targets``; by default the one that fits the model.
        data: for ``[data] source``, relative to ``base`` too; by default a name of the kind that fits the model. Where
            it is there, it is looked at for rows that repeat or belong together.
        allow_pickle: load a pickled estimator, which runs its author's code, for what it knows of itself.

    Raises:
        InvalidInput, CompileError: no such model, or one that cannot be read. ConfigError: no model, no target.
    """
    source = sources.detect(model, base)
    is_loaded = allow_pickle and source.kind == "sklearn" and not source.factory
    seen = inspection.look_inside(source) if is_loaded else inspection.look(source)
    if seen.framework:  # known only after a look into the factory's file
        source = sources.detect(model, base, msgspec.convert({"framework": seen.framework}, SourceSection))
    target = target or (targets.GENAI_CPU if source.kind == "llm" else targets.HOST)
    data = data or ("data.csv" if is_loaded else _DATA_FILES[seen.feeds])
    name = recipes.of_model(model, DataSection(source=data), base=base, target=target).model.name
    parts = (
        _head(model, source, seen),
        _model(name, seen),
        _edge(model, target, source, seen),
        _source(source, seen, is_loaded),
        _cloud(source),
        _data(data, seen, model, base),
        _promise(seen),
    )
    return "\n\n".join(text for text in ("\n".join(part) for part in parts) if text) + "\n"


def _head(model: str, source: Source, seen: Seen) -> Iterator[str]:
    yield f"# Recipe for {_plain(model)}: {_plain(source.what)}."
    yield "# Lines that start with '# ' and a name show a default or an example. Compile: penstock compile RECIPE"
    for what, specs in (("input", seen.inputs), ("output", seen.outputs)):
        for spec in specs:
            yield f"#   {what:6s} {_plain(spec.name)} {spec.datatype} {list(spec.shape)}"
    for problem in seen.problems:
        yield f"# TO MEND FIRST: {_plain(problem)}"


def _model(name: str, seen: Seen) -> Iterator[str]:
    yield "[model]"
    yield f"name = {_value(name)}"
    yield _noted('version = "v1"', "the tag that points at the artifact")
    yield _noted(f"task = {_value(seen.task)}", seen.why_task or "a guess")
    if seen.task == "ocr":
        yield _noted('labels = ["", "a", "b"]', "the characters in the order of the classes; the first is no character")
    if seen.task == "classification":
        if 0 < len(seen.labels) <= _MAX_LABELS:
            yield f"labels = {_value(list(seen.labels))}"
        else:
            yield _noted('# labels = ["first class", "second class"]', "names of the classes, in order")
    if seen.output:
        others = ", ".join(_plain(spec.name) for spec in seen.outputs if spec.name != seen.output)
        yield _noted(
            f"output = {_value(seen.output)}", f"the one that is scored; also there: {others}" if others else ""
        )
    if seen.task in _LABELLED and seen.task != "detection":
        yield _noted('# output_kind = "auto"', "logits or probabilities, told by the values")
    if seen.feeds == "arrays" and seen.task != "generation":
        yield _noted("# input_range = [0.0, 1.0]", "smallest and largest value of an input; data outside is refused")
    yield "# max_batch = 64"
    for spec in seen.inputs:
        if -1 in spec.shape[1:] and spec.datatype != "BYTES":
            shape = f"# shapes = {{ {_value(spec.name)} = {list(spec.shape)} }}"
            yield _noted(shape, "sizes instead of -1 fix what the model leaves open")
    if seen.layout:
        yield ""
        yield "[model.decoding]"
        yield _noted(f"layout = {_value(seen.layout)}", "of the boxes; a guess by the output's shape")
        yield _noted("# threshold = 0.25", "score from which a box counts")


def _edge(model: str, target: str, source: Source, seen: Seen) -> Iterator[str]:
    fitting = [name for name in targets.names() if (name in _GENAI) == (source.kind == "llm")]
    yield "[edge]"
    yield f"model = {_value(model)}"
    yield f"targets = {_value([target])}"
    yield "# one variant each; also: " + ", ".join(name for name in fitting if name != target)
    tried = targets.resolve(target).precisions
    if source.kind == "sklearn" or seen.framework == "sklearn":
        yield "# no neural network: it is packed as it is, and never quantized"
    else:
        yield _noted(f"# precisions = {_value(list(tried))}", "candidates; the gate ships one of them")
        yield _noted('# objective = "speed"', 'or "size"')


def _source(source: Source, seen: Seen, is_loaded: bool) -> Iterator[str]:
    default = SourceSection()
    if source.kind == "onnx" or source.kind == "llm":
        return
    yield "[edge.source]"
    if seen.framework:
        yield _noted(f"framework = {_value(seen.framework)}", seen.why_task)
    elif source.kind == "torch":
        yield _noted('# framework = "sklearn"', "if the factory returns a scikit-learn estimator; torch otherwise")
    if source.kind == "huggingface" and seen.task == "seq2seq":
        yield _noted("# max_new_tokens = 64", "length of an answer; by default what generation_config.json says")
    elif source.kind == "huggingface":
        yield _noted('# task = "text-classification"', "in Optimum's words, where the model's class does not tell")
        yield _noted('# toolchain = "optimum"', 'or "transformers5", for transformers\' own exporter')
    if source.kind == "sklearn" and not source.factory:
        allowed = _value(is_loaded).lower()
        yield _noted(f"allow_pickle = {allowed}", "loading a pickle runs its author's code: true only if you trust it")
    yield _noted(f"# tolerance = {default.tolerance:g}", "difference from the original's answers that is allowed")
    if source.kind == "torch" and not seen.framework:
        yield _noted("# [edge.source.inputs.x]", "one table an input, if the factory returns no example inputs")
        yield "# shape = [-1, 3, 224, 224]"
        yield '# datatype = "FP32"'
    if (source.kind == "sklearn" or seen.framework == "sklearn") and not is_loaded:
        yield _noted("# [edge.source.inputs.city]", "one table an input, in the order of the columns, if some are text")
        yield "# shape = [-1, 1]"
        yield '# datatype = "BYTES"'


def _cloud(source: Source) -> Iterator[str]:
    yield _noted("# [cloud]", "the large model; without it the cloud runs the edge's own in float")
    yield f'# model = "{"large" if source.location.is_dir() else "large.onnx"}"'


def _data(data: str, seen: Seen, model: str, base: Path) -> Iterator[str]:
    defaults = DataSection(source=data)
    yield "[data]"
    yield _noted(f"source = {_value(data)}", ".npz, .csv, .parquet, a folder of images, or file.py:function")
    if seen.feeds == "text":
        yield _noted('text = "text"', "the column that holds the text")
    if seen.task in _LABELLED and seen.feeds != "images":
        named = "target" if seen.task == "seq2seq" and seen.feeds == "text" else defaults.labels
        yield _noted(f"labels = {_value(named)}", '"" if there are none, with certificate.harm = "disagreement"')
    elif seen.task not in _LABELLED:
        yield 'labels = ""'
    if seen.columns:
        yield _noted(f"columns = {_value(seen.columns)}", "as the model was fitted with them")
    yield from _arrays(data, seen)
    yield from _repeats(data, seen, base)
    if seen.feeds == "text":
        yield ""
        yield "[data.tokenizer]"
        yield f"file = {_value(model.rstrip('/') + '/tokenizer.json')}"
        yield _noted("# max_length = 128", "in tokens")
    if seen.feeds == "images" and seen.images:
        yield ""
        yield _noted("[data.images]", "as the model's preprocessor_config.json has it")
        yield from (f"{name} = {_value(value)}" for name, value in seen.images.items())


def _repeats(data: str, seen: Seen, base: Path) -> Iterator[str]:
    """Return what equal rows are taken for: what is found in the examples, or both settings as comments."""
    found = _looked_at(data, seen, base)
    if found is not None and found.cluster_by:
        yield f"# {found.rows:,} rows in {found.clusters:,} clusters; the promise is then over these"
        yield _noted(
            f"cluster_by = {_value(found.cluster_by)}",
            'by its name; repeats = "natural" if each row is a draw by itself',
        )
        return
    if found is not None and found.distinct < found.rows:
        yield f"# {found.rows:,} rows, {found.distinct:,} distinct (one of them {found.most:,} times)"
        yield _noted('repeats = "copies"', 'each counts once; "natural" if service repeats them too')
    else:
        yield _noted('# repeats = "natural"', 'what equal rows are: draws by themselves, or "copies" that count once')
    if seen.task != "generation" and seen.feeds != "images":
        yield _noted('# cluster_by = "patient"', "what rows belong to; the promise is then over these")


def _looked_at(data: str, seen: Seen, base: Path) -> Repeats | None:
    """Look at the examples; None where they are not there yet, or cannot be read without more settings."""
    if seen.task == "generation" or not seen.inputs or not (base / (data.rpartition(":")[0] or data)).exists():
        return None
    try:
        rows = calls.as_rows(seen.inputs)
        return loading.look(infer(data, rows, base=base), base, rows)
    except PenstockError:
        return None


def _arrays(data: str, seen: Seen) -> Iterator[str]:
    """Return the names that an npz needs, for the inputs that are known."""
    if not data.endswith(".npz") or not seen.inputs:
        return
    splits = DataSection(source=data).splits
    uses = (splits.fit, splits.certify, splits.test)
    for spec in calls.as_rows(seen.inputs):
        names = ", ".join(f"{_plain(spec.name)}_{use}" for use in uses)
        yield f"# arrays {names}: {spec.datatype} {['rows', *spec.shape[1:]]}".replace("'", "")
    yield "# and ..._tune, if the source has them, for every choice; otherwise half of ..._fit is for that"
    if seen.task in _LABELLED:
        yield f"# arrays {', '.join(f'y_{use}' for use in uses)}: {quality.TASKS[seen.task].about_labels}"


def _promise(seen: Seen) -> Iterator[str]:
    if seen.task == "generation":
        return
    yield "[quality]"
    yield _noted(f"max_accuracy_drop = {QualitySection().max_accuracy_drop:g}", "share that quantization may cost")
    if seen.task not in _LABELLED:
        return
    promise = CertificateSection()
    harm = promise.levels[0]
    needed = samples_needed(harm, promise.delta)
    rows = math.ceil(needed / SharesSection().certify)
    yield ""
    yield "[certificate]"
    yield _noted(f"max_harm = {harm:g}", "share of answers that may be wrong where the cloud alone is right")
    yield _noted(f"delta = {promise.delta:g}", "chance that the promise does not hold")
    yield f"# That needs {needed} certifying examples (clusters, if rows belong together) even if none is"
    yield f"# harmful: {rows}, if the source has no splits of its own. 1% needs {samples_needed(0.01, promise.delta)}."


def _noted(line: str, comment: str) -> str:
    return f"{line:{_WIDTH}s} # {_plain(comment)}" if comment else line


def _plain(text: str) -> str:
    """Make a name of the model's file plain: none may end a comment and begin a setting."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _value(value: Any) -> str:
    """Write a TOML value; strings as JSON has them, which TOML reads alike, but for DEL."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
