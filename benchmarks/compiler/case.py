"""One case of the benchmark: a float model, real rows for each use, and what a good answer is.

Every tool gets the same file and the same rows: ranges from ``fit``, choices on ``tune``, figures on ``test``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.measure.metrics import nearest
from compiler.measure.quality import Judge, pooled, ranking_kept
from compiler.pipeline import judging
from compiler.recipe import recipes
from compiler.recipe.choices import Task
from penstock.wire.tensors import Array

USES = ("fit", "tune", "certify", "test")
LABELS = "y"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case on disk.

    Attributes:
        kind: which goal of speed it has: "cnn", "encoder", "small" or "real" (models that others made).
        model: the float ONNX file.
        data: an npz with ``INPUT_USE`` and ``y_USE``.
        output: the output that is judged.
        max_drop: what a compilation may cost, in its own metric on the tuning rows (for embeddings: nearest neighbours
            kept, which is far stricter than the accuracy that is printed).
        has_labels: whether answers are judged by the rows' labels, or by those of the float model.
        model_lines: further lines of its recipe's table [model].
        edge_lines: the same of [edge].
        quality_lines: the same of [quality].
        shown_drop: what penstock has to show of its own: a bound, which for some hundreds of rows lies above the point.
        source: what the recipe names instead of ``model``, where that was exported from something; None for the file.
        source_lines: the recipe's table [edge.source], where it needs one.
        is_transformer: what NNCF wants to be told.
    """

    name: str
    what: str
    kind: str
    task: Task
    model: Path
    data: Path
    output: str
    max_drop: float = 0.01
    has_labels: bool = True
    model_lines: str = ""
    edge_lines: str = ""
    quality_lines: str = ""
    shown_drop: float = 0.03
    source: str | None = None
    source_lines: str = ""
    is_transformer: bool = False

    def rows(self, use: str) -> dict[str, Array]:
        """Return the inputs by name."""
        with np.load(self.data) as data:
            return {
                name.removesuffix(f"_{use}"): data[name]
                for name in data.files
                if name.endswith(f"_{use}") and name != f"{LABELS}_{use}"
            }

    def labels(self, use: str) -> NDArray[np.int64]:
        with np.load(self.data) as data:
            found: NDArray[np.int64] = data[f"{LABELS}_{use}"]
        return found

    def recipe(self) -> str:
        """Return the recipe of its compilation: defaults, but for the budget."""
        labelled = self.task == "classification" and self.has_labels
        table = f"[edge.source]\n{self.source_lines}\n" if self.source_lines else ""
        return "\n".join(
            [
                f"[model]\nname = {json.dumps(self.name)}\ntask = {json.dumps(self.task)}",
                f"output = {json.dumps(self.output)}\n{self.model_lines}\n",
                f"[edge]\nmodel = {json.dumps(self.source or str(self.model))}\n{self.edge_lines}\n{table}",
                f'[data]\nsource = {json.dumps(str(self.data))}\nlabels = "{LABELS if labelled else ""}"',
                'repeats = "natural"\n[data.splits]\ntune = "tune"\n',
                f"[quality]\nmax_accuracy_drop = {self.shown_drop}\n{self.quality_lines}\n",
                f'[certificate]\nharm = "{"labels" if labelled else "disagreement"}"\n',
            ]
        )


def write_data(path: Path, inputs: Mapping[str, Array], labels: Array, uses: Mapping[str, NDArray[np.int64]]) -> None:
    """Write the npz of a case. ``uses``: which rows each use has."""
    arrays = {f"{name}_{use}": values[rows] for use, rows in uses.items() for name, values in inputs.items()}
    arrays |= {f"{LABELS}_{use}": labels[rows] for use, rows in uses.items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def dealt(counts: Mapping[str, int], total: int, *, seed: int) -> dict[str, NDArray[np.int64]]:
    """Return shuffled row numbers for each name, in the order given; -1 takes what is left.

    Raises:
        ValueError: more are asked for than there are.
    """
    order = np.random.default_rng(seed).permutation(total)
    left = total - sum(count for count in counts.values() if count > 0)
    if left < 0:
        raise ValueError(f"{total} rows, but {counts} wanted")
    found, start = {}, 0
    for name, count in counts.items():
        end = start + (left if count < 0 else count)
        found[name] = order[start:end]
        start = end
    return found


def good(case: Case, answers: Array, reference: Array, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Say for each row how good it is, [N] from 0 to 1: the right class; of an embedding, whether the nearest other row
    is about the same topic; of a real model, by the metric of its task.
    """
    if case.kind == "real":
        wanted = labels if case.has_labels else None
        return _judge(case).scores({case.output: answers}, {case.output: reference}, wanted, None)
    if case.task == "classification":
        return np.asarray(answers.argmax(1) == labels, np.float64)
    return np.asarray(labels[nearest(pooled(answers, None))] == labels, np.float64)


def kept(case: Case, answers: Array, reference: Array) -> dict[str, float]:
    """Share of rows answered as the float model does; or, for embeddings, neighbours and rankings kept."""
    if case.kind == "real":
        return {"same": float(np.mean(_judge(case).same({case.output: answers}, {case.output: reference})))}
    if case.task == "classification":
        return {"agreement": float(np.mean(answers.argmax(1) == reference.argmax(1)))}
    same = nearest(pooled(answers, None)) == nearest(pooled(reference, None))
    return {"neighbour kept": float(np.mean(same)), "spearman": ranking_kept(answers, reference, None)}


def _judge(case: Case) -> Judge:
    file = case.data.with_name("judge.toml")
    file.write_text(case.recipe())
    return judging.judge_of(recipes.load(file), case.output)


def case_directory(root: Path, name: str, made_of: Sequence[Path | Mapping[str, Any]]) -> Path:
    """Return a directory of its own for what is made of these files and settings."""
    parts = [item.read_bytes() if isinstance(item, Path) else repr(sorted(item.items())).encode() for item in made_of]
    found = root / f"{name}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:12]}"
    found.mkdir(parents=True, exist_ok=True)
    return found
