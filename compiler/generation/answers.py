"""What an edge and a cloud model answer to the same prompts, as the columns that a certificate looks at.

An answer is the text of a generation, normalised; two answers are the same when their normalised texts are. The score
of an answer comes from the edge's own token probabilities (``penstock.policy.confidence.token_score``). What is
promised of them is ``compiler.certificate.issue``, which needs to know nothing of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import score_choice
from compiler.certificate.columns import CertifyData, Graded
from compiler.certificate.score_choice import Choice
from compiler.generation import built_model
from compiler.generation.built_model import Answers, BuiltModel, Floats, Integers, Progress
from compiler.generation.prompts import PromptSet
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.generation_section import Generate
from penstock.artifact.certificates import Harm
from penstock.errors import CalibrationError
from penstock.policy.confidence import TOKEN_SCORES, token_score
from penstock.policy.text_answers import Normalisation, normalised


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnsweredPrompts:
    """Hold one entry a prompt [N]: a ``compiler.certificate.issue.Answered`` whose answers are texts.

    Attributes:
        scores: float [N] by name (``penstock.policy.confidence.TOKEN_SCORES``).
        probabilities: of the edge's tokens, from which scores are made.
        edge: ids of the edge's answers; equal where normalised texts are, within this set of prompts only.
        cloud: ids of the cloud's answers.
        labels: ids of the right answers, or None.
        groups: names, or None.
        clusters: integers, equal for prompts that belong together, or None.
        graded: how good answers are, by the recipe's metric; None where they are the same or not.
    """

    scores: Mapping[str, Floats]
    probabilities: tuple[Floats, ...]
    edge: Integers
    cloud: Integers
    labels: Integers | None
    groups: NDArray[np.str_] | None
    clusters: Integers | None = None
    graded: Graded | None = None

    def choose(self, promise: CertificateSection, *, rows_to_certify: int) -> Choice:
        """Choose among the scores of a sequence of tokens (``penstock.policy.confidence.TOKEN_SCORES``).

        Raises:
            CalibrationError: nothing can be chosen on these answers.
        """
        return score_choice.choose_token_score(
            self.probabilities,
            self.edge,
            self.cloud,
            self.labels,
            promise,
            groups=self.groups,
            clusters=self.clusters,
            graded=self.graded,
            rows_to_certify=rows_to_certify,
        )

    def certify_data(self, choice: Choice, *, harm: Harm) -> CertifyData:
        """Return the columns that a promise is certified on, by the score that was chosen.

        Raises:
            CalibrationError: harm is counted by labels, but no right answers are known.
        """
        if harm == "labels" and self.labels is None:
            raise CalibrationError('the prompts have no answers; give some, or set certificate.harm = "disagreement"')
        return CertifyData(
            scores=self.scores[choice.score],
            edge_predictions=self.edge,
            cloud_predictions=self.cloud,
            labels=self.labels if harm == "labels" else None,
            groups=self.groups,
            clusters=self.clusters,
            graded=self.graded,
        )

    def sure_and_right(self, temperature: float) -> None:
        """Return None: a sequence of tokens has no single probability of being right."""


def answer_prompts(
    edge: BuiltModel,
    cloud: BuiltModel,
    prompts: PromptSet,
    settings: Generate,
    *,
    normalisation: Normalisation = "whitespace",
    progress: Progress | None = None,
) -> AnsweredPrompts:
    """Ask both models the same prompts. Each reads them with its own tokenizer; the two need not share one.

    Raises:
        ConfigError, CompileError, MissingToolchain: from :func:`compiler.generation.built_model.answers`.
    """
    said = [built_model.answers(model, prompts.prompts, settings, progress=progress) for model in (edge, cloud)]
    return columns(said[0], said[1], prompts, normalisation=normalisation)


def columns(
    edge: Answers,
    cloud: Answers,
    prompts: PromptSet,
    *,
    normalisation: Normalisation,
    graded: Graded | None = None,
) -> AnsweredPrompts:
    """Compare what two models said to the same prompts, without asking anybody."""
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
        clusters=prompts.clusters,
        graded=graded,
    )
