"""The family of language models: built in a toolchain or before, judged by perplexity, certified on whole answers.

Owns what is measured of a built model, and how prompts are asked. Models answer in words, so a candidate is judged by
the perplexity that it costs, and a cascade by answers that are the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import msgspec
import numpy as np

from compiler import sources
from compiler.artifact import pack
from compiler.artifact.evaluation import Share, SplitFigures
from compiler.data.dataset import Repeats
from compiler.generation import answers, built_directory, built_model, choices, compare, golden_answers, prompts
from compiler.generation.answers import AnsweredPrompts
from compiler.generation.built_model import Answers
from compiler.generation.choices import AnsweredChoices
from compiler.generation.prompts import PromptSet
from compiler.measure import cost, gate, quality
from compiler.passes import genai
from compiler.pipeline import judging, language_steps, trials
from compiler.pipeline.cached_steps import CachedSteps, Model, model_of_source
from compiler.pipeline.candidates import Candidate, Chosen, Contest, Goal
from compiler.pipeline.certifying import check_enough, sample_of
from compiler.pipeline.family import Tested, Use
from compiler.pipeline.language_steps import Measured
from compiler.progress import Doing
from compiler.recipe import targets
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.recipes import CLOUD, Recipe
from compiler.recipe.targets import GENAI_CPU, GENAI_CUDA, Target
from penstock import wording
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ConfigError
from penstock.hosting.generation.text_metric import TextMetric
from penstock.policy.text_answers import AnswerSpec
from penstock.process import machine
from penstock.wire.tensors import TensorSpec

SMOKE_PROMPTS = 8
_OF_PRECISION: Mapping[str, str] = {"int4-weights": "int4", "int8-weights": "int8", "fp16": "fp16", "fp32": "fp32"}
_RUNS_ON: Mapping[str, str] = {GENAI_CPU: machine.ANY, GENAI_CUDA: machine.CUDA}
"""Devices report what they are, not which engines they have: a variant is packed for machines, as every other one."""
_SMOKE_INCREASE = 10.0  # as much as a recipe may allow: few prompts show nothing
_ADVICE = (
    "Give more texts, add a precision, allow more in quality.max_perplexity_increase, or ask for size instead of speed "
    '(objective = "size")'
)


class Language:
    """A recipe's language models and prompts; a ``compiler.pipeline.family.Family``."""

    def __init__(
        self,
        steps: CachedSteps,
        recipe: Recipe,
        *,
        sets: Mapping[Use, PromptSet],
        repeats: Repeats,
        texts: Sequence[str],
        max_increase: float,
        metric: TextMetric | None,
    ) -> None:
        """Build the cloud's model.

        Args:
            sets: prompts by use.
            repeats: what was found of prompts that repeat or belong together.
            texts: what perplexity is measured on.
            max_increase: of it, that a candidate may cost.
            metric: how good an answer is; None where answers are the same or not.
        """
        self._metric = metric
        self._steps, self._recipe, self._sets, self._texts = steps, recipe, sets, tuple(texts)
        self._measured: dict[str, Measured] = {}  # by the content of the built model
        asked = recipe.generation
        if metric is not None and (asked.choices or any(row.choices for row in sets["tune"].rows)):
            raise ConfigError("model.metric: answers among options are the same or not; leave the metric or them out")
        self._options = {
            use: choices.options_of(found, asked.choices, stop=asked.stop, normalisation=asked.normalisation)
            for use, found in sets.items()
        }
        choices.check_score(recipe.certificate.score, are_options=bool(self._options["tune"]))
        self.splits: Mapping[str, SplitFigures] = {
            use: SplitFigures(rows=len(found.rows), digest=found.digest) for use, found in sets.items()
        }
        self.preprocessing: Mapping[str, Any] = recipe.preprocessing
        group_by = "group" if sets["certify"].groups is not None else ""
        self.sample = sample_of(sets["certify"], repeats, group_by=group_by)
        self.units, self.repeats = sets["certify"].units, repeats.words
        self.terms = judging.text_terms(metric, max_drop=max_increase, advice=_ADVICE)
        assert recipe.cloud is not None, "checked on loading"
        self.sources: Mapping[str, str] = {
            **{rung.role: rung.section.model for rung in recipe.rungs},
            CLOUD: recipe.cloud.model,
        }
        self.cloud = self._build(CLOUD, recipe.cloud.model, "fp32", targets.resolve(GENAI_CPU))

    @classmethod
    def load(cls, steps: CachedSteps, recipe: Recipe, *, promise: CertificateSection | None, smoke: bool) -> Self:
        """Read prompts and texts, and build the cloud's model."""
        if len(recipe.rungs) != 1 or any(targets.resolve(t).engine != "genai" for t in recipe.rungs[0].section.targets):
            raise ConfigError(
                f'edge.targets: a generation has one rung below the cloud, with targets = ["{GENAI_CPU}"]'
            )
        if recipe.cloud is None:
            raise ConfigError("cloud: a generation needs a model in [cloud] for the prompts that the edge is unsure of")
        if recipe.data.cluster_by:
            raise ConfigError(
                "data.cluster_by: prompts say themselves what they belong to: give each row of the source a 'cluster'"
            )
        _check_precision(recipe)
        metric = judging.text_metric(recipe)
        sets, repeats, texts = _examples(steps, recipe, promise=promise, smoke=smoke)
        increase = _SMOKE_INCREASE if smoke else recipe.quality.max_perplexity_increase
        return cls(steps, recipe, sets=sets, repeats=repeats, texts=texts, max_increase=increase, metric=metric)

    @staticmethod
    def examples_digest(recipe: Recipe) -> str:
        """Return the content of the prompts and texts that a recipe names."""
        found = prompts.load(recipe.data.source, base=recipe.base).digest
        texts = recipe.generation.texts
        return digest_of("\0".join([found, *(prompts.load_texts(texts, base=recipe.base) if texts else ())]).encode())

    def candidates(self, goal: Goal) -> Contest:
        """Build every precision that is asked for, the first whatever time is left; one that costs too much perplexity
        is refused here. A directory that was built already competes with nothing."""
        section, target = goal.rung.section, goal.target
        parent = self._build(goal.rung.role, section.model, "fp32", target)
        if self._is_built(section.model):
            return Contest(goal=goal, parent=parent, candidates=(parent,))
        found: list[Candidate] = []
        for precision in _precisions(goal):
            if precision == "fp32":
                found.append(parent)
            elif found and self._steps.is_time_up:
                found.append(Candidate(name=precision, precision=precision, refusal=trials.OUT_OF_TIME))
            else:
                found.append(self._candidate(goal, precision, parent))
        timed, noise = self._timed(goal, found, parent)
        return Contest(goal=goal, parent=parent, candidates=tuple(timed), clock_noise=noise)

    def probed(self, chosen: Chosen) -> Chosen:
        """Return what was given: a head on hidden states and logits kept no more whole answers (docs/adr/0037)."""
        return chosen

    def draft(self, chosen: Chosen) -> VariantDraft:
        """Pack every file of the built directory, with greedy answers as golden vectors."""
        goal = chosen.goal
        return self._draft(goal.rung.role, _RUNS_ON[goal.target.name], goal.target, chosen.candidate)

    def cloud_draft(self) -> VariantDraft:
        """Pack the cloud's model."""
        return self._draft(CLOUD, pack.CLOUD_TARGET, targets.resolve(GENAI_CPU), self.cloud)

    def ask(self, candidate: Candidate, use: Use, doing: Doing) -> AnsweredPrompts | AnsweredChoices:
        """Ask a candidate and the cloud the prompts of one use: for greedy answers, or to choose among options."""
        if self._options[use]:
            return self._ask_to_choose(candidate, use, doing)
        edge, cloud = (self._answers(one, use, doing) for one in (candidate, self.cloud))
        asked, graded = self._sets[use], None
        if self._metric is not None:
            by_answers = self._recipe.certificate.harm == "labels" and asked.answers is not None
            graded = language_steps.grades(
                self._steps, self._metric, asked, edge.texts, cloud.texts, by_answers=by_answers, doing=doing
            )
        how = self._recipe.generation.normalisation
        return answers.columns(edge, cloud, asked, normalisation=how, graded=graded)

    def _ask_to_choose(self, candidate: Candidate, use: Use, doing: Doing) -> AnsweredChoices:
        asked, options, section = self._sets[use], self._options[use], self._recipe.generation
        edge, cloud = (
            language_steps.chosen(self._steps, self._measured[one.made.content], asked, options, section.stop, doing)
            for one in (candidate, self.cloud)
        )
        return choices.columns(edge, cloud, asked, options, normalisation=section.normalisation)

    def evaluate(self, candidate: Candidate, what: str, doing: Doing) -> Tested:
        """Compare answers with the right ones where harm is counted by them, else with the cloud's; by the metric where
        there is one."""
        tested = self.ask(candidate, "test", doing)
        if isinstance(tested, AnsweredPrompts) and tested.graded is not None:
            grades, alike = (quality.share(some) for some in (tested.graded.edge, tested.graded.alike))
            return Tested(quality=grades, agreement=alike, speed=candidate.speed)
        by_labels = self._recipe.certificate.harm == "labels" and tested.labels is not None
        return Tested(
            quality=quality.share(np.asarray(tested.edge == (tested.labels if by_labels else tested.cloud))),
            agreement=quality.share(np.asarray(tested.edge == tested.cloud)),
            speed=candidate.speed,
        )

    def further_figures(self, chosen: Sequence[Chosen]) -> dict[str, Any]:
        """Return perplexities and speeds by variant."""
        by_name = {one.goal.what: one for one in chosen}
        found = {name: self._measured[one.candidate.made.content] for name, one in by_name.items()}
        parents = {
            f"{name} {one.parent.name}": self._measured[one.parent.made.content]
            for name, one in by_name.items()
            if one.parent is not one.candidate
        }
        cloud = self._measured[self.cloud.made.content]
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            {
                "perplexity": {name: one.change for name, one in found.items()},
                "cloud_perplexity": compare.perplexity(cloud.likelihoods),
                "speed": {name: one.speed for name, one in {**found, **parents, CLOUD: cloud}.items()},
            }
        )

    def _candidate(self, goal: Goal, precision: str, parent: Candidate) -> Candidate:
        """Build a quantized candidate and compare it with its float parent, token by token."""
        section = goal.rung.section
        built = self._build(goal.rung.role, section.model, precision, goal.target, section.passes.get("genai", {}))
        measured = self._measured[built.made.content]
        lossy = [one for one in _precisions(goal) if one != "fp32"]
        change = compare.change(
            self._measured[parent.made.content].likelihoods,
            measured.likelihoods,
            seed=self._recipe.seed,
            level=gate.levels(self._recipe.quality.delta, listed=len(lossy), restores=False).listed,
        )
        self._measured[built.made.content] = replace(measured, change=change)
        same = change.agreement
        return replace(
            built,
            quality=Share(value=same.value, low=same.low, high=same.high, n=change.tokens),
            refusal=compare.refusal(change, max_increase=self.terms.max_drop),
        )

    def _timed(
        self, goal: Goal, candidates: list[Candidate], parent: Candidate
    ) -> tuple[list[Candidate], float | None]:
        """Time every candidate that may ship in turns with its float parent, and the parent with itself.

        Returns:
            the candidates, and the clock's noise (None where nothing was timed).
        """
        rivals = {
            one.name: self._measured[one.made.content]
            for one in candidates
            if one.model and not one.refusal and one is not parent
        }
        if not goal.target.runs_here or not rivals:
            return candidates, None
        with self._steps(f"{goal.what} time") as doing:
            turns = language_steps.in_turns(self._steps, self._measured[parent.made.content], rivals, doing)
            said = [f"{name} {wording.times(one)}" for name, one in turns.speedups.items()]
            doing.note(", ".join([*said, f"up to {turns.clock_noise:.2f}x is noise"]))
        return [replace(one, speedup=turns.speedups.get(one.name)) for one in candidates], turns.clock_noise

    def _build(
        self, role: str, model: str, precision: str, target: Target, options: Mapping[str, Any] | None = None
    ) -> Candidate:
        """Build one model, or take it as it was built, and measure its likelihoods and speed."""
        found = sources.detect(model, self._recipe.base)
        where = (options or {}).get("toolchain") or genai.toolchain_for(found.location)
        is_built = built_directory.is_built(found.location)
        name = f"{role}/{target.name}" if is_built else f"{role}/{target.name} {precision}"
        with self._steps(name) as doing:
            source = model_of_source(found, how=model)
            if is_built:
                built, precision = _as_built(source, target)
            else:
                settings = {**(options or {}), "precision": precision, "toolchain": where}
                built = self._steps.apply("genai", source, doing, target=target, options=settings)
            doing.note(built.how)
        with self._steps(f"{name} measure") as doing:
            runner = built_model.BuiltModel(directory=built.path.parent, toolchain=where)
            if self._options["tune"]:
                choices.check_engine(runner)
            measured = language_steps.measure(self._steps, built, runner, self._texts, doing)
            self._measured[built.content] = measured
            perplexity, speed = compare.perplexity(measured.likelihoods), measured.speed
            doing.note(f"perplexity {perplexity:.2f}, {speed.tokens_per_s:.0f} tokens/s")
        here = target.runs_here
        return Candidate(
            name=precision,
            precision=precision,
            model=built,
            summary=f"{built.how}; perplexity {perplexity:.2f}",
            speed=cost.speed({"1": speed.first_token_ms}, speed.load_bytes) if here else None,
            latency_ms=1e3 / speed.tokens_per_s if here else None,
        )

    def _is_built(self, model: str) -> bool:
        return built_directory.is_built(sources.detect(model, self._recipe.base).location)

    def _draft(self, role: str, target_name: str, target: Target, built: Candidate) -> VariantDraft:
        model, asked = built.made, self._recipe.generation
        with self._steps(f"{role}/{target_name} golden") as doing:
            document = language_steps.golden_vectors(
                self._steps, self._measured[model.content], self._sets["tune"], doing
            )
        spec = VariantSpec(
            model=self._recipe.model.name,
            role=role,
            engine="genai",
            target=target_name,
            provider=target.provider,
            precision=built.precision,
            inputs=(TensorSpec(name=golden_answers.PROMPT_IDS, datatype="INT64", shape=(-1, -1)),),
            outputs=(TensorSpec(name=golden_answers.TOKEN_IDS, datatype="INT64", shape=(-1, -1)),),
            score_output=golden_answers.TOKEN_IDS,
            score_kind="probabilities",
            max_batch=self._recipe.model.max_batch,
            preprocessing=self._recipe.preprocessing,
            answer=AnswerSpec(
                max_new_tokens=asked.max_new_tokens,
                stop=asked.stop,
                normalisation=asked.normalisation,
                choices=asked.choices if self._options["tune"] else msgspec.UNSET,
            ),
        )
        files = {path.name: path for path in model.files}
        return VariantDraft(spec=spec, weights=model.path, golden=document, files=files)

    def _answers(self, candidate: Candidate, use: Use, doing: Doing) -> Answers:
        """Return the greedy answers of one model, kept by content."""
        measured, settings = self._measured[candidate.made.content], self._recipe.generation.generate
        return language_steps.answers(self._steps, measured, self._sets[use], settings, doing)


