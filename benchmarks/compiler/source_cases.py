"""The cases that do not begin with an ONNX file: an estimator of scikit-learn, a network of timm, a model of
transformers. Penstock's row compiles what a recipe would name; the other tools get its export.

The last two have random weights, for no package carries trained ones: their architectures are what is tried. Their last
layers are balanced on the rows, and answers are compared with the float model's own. Tests compile the same cases with
fewer and smaller rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import environments
from benchmarks.compiler.case import LABELS, USES, Case, case_directory, dealt, write_data
from benchmarks.compiler.real_cases import MAX_DROP
from compiler import sources
from compiler.progress import unwatched
from compiler.sources import SourceSection
from examples import real_models
from examples.real_models import rows
from penstock import toolchain

TIMM = ("timm==1.0.31", "torchvision==0.28.0", "pyyaml==6.0.4", "pillow==13.0.0", "huggingface_hub==2.4.0")
"""What timm's networks import; torch itself is the toolchain's."""

_EXAMPLES = Path(real_models.__file__).parent
_MODEL, _DATA, _TRAIN, _SETTINGS, _FIT = "model.onnx", "data.npz", "train.npz", "settings.json", "fit.npz"
Counts = Mapping[str, int]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a case is made of.

    Attributes:
        source: what the recipe names, in the case's directory; ``section`` is its table [edge.source].
        make: puts it there, by the case's directory, its rows by use and its settings.
        rows: makes them, by their number and ``size``.
        output: the scored one, and of which kind (``output_kind`` of the recipe).
        made_of: the example's file.
        budget: what each tool may lose. Random weights answer near ties, which any other rounding decides otherwise.
    """

    what: str
    source: str
    section: Settings
    make: Callable[[Path, Mapping[str, rows.Rows], Settings], None]
    rows: Callable[..., rows.Rows]
    counts: Counts
    output: tuple[str, str]
    made_of: str
    settings: Settings = field(default_factory=dict)
    size: Mapping[str, int] = field(default_factory=dict)
    has_labels: bool = False
    budget: float = MAX_DROP


def _estimator(place: Path, found: Mapping[str, rows.Rows], settings: Settings) -> None:
    del settings
    np.savez(place / _TRAIN, allow_pickle=False, **found["train"])
    shutil.copy(_EXAMPLES / "estimator.py", place)


def _architecture(place: Path, found: Mapping[str, rows.Rows], settings: Settings) -> None:
    packages = environments.packages(place.parent / "timm", TIMM)
    np.savez(place / _FIT, allow_pickle=False, image=found["fit"]["x"])
    (place / _SETTINGS).write_text(json.dumps({**settings, "packages": str(packages)}))
    shutil.copy(_EXAMPLES / "architecture.py", place)


def _transformer(place: Path, found: Mapping[str, rows.Rows], settings: Settings) -> None:
    balanced_on = place / _FIT
    np.savez(balanced_on, allow_pickle=False, **found["fit"])
    job = {"out": place / "transformer", "rows": balanced_on, "config": dict(settings)}
    toolchain.call("optimum", _EXAMPLES / "make_transformer.py", job)


BEGUN: Mapping[str, Begun] = {
    "topics": Begun(
        what="scikit-learn pipeline of text and numbers, 10 topics",
        source="estimator.py:topics",
        section={"framework": "sklearn"},
        make=_estimator,
        rows=rows.definitions,
        counts={"train": 1200, "fit": 100, "tune": 300, "certify": 400, "test": 400},
        output=("probabilities", "probabilities"),
        made_of="estimator.py",
        has_labels=True,
    ),
    "timm": Begun(
        what="timm MobileNetV3-small, random weights",
        source="architecture.py:network",
        section={"files": [_FIT, _SETTINGS], "outputs": ["logits"]},
        make=_architecture,
        rows=rows.photographs,
        counts={"fit": 100, "tune": 200, "certify": 300, "test": 300},
        output=("logits", "logits"),
        made_of="architecture.py",
        settings={"name": "mobilenetv3_small_100", "classes": 10},
        size={"side": 96},
        budget=0.05,
    ),
    "bert": Begun(
        what="transformers BERT, 4 layers of 256, random weights",
        source="transformer",
        section={},
        make=_transformer,
        rows=rows.texts,
        counts={"fit": 100, "tune": 500, "certify": 300, "test": 400},
        output=("logits", "logits"),
        made_of="make_transformer.py",
        settings={
            "vocab_size": 256, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 1024, "max_position_embeddings": 128, "num_labels": 10,
        },
        size={"length": 64},
        budget=0.05,
    ),
}  # fmt: skip


def make(
    name: str,
    root: Path,
    *,
    counts: Counts | None = None,
    size: Mapping[str, int] | None = None,
    settings: Settings | None = None,
    is_exported: bool = True,
    **more: Any,
) -> Case:
    """Make a case's rows and its source, export it, and return the case.

    Args:
        counts: rows by use, instead of the benchmark's own.
        size: of a row, instead of the benchmark's own.
        settings: of the model, instead of some of the benchmark's own.
        is_exported: False leaves that to whoever compiles the source, and the case without its ``model``.
        more: fields of the case.

    Raises:
        penstock.errors.MissingToolchain: what exports it is not installed. CompileError: it cannot be exported.
        benchmarks.environments.NotInstalled: timm cannot be.
    """
    begun = BEGUN[name]
    counts, size = dict(counts or begun.counts), dict(size or begun.size)
    settings = {**begun.settings, **(settings or {})}
    made_of: list[Path | Settings] = [
        Path(rows.__file__),
        Path(__file__),
        _EXAMPLES / begun.made_of,
        {"counts": counts, "size": size, **settings},
    ]
    place = case_directory(root, name, made_of)
    section = {
        key: [str(place / file) for file in value] if key == "files" else value for key, value in begun.section.items()
    }
    if not (place / _DATA).exists():
        _write(place, begun, counts, size, settings)
    if is_exported and not (place / _MODEL).exists():
        _export(place, begun)
    fields: dict[str, Any] = {
        "what": begun.what,
        "task": "classification",
        "output": begun.output[0],
        "has_labels": begun.has_labels,
        "max_drop": begun.budget,
        "shown_drop": begun.budget,
        "model_lines": f'output_kind = "{begun.output[1]}"',
        "is_transformer": name == "bert",
        "source": str(place / begun.source),
        "source_lines": "\n".join(f"{key} = {json.dumps(value)}" for key, value in section.items()),
    }
    return Case(**{**fields, "name": name, "kind": "real", "model": place / _MODEL, "data": place / _DATA, **more})


def _write(place: Path, begun: Begun, counts: Counts, size: Mapping[str, int], settings: Settings) -> None:
    found = begun.rows(sum(counts.values()), **size)
    total = len(next(iter(found.values())))
    uses = dealt(counts, total, seed=3)
    begun.make(place, {use: {key: values[at] for key, values in found.items()} for use, at in uses.items()}, settings)
    labels = found.pop(LABELS, np.zeros(total, np.int64))
    write_data(place / _DATA, found, labels, {use: uses[use] for use in USES})


def _export(place: Path, begun: Begun) -> None:
    section = msgspec.convert(begun.section, SourceSection)
    scratch = place / "export"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    source = sources.detect(begun.source, place, section)
    sources.export(source, section, scratch, progress=unwatched, seed=0).model.replace(place / _MODEL)
    shutil.rmtree(scratch)


CASES: Mapping[str, Callable[[Path], Case]] = {name: partial(make, name) for name in BEGUN}
