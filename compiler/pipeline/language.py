"""The family of language models: built for an engine in a toolchain, judged by perplexity, certified on whole answers.

Owns what is measured of a built model, and how prompts are asked. Models answer in words, so a candidate is judged by
the perplexity that it costs, and a cascade by answers that are the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler import sources
from compiler.artifact import pack
from compiler.artifact.evaluation import Share, Speedup, SplitFigures
from compiler.data.dataset import Repeats
from compiler.generation import answers, built_model, compare, golden_answers, prompts
from compiler.generation.answers import AnsweredPrompts
from compiler.generation.built_model import Answers, Likelihoods
from compiler.generation.compare import PerplexityChange
from compiler.generation.prompts import PromptSet
from compiler.measure import cost, gate, quality, speedups
from compiler.passes import genai
from compiler.pipeline import trials
from compiler.pipeline.cached_steps import CachedSteps, Model, machine_facts, model_of_source
from compiler.pipeline.candidates import Candidate, Chosen, Contest, Goal
from compiler.pipeline.certifying import check_enough, sample_of
from compiler.pipeline.family import Terms, Tested, Use
from compiler.progress import Doing
from compiler.recipe import targets
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.recipes import CLOUD, Recipe
from compiler.recipe.targets import GENAI_CPU, Target
from penstock import wording
from penstock.artifact import golden
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ConfigError
from penstock.policy.text_answers import AnswerSpec
from penstock.wire.tensors import TensorSpec

SMOKE_PROMPTS = 8
_OF_PRECISION: Mapping[str, str] = {"int4-weights": "int4", "int8-weights": "int8", "fp16": "fp16", "fp32": "fp32"}
_SMOKE_INCREASE = 10.0  # as much as a recipe may allow: few prompts show nothing
_ADVICE = (
    "Give more texts, add a precision, allow more in quality.max_perplexity_increase, or ask for size instead of speed "
    '(objective = "size")'
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    """What was measured of one built model.

    Attributes:
        runner: asks it.
        change: against its float parent; None for a parent.
    """

    runner: built_model.BuiltModel
    likelihoods: Likelihoods
    speed: built_model.Speed
    change: PerplexityChange | None = None


class _Turns(msgspec.Struct, frozen=True, kw_only=True):
    """What was timed in turns: speedups against the float parent by candidate, and how far the clock can be trusted."""

    speedups: dict[str, Speedup]
    clock_noise: float


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
    ) -> None:
        """Build the cloud's model.

        Args:
            sets: prompts by use.
            repeats: what was found of prompts that repeat or belong together.
            texts: what perplexity is measured on.
            max_increase: of it, that a candidate may cost.
        """
        self._steps, self._recipe, self._sets, self._texts = steps, recipe, sets, tuple(texts)
        self._measured: dict[str, _Measured] = {}  # by the content of the built model
        self.splits: Mapping[str, SplitFigures] = {
            use: SplitFigures(rows=len(found.rows), digest=found.digest) for use, found in sets.items()
        }
        self.preprocessing: Mapping[str, Any] = recipe.preprocessing
        group_by = "group" if sets["certify"].groups is not None else ""
        self.sample = sample_of(sets["certify"], repeats, group_by=group_by)
        self.units, self.repeats = sets["certify"].units, repeats.words
        self.terms = Terms(metric="agreement", max_drop=max_increase, advice=_ADVICE)
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
        sets, repeats, texts = _examples(steps, recipe, promise=promise, smoke=smoke)
        increase = _SMOKE_INCREASE if smoke else recipe.quality.max_perplexity_increase
        return cls(steps, recipe, sets=sets, repeats=repeats, texts=texts, max_increase=increase)

    @staticmethod
    def examples_digest(recipe: Recipe) -> str:
        """Return the content of the prompts and texts that a recipe names."""
        found = prompts.load(recipe.data.source, base=recipe.base).digest
        texts = recipe.generation.texts
        return digest_of("\0".join([found, *(prompts.load_texts(texts, base=recipe.base) if texts else ())]).encode())

    def candidates(self, goal: Goal) -> Contest:
        """Build every precision that is asked for, the first whatever time is left; one that costs too much perplexity
        is refused here."""
        section, target = goal.rung.section, goal.target
        parent = self._build(goal.rung.role, section.model, "fp32", target)
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
        """Return what was given: the builder's graphs of language models have no output for hidden states."""
        return chosen

    def draft(self, chosen: Chosen) -> VariantDraft:
        """Pack every file of the built directory, with greedy answers as golden vectors."""
        goal = chosen.goal
        return self._draft(goal.rung.role, goal.target.name, goal.target, chosen.candidate)

    def cloud_draft(self) -> VariantDraft:
        """Pack the cloud's model."""
        return self._draft(CLOUD, pack.CLOUD_TARGET, targets.resolve(GENAI_CPU), self.cloud)

    def ask(self, candidate: Candidate, use: Use, doing: Doing) -> AnsweredPrompts:
        """Ask a candidate and the cloud the prompts of one use, greedily."""
        edge, cloud = (self._answers(one, use, doing) for one in (candidate, self.cloud))
        return answers.columns(edge, cloud, self._sets[use], normalisation=self._recipe.generation.normalisation)

    def evaluate(self, candidate: Candidate, what: str, doing: Doing) -> Tested:
        """Compare answers with the right ones where harm is counted by them, else with the cloud's."""
        tested = self.ask(candidate, "test", doing)
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
        parents = {f"{name} fp32": self._measured[one.parent.made.content] for name, one in by_name.items()}
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
        rivals = {one.name: one.made for one in candidates if one.model and not one.refusal and one is not parent}
        if not goal.target.runs_here or not rivals:
            return candidates, None
        runners = {content: measured.runner for content, measured in self._measured.items()}
        ours = runners[parent.made.content]

        def produce(out: Path, work: Path) -> _Turns:
            del out, work
            found: dict[str, Speedup] = {}
            for name, model in rivals.items():
                doing.advance(len(found) / (len(rivals) + 1), name)
                candidate_s, parent_s = built_model.in_turns(runners[model.content], ours)
                found[name] = speedups.speedup(parent_s, candidate_s)
            doing.advance(len(rivals) / (len(rivals) + 1), "the parent again")
            again_s, parent_s = built_model.in_turns(ours, ours)
            return _Turns(speedups=found, clock_noise=speedups.noise(speedups.speedup(parent_s, again_s)))

        with self._steps(f"{goal.what} time") as doing:
            key = {
                "parent": parent.made.content,
                "models": {name: model.content for name, model in rivals.items()},
                "machine": machine_facts(),
            }
            turns = msgspec.convert(self._steps.keep("turns", key, produce, doing).facts, _Turns)
            said = [f"{name} {wording.times(one)}" for name, one in turns.speedups.items()]
            doing.note(", ".join([*said, f"up to {turns.clock_noise:.2f}x is noise"]))
        return [replace(one, speedup=turns.speedups.get(one.name)) for one in candidates], turns.clock_noise

    def _build(
        self, role: str, model: str, precision: str, target: Target, options: Mapping[str, Any] | None = None
    ) -> Candidate:
        """Build one model, and measure its likelihoods and speed."""
        found = sources.detect(model, self._recipe.base)
        where = (options or {}).get("toolchain") or genai.toolchain_for(found.location)
        settings = {**(options or {}), "precision": precision, "toolchain": where}
        name = f"{role}/{target.name} {precision}"
        with self._steps(name) as doing:
            source = model_of_source(found, how=model)
            built = self._steps.apply("genai", source, doing, target=target, options=settings)
            doing.note(built.how)
        with self._steps(f"{name} measure") as doing:
            measured = self._measure(built, built_model.BuiltModel(directory=built.path.parent, toolchain=where), doing)
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

    def _measure(self, model: Model, runner: built_model.BuiltModel, doing: Doing) -> _Measured:
        key = {"model": model.content, "texts": digest_of("\0".join(self._texts).encode()), "machine": machine_facts()}

        def produce(out: Path, work: Path) -> built_model.Speed:
            del work
            found = built_model.likelihoods(
                runner, self._texts, progress=lambda share, note: doing.advance(share / 2, note)
            )
            arrays = {name: getattr(found, name) for name in Likelihoods.__slots__}
            np.savez(out / "likelihoods.npz", **arrays)
            return built_model.speed(runner, progress=lambda share, note: doing.advance(0.5 + share / 2, note))

        step = self._steps.keep("perplexity", key, produce, doing)
        with np.load(step.directory / "likelihoods.npz") as file:
            likelihoods = Likelihoods(**{name: file[name] for name in file.files})
        return _Measured(runner=runner, likelihoods=likelihoods, speed=msgspec.convert(step.facts, built_model.Speed))

    def _draft(self, role: str, target_name: str, target: Target, built: Candidate) -> VariantDraft:
        model, tune, asked = built.made, self._sets["tune"], self._recipe.generation
        runner = self._measured[model.content].runner
        with self._steps(f"{role}/{target_name} golden") as doing:
            key = {"model": model.content, "prompts": tune.digest, "machine": machine_facts()}

            def produce(out: Path, work: Path) -> dict[str, Any]:
                del work
                (out / "golden.msgpack").write_bytes(golden.encode(golden_answers.vectors(runner, tune.prompts)))
                return {}

            document = (self._steps.keep("golden", key, produce, doing).directory / "golden.msgpack").read_bytes()
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
            answer=AnswerSpec(max_new_tokens=asked.max_new_tokens, stop=asked.stop, normalisation=asked.normalisation),
        )
        files = {path.name: path for path in model.files}
        return VariantDraft(spec=spec, weights=model.path, golden=document, files=files)

    def _answers(self, candidate: Candidate, use: Use, doing: Doing) -> Answers:
        """Return the greedy answers of one model, kept by content."""
        content, asked, settings = candidate.made.content, self._sets[use], self._recipe.generation.generate
        runner = self._measured[content].runner

        def produce(out: Path, work: Path) -> dict[str, Any]:
            del out, work
            found = built_model.answers(runner, asked.prompts, settings, progress=doing.advance)
            return {name: msgspec.to_builtins(getattr(found, name), enc_hook=_plain) for name in Answers.__slots__}

        key = {"model": content, "prompts": asked.digest, "settings": settings, "machine": machine_facts()}
        facts = self._steps.keep("answers", key, produce, doing).facts
        return Answers(
            texts=tuple(facts["texts"]),
            prompt_ids=_arrays(facts["prompt_ids"], np.int64),
            token_ids=_arrays(facts["token_ids"], np.int64),
            probabilities=_arrays(facts["probabilities"], np.float64),
            margins=_arrays(facts["margins"], np.float64),
        )


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


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)  # type: ignore[arg-type]


def _arrays(rows: Sequence[Sequence[float]], dtype: type[Any]) -> tuple[NDArray[Any], ...]:
    return tuple(np.array(row, dtype=dtype) for row in rows)
