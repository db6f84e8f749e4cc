"""What a scored output says: classes, sets of labels, boxes, text, masks, rankings, numbers, vectors or tokens.

Decides how an output becomes answers, when two answers are the same, and how sure the model is of each one. A
certificate is made with these functions and devices serve and audit with them, so that both see the same answers. What
makes an answer good is the compiler's business (``compiler.measure.metrics``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.policy import boxes, confidence, ctc, masks, tokens
from penstock.policy.boxes import Layout
from penstock.policy.confidence import Kind

Array = NDArray[Any]
Floats = NDArray[np.float64]
Answers = NDArray[Any]
"""One answer a row [N, ...]; what is left empty in a row of boxes, of text or of tokens is -1."""

Form = Literal["classes", "labels", "boxes", "text", "mask", "ranking", "numbers", "vectors", "tokens"]

PART_SCORES: Mapping[str, str] = {
    "part_min": "smallest probability of a part of the answer: a box, a character, a token, a label, a pixel",
    "part_q10": "probability that nine of ten parts reach (10% quantile)",
    "part_mean": "geometric mean probability of the parts (likelihood, however many there are)",
}
"""Scores of answers that have several parts. In [0, 1]; larger is more confident."""

SCORES: Mapping[str, str] = {
    **confidence.SCORES,
    **PART_SCORES,
    **confidence.LEARNED_SCORES,
}
"""Every score that a device can compute."""

_QUANTILES: Mapping[str, str] = {"part_min": "token_min", "part_q10": "token_q10", "part_mean": "token_mean"}
_EMPTY = -1
_ANSWERS = "<answers>"


class DecodingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a scored output is read; each form of answer uses some of these.

    Attributes:
        threshold: probability from which a box, a label or a pixel counts; 0 takes 0.25 for boxes, else 0.5.
        layout: of boxes. "rows": [N, K, 6] of x1, y1, x2, y2, score, class. "yolo": [N, 4 + classes, K] of centre,
            width, height and a score a class. "yolo-objectness": [N, K, 5 + classes], the fifth the box's own score.
        suppress: overlap (IoU) from which the less sure of two boxes of a class is left out, for the yolo layouts.
        overlap: IoU from which two boxes, or two masks, are the same.
        blank: class of text that stands for no character; -1 is the last one.
        within: largest difference of two numbers that are the same.
        similarity: cosine from which two vectors are the same.
        tokens: output with the generated tokens, of which the scored one has the probabilities (0 behind a row's end).
        skip: generated tokens that are no text, by number: ends and the like. Two answers that differ in them alone are
            the same. An encoder-decoder's export says which they are.
    """

    threshold: float = 0.0
    layout: Layout = "rows"
    suppress: float = 0.45
    overlap: float = 0.5
    blank: int = 0
    within: float = 0.0
    similarity: float = 0.95
    tokens: str = "token_ids"
    skip: tuple[int, ...] = ()


