"""What an edge and a cloud model choose among the same options, as the columns that a certificate looks at.

The options of a prompt are those of the recipe, or the prompt's own. Which one a model chooses, and how likely it finds
each, is what the engine that serves says (``compiler.generation.serving_engine``); an answer is as sure as a classifier
whose classes the options are (``penstock.policy.choices``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import score_choice
from compiler.certificate.columns import CertifyData
from compiler.certificate.score_choice import Choice
from compiler.generation import serving_engine
from compiler.generation.built_model import BuiltModel, Floats, Integers, Progress
from compiler.generation.prompts import PromptSet
from compiler.generation.serving_engine import Asked
from compiler.recipe.certificate_section import AUTO, CertificateSection
from penstock.artifact.certificates import Harm
from penstock.errors import CalibrationError, CompileError, ConfigError, InvalidInput
from penstock.generation.choices import MAX_OPTIONS
from penstock.policy.choices import CHOICE_SCORES, choice_score
from penstock.policy.confidence import TOKEN_SCORES
from penstock.policy.text_answers import Normalisation, normalised


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """What a model chose among options: one entry a prompt.

    Attributes:
        texts: the chosen options, as the texts of answers.
        logprobs: natural logarithm of the probability of each option as a whole answer, in their order.
    """

    texts: tuple[str, ...]
    logprobs: tuple[Floats, ...]


_NO_OPTION = -1e9  # fills up rows with fewer options than others: of weight 0 at every temperature


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnsweredChoices:
    """Hold one entry a prompt [N]: a ``compiler.certificate.issue.Answered`` whose answers are options.

    Attributes:
        logprobs: of each option, by the edge's model.
        edge: ids of the edge's answers; equal where normalised texts are, within this set of prompts only.
        cloud: ids of the cloud's answers.
        labels: ids of the right answers, or None.
        classes: places of the right options in ``logprobs``, of the cloud's where nobody knows what is right.
        groups: names, or None.
        clusters: integers, equal for prompts that belong together, or None.
    """

    logprobs: tuple[Floats, ...]
    edge: Integers
    cloud: Integers
    labels: Integers | None
    classes: Integers
    groups: NDArray[np.str_] | None
    clusters: Integers | None = None

    def choose(self, promise: CertificateSection, *, rows_to_certify: int) -> Choice:
        """Choose temperature, score and thresholds, as for a classifier.

        Raises:
            CalibrationError: nothing can be chosen on these answers.
        """
        score_choice.check_labels(promise.harm, self.labels)
        temperature, note = score_choice.temperature_of(_filled(self.logprobs), self.classes, "logits")
        scores = {name: self._scores(name, temperature) for name in CHOICE_SCORES}
        data = self._columns(scores["max_prob"], promise.harm)
        return score_choice.choose_among(
            scores, data, promise, rows_to_certify=rows_to_certify, temperature=temperature, note=note
        )

    def certify_data(self, choice: Choice, *, harm: Harm) -> CertifyData:
        """Return the columns that a promise is certified on, by the score that was chosen.

        Raises:
            CalibrationError: harm is counted by labels, but no right answers are known.
        """
        if harm == "labels" and self.labels is None:
            raise CalibrationError('the prompts have no answers; give some, or set certificate.harm = "disagreement"')
        return self._columns(self._scores(choice.score, choice.temperature), harm)

    def sure_and_right(self, temperature: float) -> tuple[Floats, NDArray[np.bool_]] | None:
        """Return the renormalised probability of each chosen option, and whether it is right."""
        if self.labels is None:
            return None
        return self._scores("max_prob", temperature), np.asarray(self.edge == self.labels)

    def _scores(self, name: str, temperature: float) -> Floats:
        return np.array([choice_score(row.tolist(), name=name, temperature=temperature) for row in self.logprobs])

    def _columns(self, scores: Floats, harm: Harm) -> CertifyData:
        return CertifyData(
            scores=scores,
            edge_predictions=self.edge,
            cloud_predictions=self.cloud,
            labels=self.labels if harm == "labels" else None,
            groups=self.groups,
            clusters=self.clusters,
        )


def chosen(
    model: BuiltModel,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    stop: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Chosen:
    """Ask which option of each prompt a model finds likeliest, as a whole answer.

    Args:
        stop: strings of which any ends an answer, beside the model's own end.

    Raises:
        CompileError: a prompt that is too long for the model or options that cannot be scored (named by its number), or
            a model that is asked by an engine that scores none.
    """
    check_engine(model)
    with Asked(model.directory, timeout_s=model.timeout_s) as asked:
        said = asked.chosen(prompts, options, stop=stop, progress=progress or _unwatched)
    return Chosen(texts=tuple(text for text, _ in said), logprobs=tuple(np.array(row, np.float64) for _, row in said))


def check_engine(model: BuiltModel) -> None:
    """Check that a model is asked by an engine that scores options.

    Raises:
        CompileError: it is not.
    """
    if model.in_toolchain or not serving_engine.scores_options(model.directory):
        raise CompileError(f"{model.directory.name}: {serving_engine.SCORES_NONE}")


def check_score(score: str, *, are_options: bool) -> None:
    """Check that the score that a recipe names is one that its answers can have, before anything is built.

    Raises:
        ConfigError: it is not; the message lists those that are.
    """
    known = CHOICE_SCORES if are_options else TOKEN_SCORES
    if score != AUTO and score not in known:
        what = "answers among options" if are_options else "answers in free text"
        raise ConfigError(f"certificate.score: {what} have no {score!r}; they have {', '.join(known)}")


def options_of(
    prompts: PromptSet, fixed: tuple[str, ...], *, stop: Sequence[str], normalisation: Normalisation
) -> tuple[tuple[str, ...], ...]:
    """Return the options of each prompt: the recipe's, or its own; () where answers are free text.

    Raises:
        ConfigError: the recipe's are none that can be scored, or recipe and prompts both have some. InvalidInput: which
            prompt's are none, or whose right answer is none of them.
    """
    if not fixed and not prompts.choices:
        return ()
    if fixed and prompts.choices:
        raise ConfigError("generation.choices: the prompts have choices of their own; name them in one place")
    if fixed and (why := _problem(fixed, stop, normalisation)):
        raise ConfigError(f"generation.choices: {why}")
    options = prompts.choices or (fixed,) * len(prompts)
    for row, (prompt, texts) in enumerate(zip(prompts.rows, options, strict=True)):
        why = "" if fixed else _problem(texts, stop, normalisation)
        if prompt.answer is not None and _known(prompt.answer, texts, normalisation) is None:
            why = why or f"the right answer, {prompt.answer[:60]!r}, is none of them"
        if why:
            raise InvalidInput(f"prompts: choices of {prompt.prompt[-60:]!r} ({prompts.name}, {row}): {why}",
                               field="data.source")  # fmt: skip
    return options


def columns(
    edge: Chosen,
    cloud: Chosen,
    prompts: PromptSet,
    options: Sequence[Sequence[str]],
    *,
    normalisation: Normalisation,
) -> AnsweredChoices:
    """Compare what two models chose, without asking anybody."""
    ids: dict[str, int] = {}

    def numbered(texts: Sequence[str]) -> Integers:
        found = [ids.setdefault(normalised(text, normalisation), len(ids)) for text in texts]
        return np.array(found, dtype=np.int64)

    wanted = cloud.texts if prompts.answers is None else prompts.answers
    places = [_known(text, texts, normalisation) for text, texts in zip(wanted, options, strict=True)]
    return AnsweredChoices(
        logprobs=edge.logprobs,
        edge=numbered(edge.texts),
        cloud=numbered(cloud.texts),
        labels=None if prompts.answers is None else numbered(prompts.answers),
        classes=np.array([place or 0 for place in places], dtype=np.int64),
        groups=prompts.groups,
        clusters=prompts.clusters,
    )


def _unwatched(share: float, note: str) -> None:
    """Take progress that nobody watches."""


def _known(text: str, options: Sequence[str], how: Normalisation) -> int | None:
    """Return the place of an answer among options; None where it is none of them."""
    wanted = normalised(text, how)
    return next((at for at, option in enumerate(options) if normalised(option, how) == wanted), None)


def _problem(options: Sequence[str], stop: Sequence[str], how: Normalisation) -> str:
    """Say what is wrong with options; "" where nothing is."""
    if not 2 <= len(options) <= MAX_OPTIONS:
        return f"{len(options)} options; expected 2 to {MAX_OPTIONS}"
    if not all(options):
        return "one is empty"
    if stopped := [text for text in options if any(one in text for one in stop)]:
        return f"{stopped[0][:60]!r} holds a string at which answers stop"
    names = [normalised(text, how) for text in options]
    if len(set(names)) < len(names):
        twice = next(text for text, name in zip(options, names, strict=True) if names.count(name) > 1)
        return f"{twice[:60]!r} counts as the same answer as another one"
    return ""


def _filled(rows: Sequence[Floats]) -> Floats:
    """Return rows of different lengths as one array."""
    filled = np.full((len(rows), max(2, *map(len, rows))), _NO_OPTION)
    for at, row in enumerate(rows):
        filled[at, : len(row)] = row
    return filled