def _examples(
    steps: CachedSteps, recipe: Recipe, *, promise: CertificateSection | None, smoke: bool
) -> tuple[dict[Use, PromptSet], Repeats, tuple[str, ...]]:
    """Read prompts by use, and the texts that perplexity is measured on."""
    with steps("prompts") as doing:
        everything = prompts.load(recipe.data.source, base=recipe.base)
        sets, repeats = prompts.split(everything, seed=recipe.data.seed, repeats=recipe.data.repeats)
        if promise is not None:
            check_enough(sets["certify"], repeats, promise)
        if smoke:
            sets = {use: PromptSet(name=use, rows=found.rows[:SMOKE_PROMPTS]) for use, found in sets.items()}
        if recipe.generation.texts:
            texts = prompts.load_texts(recipe.generation.texts, base=recipe.base)
        else:
            texts = tuple(f"{row.prompt}{row.answer or ''}" for row in sets["tune"].rows)
        texts = texts[:SMOKE_PROMPTS] if smoke else texts
        shares = "rows: " + ", ".join(f"{len(found)} {use}" for use, found in sets.items())
        doing.note("; ".join(part for part in (shares, repeats.words) if part))
    return {"tune": sets["tune"], "certify": sets["certify"], "test": sets["test"]}, repeats, texts


