"""What an edge and a cloud model answer to the same prompts, as the columns that a certificate looks at.

An answer is the text of a generation, normalised; two answers are the same when their normalised texts are. The score
of an answer comes from the edge's own token probabilities (``penstock.policy.confidence.token_score``). What is
promised of them is ``compiler.certificate.score_choice`` and ``compiler.certificate.certify``, which need to know
nothing of text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.columns import CertifyData
from compiler.generation import measure
from compiler.generation.measure import Answers, Floats, Integers, Model, Progress
from compiler.generation.prompts import PromptSet
from compiler.recipe.choices import Normalisation
from compiler.recipe.generation_section import Generate
from penstock.artifact.certificates import Harm
from penstock.errors import CalibrationError
from penstock.policy.confidence import TOKEN_SCORES, token_score

_NOT_WORDS = re.compile(r"[^\w\s]|_")
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnsweredPrompts:
    """One entry a prompt [N]; ids are equal where normalised texts are, within this set of prompts only.

    Attributes:
        scores: float [N] by name (``penstock.policy.confidence.TOKEN_SCORES``).
        probabilities: of the edge's tokens, for ``compiler.certificate.score_choice.choose_sequences``.
        labels: ids of the right answers, or None.
    """

    scores: Mapping[str, Floats]
    probabilities: tuple[Floats, ...]
    edge: Integers
    cloud: Integers
    labels: Integers | None
    groups: NDArray[np.str_] | None
    edge_texts: tuple[str, ...]
    cloud_texts: tuple[str, ...]

    def certify_data(self, name: str, *, harm: Harm) -> CertifyData:
        """As ``compiler.certificate.certify`` takes it, by the score of that name.

        Raises:
            CalibrationError: harm by labels, but no answers are known.
        """
        if harm == "labels" and self.labels is None:
            raise CalibrationError('the prompts have no answers; give some, or set certificate.harm = "disagreement"')
        return CertifyData(
            scores=self.scores[name],
            edge_predictions=self.edge,
            cloud_predictions=self.cloud,
            labels=self.labels if harm == "labels" else None,
            groups=self.groups,
        )


def answer_prompts(
    edge: Model,
    cloud: Model,
    prompts: PromptSet,
    settings: Generate,
    *,
    normalisation: Normalisation = "whitespace",
    progress: Progress | None = None,
) -> AnsweredPrompts:
    """Ask both models. Each reads the prompts with its own tokenizer; the two need not share one.

    Raises:
        ConfigError, CompileError, MissingToolchain: from :func:`compiler.generation.measure.answers`.
    """
    said = [measure.answers(model, prompts.prompts, settings, progress=progress) for model in (edge, cloud)]
    return columns(said[0], said[1], prompts, normalisation=normalisation)


def columns(edge: Answers, cloud: Answers, prompts: PromptSet, *, normalisation: Normalisation) -> AnsweredPrompts:
    """Pure part of :func:`answer_prompts`."""
    ids: dict[str, int] = {}

    def numbered(texts: Sequence[str]) -> Integers:
        found = [ids.setdefault(normalised(text, normalisation), len(ids)) for text in texts]
        return np.array(found, dtype=np.int64)

    return AnsweredPrompts(
        scores={name: token_score(edge.probabilities, name=name) for name in TOKEN_SCORES},
        probabilities=edge.probabilities,
        edge=numbered(edge.texts),
        cloud=numbered(cloud.texts),
        labels=None if prompts.answers is None else numbered(prompts.answers),
        groups=prompts.groups,
        edge_texts=edge.texts,
        cloud_texts=cloud.texts,
    )


def normalised(text: str, how: Normalisation) -> str:
    """A form in which two answers that mean the same are the same.

    ``whitespace``: Unicode NFC, outer whitespace gone and inner runs of it one space; suits code. ``words``: besides,
    NFKC, lower case, no punctuation, no English articles; suits short answers to questions (as SQuAD scores them).
    """
    if how == "whitespace":
        return " ".join(unicodedata.normalize("NFC", text).split())
    words = _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()
    return " ".join(word for word in words if word not in _ARTICLES)
