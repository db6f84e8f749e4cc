"""What makes an answer good: the one place that knows how answers are judged, for every task.

Pure. A task is a row of :data:`TASKS`: the form of its answers, the metric they are measured by, and what their labels
look like. A recipe may name another metric, or bring its own functions. Everything that is measured of a candidate, and
everything that a certificate counts as harm, comes from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Share
from compiler.certificate.binomial import clopper_pearson
from compiler.measure import metrics
from compiler.measure.metrics import METRICS, Metric
from compiler.recipe.choices import LabelForm, Task
from penstock.errors import CompileError, InvalidInput
from penstock.policy.decoding import Answers, Decoder, Form
from penstock.wire.tensors import Array, TensorSpec, listing

Rows = NDArray[np.bool_]
Floats = NDArray[np.float64]
Function = Callable[[Answers, Any], Any]
"""What a recipe's author writes: (answers, references) -> a number in [0, 1], or a truth value, for each row."""

_ATTENTION_MASK = "attention_mask"
_INTERVAL_DELTA = 0.05
_ROUNDING = 1e-9
_Z95 = 1.959963984540054


_LABELS: Mapping[Form, str] = {
    "classes": "the class of each row, counted from 0",
    "labels": "0 or 1 for each label, [rows, labels]",
    "boxes": "[rows, boxes, 5] of x1, y1, x2, y2, class; rows that hold no box have class -1",
    "text": "words, with model.labels naming the characters; or characters by number [rows, length], filled up with -1",
    "mask": "a class for each pixel, [rows, height, width]; pixels that do not count are -1",
    "ranking": "a grade for each item, [rows, items]; more is better",
    "numbers": "the numbers that the output should have held",
    "vectors": "vectors, [rows, size]",
    "tokens": "texts, which data.tokenizer turns into tokens; or tokens by number [rows, length], filled up with -1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """What is known of a task.

    Attributes:
        form: of its answers.
        metric: that they are measured by, unless the recipe names another.
        labels: what its labels look like.
        are_labels_wanted: whether the metric compares with labels; if not, references are always another model's.
    """

    form: Form
    metric: str
    labels: LabelForm
    are_labels_wanted: bool = True

    @property
    def about_labels(self) -> str:
        """Say what labels of the task are, in words."""
        return _LABELS[self.form]


TASKS: Mapping[Task, TaskRow] = {
    "classification": TaskRow(form="classes", metric="accuracy", labels="classes"),
    "multilabel": TaskRow(form="labels", metric="f1", labels="array"),
    "detection": TaskRow(form="boxes", metric="map50", labels="array"),
    "segmentation": TaskRow(form="mask", metric="iou", labels="array"),
    "ocr": TaskRow(form="text", metric="character_accuracy", labels="array"),
    "ranking": TaskRow(form="ranking", metric="ndcg", labels="array"),
    "regression": TaskRow(form="numbers", metric="within_tolerance", labels="numbers", are_labels_wanted=False),
    "seq2seq": TaskRow(form="tokens", metric="token_accuracy", labels="array"),
    "embedding": TaskRow(form="vectors", metric="neighbours", labels="none", are_labels_wanted=False),
}
"""Every task whose models answer with arrays."""

_SHAPES: Mapping[Form, tuple[tuple[int, ...], str]] = {
    "classes": ((2,), "floats [batch, classes], or [batch, 1] for the second of two classes"),
    "labels": ((2,), "floats [batch, labels], a number for each label by itself"),
    "boxes": ((3,), "floats [batch, boxes, ...], laid out as model.decoding.layout says"),
    "text": ((3,), "floats [batch, steps, characters]"),
    "mask": ((3, 4, 5), "floats [batch, classes, height, width]; a single class is one of two"),
    "ranking": ((2,), "floats [batch, items], a number for each item"),
    "numbers": ((1, 2, 3, 4, 5), "floats"),
    "tokens": ((2,), "floats [batch, tokens], the probability of each token of another output"),
    "vectors": ((2, 3), "floats [batch, size], or [batch, tokens, size], which are averaged over the tokens"),
}


def fits(form: Form, spec: TensorSpec) -> bool:
    """Say whether an output can hold answers of a form."""
    if not spec.datatype.startswith("FP") or len(spec.shape) not in _SHAPES[form][0]:
        return False
    return form not in ("classes", "labels", "ranking") or spec.shape[1] >= (2 if form == "ranking" else 1)


def scored_output(task: Task, outputs: Sequence[TensorSpec], wanted: str, *, besides: str = "") -> TensorSpec:
    """Return the output that is scored: the one that is wanted, else the only one that fits the task by its shape, or
    of those that do the only one that is called as such outputs are.

    Args:
        besides: an output that is for something else.

    Raises:
        CompileError: there is none, or more than one; the message lists every output with its shape.
    """
    form = TASKS[task].form
    listed = listing(outputs)
    if wanted:
        found = [spec for spec in outputs if spec.name == wanted]
        if not found:
            raise CompileError(f"model.output: no output {wanted!r}; the model has {listed}")
        if not fits(form, found[0]):
            raise CompileError(
                f"model.output: output {wanted!r} is {found[0].datatype}{list(found[0].shape)}, but task {task!r} "
                f"reads {_SHAPES[form][1]}. {_advice(task, outputs)}"
            )
        return found[0]
    found = [spec for spec in outputs if fits(form, spec) and spec.name != besides]
    named = [spec for spec in found if any(word in spec.name.lower() for word in _USUAL_NAMES)]
    for several in (found, [spec for spec in found if spec not in _auxiliary(found)], named):
        if len(several) == 1:
            return several[0]
    if not found:
        raise CompileError(
            f"model.output: task {task!r} reads {_SHAPES[form][1]}, and no output of the model is that; it has "
            f"{listed}. {_advice(task, outputs)}"
        )
    raise CompileError(f"model.output: name the output to be scored; task {task!r} could read several: {listed}")


_USUAL_NAMES = ("logits", "probabilit", "scores", "output", "prediction", "identity", "embedding", "hidden_state")


def _auxiliary(found: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return outputs of one column beside an output of several: a value beside the scores of classes."""
    wide = [spec for spec in found if len(spec.shape) == 2 and spec.shape[1] > 1]
    return [spec for spec in found if len(spec.shape) == 2 and spec.shape[1] == 1] if wide else []


def _advice(task: Task, outputs: Sequence[TensorSpec]) -> str:
    others = [name for name, row in TASKS.items() if name != task and any(fits(row.form, spec) for spec in outputs)]
    return (
        f"Set model.task to what the model is for ({', '.join(others)} could read it), or name another output in "
        "model.output"
        if others
        else "Its outputs have to be floats with the batch first"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judges the answers of one recipe's models.

    Attributes:
        task: whose defaults count.
        decoder: reads the scored output.
        metric: of the table, or the author's own as one.
        name: of the metric in the table, or ``module:function``.
        correct: the author's function for a right answer; None takes what the metric says.
        correct_name: ``module:function`` of that, "" for none.
        right_at: score of the metric from which a row is right.
        labels: names of the classes, or of the characters.
    """

    task: Task
    decoder: Decoder
    metric: Metric
    name: str
    right_at: float
    correct: Function | None = None
    correct_name: str = ""
    labels: tuple[str, ...] = ()

    def with_probe(self, output: str) -> Judge:
        """Return the same with an output by which the model itself says how sure it is."""
        return replace(self, decoder=replace(self.decoder, probe=output))

    @property
    def is_ready_made(self) -> bool:
        """Say whether the metric is one of the table."""
        return self.name in METRICS

    @property
    def is_right_when_equal(self) -> bool:
        """Say whether answers are classes, and right when they are their label."""
        return self.decoder.decoding.form == "classes" and self.name == "accuracy" and self.correct is None

    @property
    def label_form(self) -> LabelForm:
        """Return what the labels look like: whatever the author's own functions take, beyond a classifier's."""
        form = TASKS[self.task].labels
        return "array" if form != "classes" and not (self.is_ready_made and self.correct is None) else form

    @property
    def takes_tokens(self) -> bool:
        """Say whether labels that are texts have to become tokens first."""
        return self.decoder.decoding.form == "tokens" and self.is_ready_made

    @property
    def right_words(self) -> str:
        """Say by what an answer is right."""
        return self.correct_name or f"{self.name} >= {self.right_at:g}"

    def metric_name(self, *, has_labels: bool) -> str:
        """Return what the mean of the rows' scores is called."""
        return self.metric.called(has_labels=has_labels)

    def references(self, labels: Array | None) -> Array | None:
        """Return labels as the metric takes them; None where there are none.

        Raises:
            InvalidInput: labels of another form.
        """
        form = self.decoder.decoding.form
        if labels is None or not (self.is_ready_made or self.correct is None):
            return labels
        if form == "text" and labels.dtype.kind in "OU":
            return _spelt(labels, self.labels)
        if not _are_labels(form, labels):
            raise InvalidInput(
                f"data.labels: {labels.dtype} {list(labels.shape)}; task {self.task!r} takes {_LABELS[form]}. Or judge "
                "answers by your own model.metric and model.correct",
                field="data.labels",
            )
        return labels

    def scores(
        self, outputs: Mapping[str, Array], reference: Mapping[str, Array], labels: Array | None, mask: Array | None
    ) -> Floats:
        """Score each row [N] from 0 to 1: by its label, or by the reference model's answer.

        Args:
            outputs: of the candidate, by name.
            reference: of its reference.
            labels: as :meth:`references` gives them; None for none.
            mask: ``attention_mask``, by which an embedding of tokens is averaged; None averages all.

        Raises:
            InvalidInput: an output that the decoding cannot read; the author's function failed or gave something else.
        """
        answers = self._read(outputs, mask)
        if labels is not None and (TASKS[self.task].are_labels_wanted or not self.is_ready_made):
            return self._measured(answers, labels)
        return self._measured(answers, self._read(reference, mask))

    def agreement(self, outputs: Mapping[str, Array], reference: Mapping[str, Array], mask: Array | None) -> Floats:
        """Score each row [N] by how near it is to what another model answered."""
        if self.is_ready_made:
            return self.scores(outputs, reference, None, mask)
        return self.same(outputs, reference).astype(np.float64)

    def same(self, edge: Mapping[str, Array], cloud: Mapping[str, Array]) -> Rows:
        """Say which rows [N] two models answered alike, as a device does that audits."""
        return self.decoder.same(self.decoder.answers(edge), self.decoder.answers(cloud))

    def right(self, outputs: Mapping[str, Array], labels: Array) -> Rows:
        """Say which rows [N] are right by their labels.

        Raises:
            InvalidInput: as :meth:`scores`; a metric of the table that does not compare with labels.
        """
        answers = self.decoder.answers(outputs)
        if self.correct is not None:
            return checked(self.correct(answers, labels), len(answers), self.correct_name) >= 0.5
        if self.is_ready_made and not TASKS[self.task].are_labels_wanted:
            raise InvalidInput(
                f"model.correct: {self.name} does not compare with labels; write model.correct, or set "
                'certificate.harm = "disagreement"',
                field="model.correct",
            )
        return self._measured(answers, labels) >= self.right_at

    def _measured(self, answers: Answers, wanted: Answers) -> Floats:
        is_elementwise = self.is_ready_made and self.decoder.decoding.form in ("labels", "mask", "ranking", "numbers")
        if is_elementwise and answers.size != wanted.size:
            raise InvalidInput(
                f"data.labels: {list(wanted.shape)}, but the model answers {list(answers.shape)}", field="data.labels"
            )
        return checked(self.metric.function(answers, wanted), len(answers), self.name)

    def _read(self, outputs: Mapping[str, Array], mask: Array | None) -> Answers:
        answers = self.decoder.answers(outputs)
        return pooled(answers, mask) if self.decoder.decoding.form == "vectors" else answers


def mask_of(inputs: Mapping[str, Array]) -> Array | None:
    """Return the input that says which tokens of a row count; None where there is none."""
    return inputs.get(_ATTENTION_MASK)


def checked(found: Any, rows: int, name: str) -> Floats:
    """Check what a metric gave.

    Raises:
        InvalidInput: not a number from 0 to 1 for each row.
    """
    try:
        scores = np.asarray(found).astype(np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(
            f"{name}: gave {type(found).__name__}, expected one number for each row", field=name
        ) from None
    if scores.shape != (rows,):
        raise InvalidInput(f"{name}: gave shape {list(scores.shape)}, expected [{rows}], a number a row", field=name)
    outside = np.flatnonzero(~((scores >= -_ROUNDING) & (scores <= 1 + _ROUNDING)))  # NaN too
    if len(outside):
        raise InvalidInput(
            f"{name}: gave {scores[outside[0]]:g} for row {outside[0]} ({len(outside)} of {rows} rows are outside), "
            "expected 0 to 1",
            field=name,
        )
    return np.clip(scores, 0.0, 1.0)


def _are_labels(form: Form, labels: Array) -> bool:
    numbers, shape = labels.dtype.kind in "biuf", labels.shape
    match form:
        case "boxes":
            return numbers and len(shape) == 3 and shape[2] == 5
        case "text" | "tokens":
            return labels.dtype.kind in "iu" and len(shape) == 2
        case "mask":
            return labels.dtype.kind in "biu" and len(shape) >= 2
        case "labels" | "ranking":
            return numbers and len(shape) == 2
        case _:
            return numbers


def _spelt(words: Array, characters: Sequence[str]) -> Array:
    """Return words as the numbers of their characters [N, length], filled up with -1; unknown ones are -2."""
    if not characters:
        raise InvalidInput(
            "model.labels: the labels are words; name the characters in the order of the output's classes",
            field="model",
        )
    number = {character: at for at, character in enumerate(characters)}
    rows = [[number.get(character, -2) for character in str(word)] for word in words.ravel().tolist()]
    spelt = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for at, row in enumerate(rows):
        spelt[at, : len(row)] = row
    return spelt


def share(rows: Rows | Floats) -> Share:
    """Average the rows' scores, with a 95% interval: exact (Clopper-Pearson) where all are 0 or 1, else normal, widened
    by half a row.
    """
    n, scores = len(rows), np.asarray(rows, dtype=np.float64)
    count = int(np.count_nonzero(scores))
    if ((scores == 0) | (scores == 1)).all():
        low, high = clopper_pearson(count, n, _INTERVAL_DELTA)
        return Share(value=count / n, low=low, high=high, n=n)
    value = float(scores.mean())
    spread = _Z95 * float(scores.std()) / math.sqrt(n) + 0.5 / n
    return Share(value=value, low=max(value - spread, 0.0), high=min(value + spread, 1.0), n=n)


def pooled(outputs: Array, mask: Array | None) -> NDArray[np.float64]:
    """Return unit vectors [N, H] of embeddings [N, H], or of tokens [N, T, H] averaged where ``mask`` [N, T] is 1."""
    values = outputs.astype(np.float64)
    if values.ndim == 3:
        weights = np.ones(values.shape[:2]) if mask is None else mask.astype(np.float64)
        values = (values * weights[..., None]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)[:, None]
    return metrics.unit(values)


def ranking_kept(outputs: Array, reference: Array, mask: Array | None) -> float:
    """Correlate the ranks of all pairwise similarities of at most 512 rows (Spearman): 1 keeps every ranking."""
    ranks = []
    for values in (outputs[:512], reference[:512]):
        vectors = pooled(values, None if mask is None else mask[:512])
        pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        ranks.append(np.argsort(np.argsort(pairs)).astype(np.float64))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(ranks[0]) > 1 else 1.0