def _as_built(source: Model, target: Target) -> tuple[Model, str]:
    """Return a directory that was built already as the model that it holds, and the builder's word for its precision.

    Raises:
        CompileError, ConfigError: it cannot be served as a variant for the target.
    """
    built_directory.check(source.path, target)
    found = built_directory.precision_of(source.path)
    precision = _OF_PRECISION.get(found, found)
    model = Model(
        path=source.path / built_directory.MODEL_FILE,
        content=source.content,
        how=f"{source.how}, as it was built, in {precision}",
        files=built_directory.further_files(source.path),
        precision=found,
    )
    return model, precision


def _check_precision(recipe: Recipe) -> None:
    """Refuse to take a directory that was built already for something else than it is.

    Raises:
        ConfigError: the recipe asks for another precision. Others as the source.
    """
    section = recipe.rungs[0].section
    found = sources.detect(section.model, recipe.base).location
    if not section.precisions or not built_directory.is_built(found):
        return
    precision = built_directory.precision_of(found)
    if precision not in section.precisions:
        raise ConfigError(
            f"edge.precisions: {section.model} was built in {precision} already; leave them out, or name what it was "
            "built from"
        )


def _precisions(goal: Goal) -> list[str]:
    """Translate the recipe's words for precisions to the builder's.

    Raises:
        ConfigError: a precision that no language model is built in.
    """
    asked = goal.rung.section.precisions or goal.target.precisions
    unknown = [precision for precision in asked if precision not in _OF_PRECISION]
    if unknown:
        raise ConfigError(f"edge.precisions: {unknown[0]}: a language model is built in {', '.join(_OF_PRECISION)}")
    return [_OF_PRECISION[precision] for precision in asked]
