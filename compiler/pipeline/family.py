"""What a compilation asks of a kind of models: the port between the one pipeline and the families of models.

A family is models that are made, asked and judged alike: those that answer with arrays (``compiler.pipeline.arrays``),
and language models (``compiler.pipeline.language``). The order of things is not theirs: it is
``compiler.pipeline.compilation``. ``compilation.FAMILIES`` has a row for each task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from compiler.artifact.evaluation import Share, Speed, SplitFigures
from compiler.certificate.evidence import Sample
from compiler.certificate.issue import Answered
from compiler.pipeline.cached_steps import CachedSteps
from compiler.pipeline.candidates import Candidate, Chosen, Contest, Goal
from compiler.progress import Doing
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.recipes import Recipe
from penstock.artifact.certificates import Opinion
from penstock.artifact.layout import VariantDraft

Use = Literal["tune", "certify", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What candidates of a family are judged by.

    Attributes:
        metric: what the share of good answers is called.
        max_drop: the recipe's budget, for the gate and for the evaluation.
        advice: what a recipe's author can do where no candidate keeps it.
        judged_by: by what rows were scored and right, for the evaluation.
        correct: by what an answer is right, for the certificate; "" where it is equal to its label.
        opinion: whose grades answers have; None where they are right or wrong.
    """

    metric: str
    max_drop: float
    advice: str
    judged_by: Mapping[str, str] = field(default_factory=dict)
    correct: str = ""
    opinion: Opinion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What one model does on the test split.

    Attributes:
        quality: share of rows answered well.
        agreement: share of rows answered as the cloud does.
        speed: None where it cannot be run here.
        ranking: for embeddings, how well the order of similarities is kept.
        reference: of the cloud's model, how the rows were distributed; b"" for none.
    """

    quality: Share
    agreement: Share
    speed: Speed | None
    ranking: float | None = None
    reference: bytes = b""


class Family(Protocol):
    """The models and examples of one recipe, loaded.

    Attributes:
        splits: the examples of each use.
        sources: how each role's model came to be, in words.
        preprocessing: what becomes of raw data before it is an input; a certificate binds it.
        sample: what the certifying examples are.
        units: how many of them are tested: examples, or clusters.
        repeats: what was found of examples that repeat or belong together, in a sentence; "" for nothing.
        terms: what candidates are judged by.
        cloud: the model that answers what the device is not sure of.
    """

    splits: Mapping[str, SplitFigures]
    sources: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    sample: Sample
    units: int
    repeats: str
    terms: Terms
    cloud: Candidate

    @classmethod
    def load(cls, steps: CachedSteps, recipe: Recipe, *, promise: CertificateSection | None, smoke: bool) -> Self:
        """Read the examples and every model that needs no building, and check that they fit each other.

        Args:
            promise: what the certifying examples have to be enough for, found out as soon as they are read; None where
                nothing is refused for want of examples.
            smoke: take few examples, and try few candidates.

        Raises:
            CalibrationError: too few certifying examples.
            InvalidInput, CompileError, ConfigError, MissingToolchain: what does not fit, and what was expected.
        """
        ...

    @staticmethod
    def examples_digest(recipe: Recipe) -> str:
        """Return the content of the examples that a recipe names.

        Raises:
            InvalidInput: there are none, or they cannot be read.
        """
        ...

    def candidates(self, goal: Goal) -> Contest:
        """Make and measure every candidate for a goal, on examples that certify nothing.

        Raises:
            CompileError: the float parent itself fails.
        """
        ...

    def probed(self, chosen: Chosen) -> Chosen:
        """Give the chosen candidate a head for its confidence, where that is asked for and helps.

        Raises:
            CalibrationError, CompileError: the recipe names that score, and the candidate cannot have it.
        """
        ...

    def draft(self, chosen: Chosen) -> VariantDraft:
        """Make the chosen candidate ready to pack; where its target has an engine of its own, build that.

        Raises:
            CompileError, MissingToolchain: the engine cannot be built here, or golden outputs are not finite.
        """
        ...

    def cloud_draft(self) -> VariantDraft:
        """Make the cloud's model ready to pack.

        Raises:
            CompileError: its golden outputs are not finite.
        """
        ...

    def ask(self, candidate: Candidate, use: Use, doing: Doing) -> Answered:
        """Ask a candidate and the cloud the same examples, for a certificate.

        Raises:
            CompileError: one of them answers with what is no number.
        """
        ...

    def evaluate(self, candidate: Candidate, what: str, doing: Doing) -> Tested:
        """Describe a candidate, or the cloud, on the test split."""
        ...

    def further_figures(self, chosen: Sequence[Chosen]) -> dict[str, Any]:
        """Return what only this family measures, for the evaluation; {} for nothing."""
        ...