class Decoding(DecodingSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The settings with the form of the answers, as a variant carries them."""

    form: Form = "classes"


CLASSES = Decoding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Reads one output.

    Attributes:
        output: its name.
        kind: whether it holds logits or probabilities.
        probe: name of an output [N] or [N, 1] in [0, 1] by which the model itself says how sure it is; "" for none.
    """

    output: str
    kind: Kind
    decoding: Decoding = CLASSES
    probe: str = ""

    @property
    def scores(self) -> tuple[str, ...]:
        """List the scores that these outputs can have, the simplest first; () where nothing says how sure they are."""
        own = tuple(confidence.LEARNED_SCORES) if self.probe else ()
        found = tuple(confidence.SCORES) if self.has_temperature else _FORMS[self.decoding.form].scores
        return tuple(name for name in found if not (name == "energy" and self.kind == "probabilities")) + own

    @property
    def has_temperature(self) -> bool:
        """Say whether the output holds one distribution a row, which a temperature can sharpen."""
        return self.decoding.form in ("classes", "ranking")

    @property
    def outputs(self) -> tuple[str, ...]:
        """List the outputs that are read."""
        return (*self.answered_by, self.probe) if self.probe else self.answered_by

    @property
    def answered_by(self) -> tuple[str, ...]:
        """List the outputs that hold the answers."""
        return (self.output, self.decoding.tokens) if self.decoding.form == "tokens" else (self.output,)

    def reduced(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Read now what is asked later, where outputs are large: boxes, text and masks a thousand times their answers.

        Every other method takes what this gives in the place of the outputs.

        Raises:
            InvalidInput: an output of another shape than the form needs.
        """
        if not _FORMS[self.decoding.form].scores:
            return {name: outputs[name] for name in self.outputs}
        scores = {_kept(name): self.score(outputs, name=name) for name in self.scores}
        return {_ANSWERS: self.answers(outputs), **scores}

    def answers(self, outputs: Mapping[str, Array]) -> Answers:
        """Read the answers [N, ...] of the form that the decoding says.

        Raises:
            InvalidInput: an output of another shape than the form needs.
        """
        if _ANSWERS in outputs:
            return outputs[_ANSWERS]
        return _FORMS[self.decoding.form].read(self._values(outputs), self.kind, self.decoding)

    def same(self, one: Answers, other: Answers) -> NDArray[np.bool_]:
        """Say for each row [N] whether two models gave the same answer; the same both ways round."""
        return _FORMS[self.decoding.form].same(one, other, self.decoding)

    def score(self, outputs: Mapping[str, Array], *, name: str, temperature: float = 1.0) -> Floats:
        """Compute one confidence for each row.

        Returns:
            float64 [N] in [0, 1], or NaN for a row that says nothing usable.

        Raises:
            InvalidInput: a score that these outputs cannot have, or an output of another shape.
        """
        if _kept(name) in outputs:
            return np.asarray(outputs[_kept(name)], dtype=np.float64)
        values = self._values(outputs)
        if name in confidence.LEARNED_SCORES:
            own = outputs[self.probe]
            return confidence.learned_score(own.reshape(len(own)) if own.shape[1:] == (1,) else own, answers=values)
        if name in confidence.SCORES:
            return confidence.score(values, kind=self.kind, name=name, temperature=temperature)
        form = _FORMS[self.decoding.form]
        if name not in form.scores:
            raise InvalidInput(f"score: {name!r} cannot be had of {self.decoding.form}", field="score")
        found = confidence.token_score(form.parts(values, self.kind, self.decoding), name=_QUANTILES[name])
        return np.where(confidence.finite_rows(values), found, np.nan)

    def _values(self, outputs: Mapping[str, Array]) -> Array:
        scored = outputs[self.output]
        return tokens.paired(outputs[self.decoding.tokens], scored) if self.decoding.form == "tokens" else scored


def kind_of(values: Array, form: Form) -> Kind:
    """Tell by its values what a scored output holds: probabilities where each row is a distribution, or where every
    single number is in [0, 1] and none needs to make 1 with others.
    """
    numbers = np.asarray(values, dtype=np.float64)
    axis = {"classes": 1, "text": 2, "mask": 1}.get(form)
    if axis is None and form != "labels":
        return "logits"
    low, high = -confidence.DISTRIBUTION_TOLERANCE, 1 + confidence.DISTRIBUTION_TOLERANCE
    if not numbers.size or not ((numbers >= low) & (numbers <= high)).all():
        return "logits"
    if axis is None or numbers.shape[axis] == 1:
        return "probabilities"
    total = numbers.sum(axis=axis)
    return "probabilities" if (np.abs(total - 1) <= confidence.DISTRIBUTION_TOLERANCE).all() else "logits"


def joined(parts: Sequence[Answers]) -> Answers:
    """Put answers to several batches one behind the other; where one has longer rows, the others are filled up."""
    if len({part.shape[1:] for part in parts}) > 1:
        size = np.max([part.shape[1:] for part in parts], axis=0)
        parts = [_filled(part, size) for part in parts]
    return np.concatenate(parts)


def _kept(name: str) -> str:
    return f"<score {name}>"


def _filled(part: Answers, size: NDArray[np.integer[Any]]) -> Answers:
    room = [(0, 0), *((0, int(want) - have) for want, have in zip(size, part.shape[1:], strict=True))]
    return np.pad(part, room, constant_values=_EMPTY)


# --- classes and rankings


def _classes(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    del decoding
    return confidence.predicted(values, kind=kind)


def _equal(one: Answers, other: Answers, decoding: Decoding) -> NDArray[np.bool_]:
    del decoding
    if one.ndim == 1:
        return np.asarray(one == other)
    rows = joined([one, other])
    same = rows[: len(one)] == rows[len(one) :]
    return np.asarray(same.reshape(len(one), -1).all(axis=1))


def _as_given(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    del kind, decoding
    return np.asarray(values, dtype=np.float64)


def _same_first(one: Answers, other: Answers, decoding: Decoding) -> NDArray[np.bool_]:
    """Compare what two rankings put first, which is what a user sees."""
    del decoding
    return np.asarray(one.argmax(axis=1) == other.argmax(axis=1))


# --- sets of labels


def _label_sets(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    _check(values, 2, "labels", "[N, labels]")
    return np.asarray(confidence.each(values, kind=kind) >= (decoding.threshold or 0.5), dtype=np.uint8)


def _label_parts(values: Array, kind: Kind, decoding: Decoding) -> list[Floats]:
    _check(values, 2, "labels", "[N, labels]")
    p, threshold = confidence.each(values, kind=kind), decoding.threshold or 0.5
    return list(np.where(p >= threshold, p, 1 - p))


# --- boxes


def _boxes(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    del kind
    return boxes.found(values, layout=decoding.layout, threshold=decoding.threshold or 0.25, suppress=decoding.suppress)


def _same_boxes(one: Answers, other: Answers, decoding: Decoding) -> NDArray[np.bool_]:
    return np.array([boxes.are_same(a, b, overlap=decoding.overlap) for a, b in zip(one, other, strict=True)], bool)


def _box_parts(values: Array, kind: Kind, decoding: Decoding) -> list[Floats]:
    """Return the score of each box; of a picture without any, how far the best candidate is from being one."""
    read = _boxes(values, kind, decoding)
    best = boxes.best_scores(values, layout=decoding.layout)
    return [
        boxes.filled(row)[:, 5] if len(boxes.filled(row)) else np.array([1 - top])
        for row, top in zip(read, best, strict=True)
    ]


# --- text and masks


def _texts(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    del kind  # the largest is the largest
    return ctc.characters(values, blank=decoding.blank)


def _text_parts(values: Array, kind: Kind, decoding: Decoding) -> list[Floats]:
    return ctc.probabilities(values, kind=kind, blank=decoding.blank)


def _masks(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    return masks.classes(values, kind=kind, threshold=decoding.threshold or 0.5)


def _mask_parts(values: Array, kind: Kind, decoding: Decoding) -> list[Floats]:
    del decoding
    return list(masks.probabilities(values, kind=kind).max(axis=1))


def _same_masks(one: Answers, other: Answers, decoding: Decoding) -> NDArray[np.bool_]:
    if one.shape != other.shape:
        return np.zeros(len(one), dtype=np.bool_)
    return np.asarray(masks.overlap(one, other) >= decoding.overlap)


# --- generated tokens


def _tokens(values: Array, kind: Kind, decoding: Decoding) -> Answers:
    del kind
    return tokens.said(values, skip=decoding.skip)


def _token_parts(values: Array, kind: Kind, decoding: Decoding) -> list[Floats]:
    del kind, decoding
    return tokens.probabilities(values)


# --- numbers and vectors


def _same_numbers(one: Answers, other: Answers, decoding: Decoding) -> NDArray[np.bool_]:
    if one.shape != other.shape:
        return np.zeros(len(one), dtype=np.bool_)
    return np.asarray((np.abs(one - other) <= decoding.within).reshape(len(one), -1).all(axis=1))


def _same_vectors(one: Answers, other: Answers, decoding: Decoding) -> NDArray[np.bool_]:
    if one.shape != other.shape:
        return np.zeros(len(one), dtype=np.bool_)
    a, b = (values.reshape(len(values), -1) for values in (one, other))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(((a * b).sum(axis=1) >= decoding.similarity * lengths) & (lengths > 0))


def _no_parts(values: Array, kind: Kind, decoding: Decoding) -> list[Floats]:
    del kind, decoding
    return [np.zeros(0)] * len(values)


def _check(values: Array, ndim: int, form: str, expected: str) -> None:
    if values.ndim != ndim or values.dtype.kind not in "fiu":
        raise InvalidInput(f"{form}: {values.dtype} {list(values.shape)}, expected numbers {expected}", field="outputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class _FormRow:
    """What can be done with answers of one form."""

    read: Callable[[Array, Kind, Decoding], Answers]
    same: Callable[[Answers, Answers, Decoding], NDArray[np.bool_]]
    parts: Callable[[Array, Kind, Decoding], list[Floats]] = _no_parts
    scores: tuple[str, ...] = ()


_FORMS: Mapping[Form, _FormRow] = {
    "classes": _FormRow(read=_classes, same=_equal),
    "labels": _FormRow(read=_label_sets, same=_equal, parts=_label_parts, scores=tuple(PART_SCORES)),
    "boxes": _FormRow(read=_boxes, same=_same_boxes, parts=_box_parts, scores=tuple(PART_SCORES)),
    "text": _FormRow(read=_texts, same=_equal, parts=_text_parts, scores=tuple(PART_SCORES)),
    "mask": _FormRow(read=_masks, same=_same_masks, parts=_mask_parts, scores=tuple(PART_SCORES)),
    "ranking": _FormRow(read=_as_given, same=_same_first),
    "numbers": _FormRow(read=_as_given, same=_same_numbers),
    "vectors": _FormRow(read=_as_given, same=_same_vectors),
    "tokens": _FormRow(read=_tokens, same=_equal, parts=_token_parts, scores=tuple(PART_SCORES)),
}
