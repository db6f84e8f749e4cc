"""A compilation of language models: build, compare perplexities, choose, certify on prompts.

The counterpart of ``compiler.pipeline.compilation`` for ``model.task = "generation"``: models run in a toolchain and
answer in words, so candidates are judged by the perplexity they cost, and the cascade by whole answers. Gate,
certificate and packing are the same code as for every other model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler import sources
from compiler.artifact.evaluation import CandidateFigures, TargetEvaluation
from compiler.certificate import score_choice
from compiler.generation import answers, compare, golden_answers, measure, prompts
from compiler.generation.answers import AnsweredPrompts
from compiler.generation.measure import Answers, Likelihoods
from compiler.generation.prompts import PromptSet
from compiler.measure import gate
from compiler.measure.gate import Budget, Measured
from compiler.passes import genai
from compiler.pipeline import cascade
from compiler.pipeline.cached_steps import Model, Workshop, fingerprint, model_of_source
from compiler.pipeline.candidates import NOT_ASKED_FOR, GateRefused
from compiler.pipeline.cascade import Cascade
from compiler.pipeline.language_figures import (
    CLOUD_TARGET,
    Built,
    Chosen,
    Generation,
    candidate_figures,
    target_evaluation,
)
from compiler.progress import Doing, Steps
from compiler.recipe import targets
from compiler.recipe.certificate_section import for_rung
from compiler.recipe.recipes import CLOUD, Recipe, Rung
from compiler.recipe.targets import GENAI_CPU, Target
from penstock.artifact import golden as vectors
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ConfigError
from penstock.wire.tensors import TensorSpec

SMOKE_PROMPTS = 8
_OF_PRECISION: Mapping[str, str] = {"int4-weights": "int4", "int8-weights": "int8", "fp16": "fp16", "fp32": "fp32"}


def build(shop: Workshop, steps: Steps, recipe: Recipe, *, smoke: bool) -> Generation:
    """Build every candidate and choose one a target.

    Raises:
        ConfigError: a recipe that does not suit a language model. GateRefused: too much perplexity lost.
        CompileError, InvalidInput, MissingToolchain: from building and asking.
    """
    if len(recipe.rungs) != 1 or any(targets.resolve(t).engine != "genai" for t in recipe.rungs[0].section.targets):
        raise ConfigError(f'edge.targets: a generation has one rung below the cloud, with targets = ["{GENAI_CPU}"]')
    if recipe.cloud is None:
        raise ConfigError("cloud: a generation needs a model in [cloud] for the prompts that the edge is unsure of")
    sets, texts = _examples(steps, recipe, smoke=smoke)
    bench = _Bench(shop, steps, recipe, texts)
    here = targets.resolve(GENAI_CPU)
    cloud = bench.build(CLOUD, recipe.cloud.model, "fp32", here)
    cloud_draft = bench.draft(CLOUD, CLOUD_TARGET, here, cloud, sets["tune"])
    (rung,) = recipe.rungs
    chosen = []
    for name in rung.section.targets:
        target = targets.resolve(name)
        parent = bench.build(rung.role, rung.section.model, "fp32", target)
        found = [bench.candidate(rung, precision, target, parent) for precision in _precisions(rung, target)]
        built, figures = _choose(recipe, rung, target, parent, found)
        draft = bench.draft(rung.role, target.name, target, built, sets["tune"])
        chosen.append(Chosen(rung=rung, target=target, parent=parent, built=built, candidates=figures, draft=draft))
    return Generation(recipe=recipe, sets=sets, chosen=tuple(chosen), cloud=cloud, cloud_draft=cloud_draft)


def certify(
    shop: Workshop, steps: Steps, generation: Generation, item: Chosen, directory: Path, *, require_certificate: bool
) -> tuple[Cascade, TargetEvaluation]:
    """Tune on prompts of their own, certify by one look, describe on the test prompts.

    Raises:
        CalibrationError: the promise is refused, with the samples needed (unless it is not required).
    """
    recipe = generation.recipe
    section, what = for_rung(recipe.certificate, len(recipe.rungs)), f"{item.rung.role}/{item.target.name}"

    def ask(use: str, doing: Doing) -> AnsweredPrompts:
        said = [_answers(shop, built, generation.sets[use], recipe, doing) for built in (item.built, generation.cloud)]
        how = recipe.generation.normalisation
        return answers.columns(said[0], said[1], generation.sets[use], normalisation=how)

    with steps(f"{what} tune") as doing:
        tune = ask("tune", doing)
        choice = score_choice.choose_token_score(
            tune.probabilities,
            tune.edge,
            tune.cloud,
            tune.labels if section.harm == "labels" else None,
            section,
            groups=tune.groups,
            rows_to_certify=len(generation.sets["certify"].rows),
        )
        doing.note(f"{choice.score}; {choice.reason}")
    with steps(f"{what} test") as doing:
        tested = ask("test", doing)
    with steps(f"{what} certify") as doing:
        certifying = ask("certify", doing).certify_data(choice.score, harm=section.harm)
        found = cascade.of_data(
            certifying,
            tested.certify_data(choice.score, harm=section.harm),
            section,
            choice,
            cascade.Parties(
                model=recipe.model.name,
                edge=item.draft,
                cloud=generation.cloud_draft,
                preprocessing=recipe.preprocessing,
                data_digest=generation.sets["certify"].digest,
                group_by="group" if certifying.groups is not None else "",
            ),
            directory,
            require_certificate=require_certificate,
        )
        doing.note(cascade.words(found))
    return found, target_evaluation(generation, item, found, tested, directory)


def examples_fingerprint(recipe: Recipe) -> str:
    """Content of the prompts and texts that a recipe names.

    Raises:
        InvalidInput: there are none, or they cannot be read.
    """
    found = prompts.load(recipe.data.source, base=recipe.base).digest
    texts = recipe.generation.texts
    return digest_of("\0".join([found, *(prompts.load_texts(texts, base=recipe.base) if texts else ())]).encode())


class _Bench:
    """Builds and measures models over the step cache."""

    def __init__(self, shop: Workshop, steps: Steps, recipe: Recipe, texts: Sequence[str]) -> None:
        self._shop = shop
        self._steps = steps
        self._recipe = recipe
        self._texts = tuple(texts)

    def build(self, role: str, model: str, precision: str, target: Target, options: Mapping[str, Any] = {}) -> Built:
        """Build, and measure likelihoods and speed."""
        found = sources.detect(model, self._recipe.base)
        source = model_of_source(found, how=model)
        where = options.get("toolchain") or genai.toolchain_for(found.location)
        with self._steps(f"{role}/{target.name} {precision}") as doing:
            made = self._shop.apply(
                "genai", source, doing, target=target, options={**options, "precision": precision, "toolchain": where}
            )
            doing.note(made.result.summary)
        with self._steps(f"{role}/{target.name} {precision} measure") as doing:
            runner = measure.Model(directory=made.model.path.parent, toolchain=where)
            likelihoods, speed = self._measured(made.model, runner, doing)
            doing.note(f"perplexity {compare.perplexity(likelihoods):.2f}, {speed.tokens_per_s:.0f} tokens/s")
        return Built(
            name=precision,
            precision=precision,
            model=made.model,
            summary=made.result.summary,
            likelihoods=likelihoods,
            speed=speed,
            runner=runner,
        )

    def candidate(self, rung: Rung, precision: str, target: Target, parent: Built) -> Built:
        """A candidate compared with its float parent; the parent itself for fp32."""
        if precision == "fp32":
            return parent
        options = rung.section.passes.get("genai", {})
        built = self.build(rung.role, rung.section.model, precision, target, options)
        change = compare.change(parent.likelihoods, built.likelihoods, seed=self._recipe.seed)
        return Built(**{name: getattr(built, name) for name in Built.__slots__ if name != "change"}, change=change)

    def draft(self, role: str, target_name: str, target: Target, built: Built, prompt_set: PromptSet) -> VariantDraft:
        """A variant ready to pack: every file of the built directory, and greedy answers as golden vectors."""
        with self._steps(f"{role}/{target_name} golden") as doing:
            key = {"model": built.model.content, "prompts": prompt_set.digest, "machine": fingerprint()}

            def produce(out: Path, work: Path) -> dict[str, Any]:
                del work
                found = golden_answers.vectors(built.runner, prompt_set.prompts)
                (out / "golden.msgpack").write_bytes(vectors.encode(found))
                return {}

            document = (self._shop.step("golden", key, produce, doing).directory / "golden.msgpack").read_bytes()
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
        )
        files = {path.name: path for path in built.model.files}
        return VariantDraft(spec=spec, weights=built.model.path, golden=document, files=files)

    def _measured(self, model: Model, runner: measure.Model, doing: Doing) -> tuple[Likelihoods, measure.Speed]:
        key = {"model": model.content, "texts": digest_of("\0".join(self._texts).encode()), "machine": fingerprint()}

        def produce(out: Path, work: Path) -> measure.Speed:
            del work
            found = measure.likelihoods(
                runner, self._texts, progress=lambda share, note: doing.advance(share / 2, note)
            )
            arrays = {name: getattr(found, name) for name in Likelihoods.__slots__}
            np.savez(out / "likelihoods.npz", **arrays)
            return measure.speed(runner, progress=lambda share, note: doing.advance(0.5 + share / 2, note))

        step = self._shop.step("perplexity", key, produce, doing)
        with np.load(step.directory / "likelihoods.npz") as file:
            return Likelihoods(**{name: file[name] for name in file.files}), msgspec.convert(step.facts, measure.Speed)


def _examples(steps: Steps, recipe: Recipe, *, smoke: bool) -> tuple[dict[str, PromptSet], tuple[str, ...]]:
    """Prompts by use, and the texts that perplexity is measured on."""
    with steps("prompts") as doing:
        sets = prompts.split(prompts.load(recipe.data.source, base=recipe.base), seed=recipe.data.seed)
        if smoke:
            sets = {use: PromptSet(name=use, rows=found.rows[:SMOKE_PROMPTS]) for use, found in sets.items()}
        if recipe.generation.texts:
            texts = prompts.load_texts(recipe.generation.texts, base=recipe.base)
        else:
            texts = tuple(f"{row.prompt}{row.answer or ''}" for row in sets["tune"].rows)
        texts = texts[:SMOKE_PROMPTS] if smoke else texts
        doing.note("rows: " + ", ".join(f"{len(found.rows)} {use}" for use, found in sets.items()))
    return dict(sets), texts


def _precisions(rung: Rung, target: Target) -> list[str]:
    """Builder's words for the recipe's.

    Raises:
        ConfigError: a precision that no language model is built in.
    """
    asked = rung.section.precisions or target.precisions
    unknown = [precision for precision in asked if precision not in _OF_PRECISION]
    if unknown:
        raise ConfigError(f"edge.precisions: {unknown[0]}: a language model is built in {', '.join(_OF_PRECISION)}")
    return [_OF_PRECISION[precision] for precision in asked]


def _choose(
    recipe: Recipe, rung: Rung, target: Target, parent: Built, found: Sequence[Built]
) -> tuple[Built, tuple[CandidateFigures, ...]]:
    """The gate: perplexity first, then the objective.

    Raises:
        GateRefused: none may ship.
    """
    limit = recipe.quality.max_perplexity_increase
    refused = [("" if b.change is None else compare.refusal(b.change, max_increase=limit)) for b in found]
    fit = [built for built, reason in zip(found, refused, strict=True) if not reason]
    budget = Budget(max_drop=1.0, objective=rung.section.objective)
    verdict = gate.choose([_measured(b, target) for b in fit], _measured(parent, target), budget)
    if verdict.chosen is None:
        told = [reason for reason in refused if reason] + [r for r in verdict.reasons if r]
        raise GateRefused(f"refused: no candidate for {rung.role}/{target.name} may ship. {'; '.join(told)}")
    chosen, reasons = fit[verdict.chosen], iter(verdict.reasons)
    told = [reason or next(reasons) for reason in refused]
    lines = [candidate_figures(b, text, ships=b is chosen, target=target) for b, text in zip(found, told, strict=True)]
    if all(b is not parent for b in found):
        lines.insert(0, candidate_figures(parent, NOT_ASKED_FOR, ships=False, target=target))
    return chosen, tuple(lines)


def _measured(built: Built, target: Target) -> Measured:
    latency = 1e3 / built.speed.tokens_per_s if target.runs_here else None
    return Measured(name=built.name, size_bytes=built.model.size_bytes, drop=None, latency_ms=latency)


def _answers(shop: Workshop, built: Built, asked: PromptSet, recipe: Recipe, doing: Doing) -> Answers:
    """Greedy answers of one model, kept by content."""
    settings = recipe.generation.generate

    def produce(out: Path, work: Path) -> dict[str, Any]:
        del out, work
        found = measure.answers(built.runner, asked.prompts, settings, progress=doing.advance)
        return {name: msgspec.to_builtins(getattr(found, name), enc_hook=_plain) for name in Answers.__slots__}

    key = {"model": built.model.content, "prompts": asked.digest, "settings": settings, "machine": fingerprint()}
    facts = shop.step("answers", key, produce, doing).facts
    return Answers(
        texts=tuple(facts["texts"]),
        prompt_ids=_arrays(facts["prompt_ids"], np.int64),
        token_ids=_arrays(facts["token_ids"], np.int64),
        probabilities=_arrays(facts["probabilities"], np.float64),
        margins=_arrays(facts["margins"], np.float64),
    )


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)  # type: ignore[arg-type]


def _arrays(rows: Sequence[Sequence[float]], dtype: type[Any]) -> tuple[NDArray[Any], ...]:
    return tuple(np.array(row, dtype=dtype) for row in rows)
