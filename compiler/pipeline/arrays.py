"""The family of models that answer with arrays: classifiers, which get a cascade, regressions and embeddings.

Owns that models and examples fit each other before anything is made of them, what each variant is packed with, and how
its answers are compared. Candidates are ``compiler.pipeline.array_candidates``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec

from compiler.artifact import golden_inputs, pack
from compiler.artifact.evaluation import SplitFigures
from compiler.certificate.issue import AnsweredRows
from compiler.data import Dataset, Split, buckets, calls, fingerprint, loading, preprocessing, text
from compiler.graph import files, vocabulary
from compiler.graph.confidence_head import PROBE_OUTPUT
from compiler.measure import quality
from compiler.pipeline import array_candidates, embedding, judging, probing, recipe_models, trials
from compiler.pipeline.cached_steps import CachedSteps, Model, as_it_is, engine
from compiler.pipeline.candidates import Candidate, Chosen, Contest, Goal
from compiler.pipeline.certifying import check_enough, sample_of
from compiler.pipeline.family import Terms, Tested, Use
from compiler.pipeline.trials import Setting
from compiler.progress import Doing
from compiler.recipe import certificate_section
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.recipes import CLOUD, Recipe
from penstock.artifact.layout import VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.errors import CompileError, Internal, InvalidInput
from penstock.policy import confidence
from penstock.policy.decoding import CLASSES
from penstock.runtime import Engine
from penstock.wire.tensors import Array, TensorSpec, is_compatible, listing

SMOKE_ROWS = 64
_DATA_SUFFIX = ".data"


class Arrays:
    """A recipe's models as ONNX with its examples; a ``compiler.pipeline.family.Family``."""

    def __init__(
        self,
        steps: CachedSteps,
        recipe: Recipe,
        *,
        models: Mapping[str, Model],
        inputs: tuple[TensorSpec, ...],
        judge: quality.Judge,
        labels: tuple[str, ...],
        data: Dataset,
        smoke: bool,
    ) -> None:
        """Keep what was loaded.

        Args:
            models: by role, the cloud's included.
            inputs: that every model takes.
            judge: of answers.
            labels: names of the classes; () for none.
            data: the examples by use.
        """
        self._steps, self._recipe, self._models, self._data = steps, recipe, models, data
        self._inputs, self._judge, self._labels, self._smoke = inputs, judge, labels, smoke
        self._cloud_rows = _cloud_rows(recipe, models[CLOUD], inputs, data.ranges)
        self.cloud = _cloud(steps, recipe, models[CLOUD], self._cloud_rows)
        self.splits: Mapping[str, SplitFigures] = {
            use: SplitFigures(rows=one.rows, digest=one.digest) for use, one in data.by_use().items()
        }
        self.sources: Mapping[str, str] = {role: model.how for role, model in models.items()}
        self.preprocessing: Mapping[str, Any] = {
            **preprocessing(recipe.data, recipe.base, inputs),
            **recipe.preprocessing,
        }
        self.sample = sample_of(data.certify, data.repeats, group_by=recipe.data.group_by)
        self.units, self.repeats = data.certify.units, data.repeats.words
        self.terms = Terms(
            metric=judge.metric_name(has_labels=data.test.labels is not None),
            max_drop=1.0 if smoke else recipe.quality.max_accuracy_drop,
            advice=trials.ADVICE,
            judged_by=judging.told(recipe, judge),
            correct="" if judge.is_right_when_equal else judging.told(recipe, judge)["correct"],
        )

    @classmethod
    def load(cls, steps: CachedSteps, recipe: Recipe, *, promise: CertificateSection | None, smoke: bool) -> Self:
        """Read or export every model, read the examples, train students, and check that all of it fits."""
        models = recipe_models.export_all(steps, recipe)
        if CLOUD not in models:  # the float model of the last rung answers for the cloud
            models[CLOUD] = models[recipe.rungs[-1].role]
        teacher = engine(models[CLOUD].path)
        output = quality.scored_output(
            recipe.model.task, teacher.outputs, recipe.model.output, besides=recipe.model.probe_output
        )
        recipe = judging.with_skipped(recipe, models[CLOUD])
        judge = judging.judge_of(recipe, output.name)
        judging.check_outputs(recipe, teacher)
        classes = _classes(recipe, output)
        _check_pairs(recipe, models)
        labels = recipe.model.labels or tuple(models[CLOUD].facts.get("labels") or ())
        recipe = recipe_models.with_columns(recipe, models, teacher.inputs)
        dimensions = recipe_models.dimensions_of(models)
        inputs = buckets.with_sizes(teacher.inputs, dimensions)
        data = _examples(steps, recipe, inputs, classes, labels, judge, promise=promise, smoke=smoke)
        data = data.with_dimensions(dimensions)
        recipe_models.run_all_first(steps, recipe, models, data)
        recipe = judging.with_kind(recipe, teacher, output.name, data)
        judge = replace(judge, decoder=judging.decoder(recipe.model, output.name, recipe.model.kind), labels=labels)
        if judge.takes_tokens:
            data = data.with_labels(lambda labels: text.label_tokens(labels, recipe.data, recipe.base))
        data = data.with_labels(judge.references)
        rows = SMOKE_ROWS if smoke else None
        for rung in recipe.rungs:
            if rung.section.distill:
                models[rung.role] = recipe_models.train_student(steps, recipe, rung, models[CLOUD], data, rows)
        _check_pairs(recipe, models)
        return cls(
            steps,
            recipe,
            models=models,
            inputs=inputs,
            judge=judge,
            labels=labels or data.class_names,
            data=data,
            smoke=smoke,
        )

    @staticmethod
    def examples_digest(recipe: Recipe) -> str:
        """Return the content of the arrays, files or functions that ``[data]`` names."""
        return fingerprint(recipe.data, recipe.base)

    def candidates(self, goal: Goal) -> Contest:
        """Apply every pass that is asked for, and measure what it made on the tuning split."""
        setting = Setting(
            goal=goal,
            recipe=self._recipe,
            source=self._models[goal.rung.role],
            judge=self._judge,
            data=self._data,
            smoke=self._smoke,
        )
        return array_candidates.compete(self._steps, setting, self._models[CLOUD])

    def probed(self, chosen: Chosen) -> Chosen:
        """Try a head for the confidence of a classifier that can be asked here and has no confidence of its own."""
        recipe, goal, candidate = self._recipe, chosen.goal, chosen.candidate
        promise = certificate_section.for_rung(recipe.certificate, len(recipe.rungs))
        if self._smoke or not probing.is_wanted(promise, goal.target, self._judge.decoder):
            return chosen
        with self._steps(f"{goal.what} probe") as doing:
            trial = probing.Trial(
                candidate=candidate,
                ask=lambda one: self.ask(one, "tune", doing),
                tune=self._data.tune,
                promise=promise,
                rows_to_certify=self.units,
                max_batch=candidate.batch_rows(recipe.model.max_batch),
                samples=golden_inputs.of_edge(self._data.ranges),
                may_run_alone=recipe.quality.mixed_rows == "alone",
                seed=recipe.seed,
            )
            return replace(chosen, candidate=probing.tried(self._steps, trial, doing))

    def draft(self, chosen: Chosen) -> VariantDraft:
        """Pack the chosen graph; for TensorRT targets, the engine that is built from it."""
        goal, graph = chosen.goal, chosen.candidate.made
        role, target = goal.rung.role, goal.target
        packed = graph
        if target.engine in ("tensorrt", "tensorrt-rtx"):
            with self._steps(f"{goal.what} engine") as doing:
                options, ranges = goal.rung.section.passes.get(target.engine, {}), self._data.ranges
                packed = self._steps.apply(
                    target.engine, graph, doing, target=target, options=options, calibration=ranges
                )
                doing.note(packed.how)
        onnx = as_it_is(graph.path)
        spec = msgspec.structs.replace(
            self._spec(onnx, role),
            role=role,
            engine=target.engine,
            target=target.name,
            provider=target.provider,
            precision=chosen.candidate.precision,
            max_batch=self._batch_rows(chosen.candidate, onnx),
            probe_output=self._judge_of(chosen.candidate).decoder.probe or msgspec.UNSET,
        )
        files = {**{path.name: path for path in packed.files}, **self._travelling(role)}
        return pack.draft(spec, packed.path, onnx, self._asked(self._data.ranges.inputs, onnx), files=files)

    def cloud_draft(self) -> VariantDraft:
        """Pack the cloud's model as it came."""
        path, files = self.cloud.made.path, self._travelling(CLOUD)
        onnx = as_it_is(path)
        return pack.draft(self._spec(onnx, CLOUD), path, onnx, self._asked(self._cloud_rows, onnx), files=files)

    def ask(self, candidate: Candidate, use: Use, doing: Doing) -> AnsweredRows:
        """Ask a candidate and the cloud one split."""
        split, outputs = self._data.by_use()[use], self._answers(candidate, use, candidate.name, doing)
        tuned = probing.tuned(candidate) if use == "tune" else {}  # its head has seen these rows
        return AnsweredRows(
            outputs={**outputs, **tuned},
            cloud=self._answers(self.cloud, use, CLOUD, doing),
            labels=split.labels,
            groups=split.groups,
            judge=self._judge_of(candidate),
            clusters=split.clusters,
            is_learned=bool(tuned),
        )

    def evaluate(self, candidate: Candidate, what: str, doing: Doing) -> Tested:
        """Compare a candidate with labels and with the cloud; the cloud is timed here, as it came."""
        answered, cloud = self._answers(candidate, "test", what, doing), self._answers(self.cloud, "test", CLOUD, doing)
        test, judge, speed = self._data.test, self._judge, candidate.speed
        mask, name = quality.mask_of(test.inputs), judge.decoder.output
        if candidate is self.cloud:
            speed = self._steps.timed({CLOUD: candidate.made}, self._data.tune, doing).speeds[CLOUD]
        return Tested(
            quality=quality.share(judge.scores(answered, cloud, test.labels, mask)),
            agreement=quality.share(judge.agreement(answered, cloud, mask)),
            speed=speed,
            ranking=quality.ranking_kept(answered[name], cloud[name], mask) if judge.task == "embedding" else None,
            reference=pack.row_reference_of(test.inputs, cloud) if candidate is self.cloud else b"",
        )

    def further_figures(self, chosen: Sequence[Chosen]) -> dict[str, Any]:
        """Return nothing: everything that is measured of these models has its place in the evaluation."""
        return {}

    def _asked(self, inputs: Mapping[str, Array], onnx: Engine) -> list[dict[str, Array]]:
        """Return the golden calls of a variant: the first rows, and a few of them at each other size."""
        inputs = golden_inputs.steady(inputs, onnx.run, self._judge.decoder)
        rows = Split(name="golden", inputs=inputs, labels=None, dimensions=self._data.ranges.dimensions)
        few = rows.take(slice(0, golden_inputs.ROWS_AT_OTHER_SIZES), name=rows.name)
        return [
            calls.first(inputs, onnx.inputs, rows=golden_inputs.ROWS),
            *(calls.first(one.inputs, onnx.inputs, rows=one.rows) for _, one in buckets.others(few)),
        ]

    def _spec(self, onnx: Engine, role: str) -> VariantSpec:
        """Return the spec of the cloud's variant, with what the source of ``role`` says about texts."""
        model = self._recipe.model
        spec = VariantSpec(
            model=model.name,
            role=CLOUD,
            engine="onnx",
            target=pack.CLOUD_TARGET,
            provider="cpu",
            precision=self.cloud.precision,
            inputs=buckets.with_sizes(onnx.inputs, self._data.ranges.dimensions),
            outputs=onnx.outputs,
            score_output=self._judge.decoder.output,
            score_kind=self._judge.decoder.kind,
            probe_output=model.probe_output or msgspec.UNSET,
            decoding=msgspec.UNSET if self._judge.decoder.decoding == CLASSES else self._judge.decoder.decoding,
            labels=self._labels,
            max_batch=self._batch_rows(self.cloud, onnx),
            preprocessing=dict(self.preprocessing),
        )
        return embedding.with_texts(spec, self._recipe, self._models[role])

    def _batch_rows(self, candidate: Candidate, onnx: Engine) -> int:
        """Return how many rows of a call the variant is served with: one where the model takes no more."""
        return candidate.batch_rows(self._recipe.model.max_batch) if calls.has_rows(onnx.inputs) else 1

    def _judge_of(self, candidate: Candidate) -> quality.Judge:
        """Return what judges a candidate, by its own confidence where its graph has a head."""
        return self._judge.with_probe(PROBE_OUTPUT) if candidate.has_head else self._judge

    def _answers(self, candidate: Candidate, use: Use, what: str, doing: Doing) -> dict[str, Array]:
        return self._steps.answers(
            candidate.made,
            self._data.by_use()[use],
            doing,
            decoder=self._judge_of(candidate).decoder,
            max_batch=candidate.batch_rows(self._recipe.model.max_batch),
            what=what,
        )

    def _travelling(self, role: str) -> Mapping[str, Path]:
        """Return the tokenizer and the like of a source; its weights have become the variant's own."""
        return {path.name: path for path in self._models[role].files if path.suffix != _DATA_SUFFIX or role == CLOUD}


def _cloud_rows(recipe: Recipe, model: Model, inputs: tuple[TensorSpec, ...], examples: Split) -> dict[str, Array]:
    """Return rows for the cloud's model that do not depend on the edge's examples: its digest must not, either.

    Where the model leaves sizes open they are those of the examples; where it refuses noise (a sampling rate of 0 or 1,
    a year that its encoder does not know), rows of the examples are all that is left.

    Raises:
        CompileError: the model refuses those, too.
    """
    allowed = recipe.model.input_range
    has_text = any(spec.datatype == "BYTES" for spec in inputs)
    if not has_text and all(-1 not in spec.shape[1:] for spec in inputs):
        return golden_inputs.of_cloud(inputs, allowed)
    words = vocabulary.words_of_inputs(files.read(model.path, field=f"{CLOUD}.model")) if has_text else {}
    onnx, reason = engine(model.path), ""
    for has_unknown in (True, False) if has_text else (False,):
        rows = golden_inputs.of_cloud(inputs, allowed, words, like=examples.inputs, has_unknown=has_unknown)
        try:
            outputs = onnx.run(rows)
        except (InvalidInput, Internal) as error:
            reason = error.message
            continue
        if has_text or all(confidence.finite_rows(array).all() for array in outputs.values()):
            return rows
    rows = golden_inputs.of_edge(examples)
    try:
        onnx.run(rows)
    except (InvalidInput, Internal) as error:
        raise CompileError(
            f"{CLOUD}.model: refuses inputs of our making ({reason}) and the first examples, too: {error.message}. "
            "Let it take words that it does not know, which clients will send (scikit-learn: "
            'OneHotEncoder(handle_unknown="ignore"))'
        ) from error
    return rows


def _cloud(steps: CachedSteps, recipe: Recipe, model: Model, samples: Mapping[str, Array]) -> Candidate:
    """Look at the cloud's model.

    Raises:
        CompileError: its rows change each other's answers, and the recipe refuses that.
    """
    found = Candidate(name=CLOUD, precision=model.precision, model=model)
    with steps("cloud rows") as doing:
        mixed = steps.rows_mixed_by(model, samples, doing, precision=found.precision)
        array_candidates.refuse_mixed(recipe, CLOUD, mixed)
        doing.note(f"{mixed}; rows run one at a time" if mixed else "independent of each other")
    return replace(found, rows_mixed=mixed)


def _examples(
    steps: CachedSteps,
    recipe: Recipe,
    inputs: tuple[TensorSpec, ...],
    classes: int | None,
    labels: tuple[str, ...],
    judge: quality.Judge,
    *,
    promise: CertificateSection | None,
    smoke: bool,
) -> Dataset:
    with steps("data") as doing:
        data = loading.load(
            recipe.data,
            recipe.base,
            inputs,
            classes=classes,
            input_range=recipe.model.input_range,
            labels_as=judge.label_form,
            labels=labels,
            progress=lambda note: doing.advance(0.0, note),
        )
        if smoke:
            data = data.thinned(SMOKE_ROWS)
        shares = "rows: " + ", ".join(f"{split.rows} {use}" for use, split in data.by_use().items())
        doing.note("; ".join(part for part in (shares, data.repeats.words) if part))
        if promise is not None:
            check_enough(data.certify, data.repeats, promise)
    return data


def _classes(recipe: Recipe, scored: TensorSpec) -> int | None:
    """Return the number of classes of a classification; None for other tasks.

    Raises:
        CompileError: names of classes that do not fit.
    """
    if recipe.model.task != "classification":
        return None
    classes = max(2, scored.shape[1])
    if recipe.model.labels and len(recipe.model.labels) != classes:
        raise CompileError(f"model.labels: {len(recipe.model.labels)} names, but the model has {classes} classes")
    return classes


def _check_pairs(recipe: Recipe, models: Mapping[str, Model]) -> None:
    """Check that every rung takes and gives what the cloud does, or the cloud could not answer for it.

    Raises:
        CompileError: what they disagree on.
    """
    cloud = engine(models[CLOUD].path)
    for role in (rung.role for rung in recipe.rungs if rung.role in models):
        edge = engine(models[role].path)
        for what, ours, theirs in (("inputs", edge.inputs, cloud.inputs), ("outputs", edge.outputs, cloud.outputs)):
            if not is_compatible(ours, theirs):
                raise CompileError(
                    f"{role}.model and cloud.model disagree on {what}: {listing(ours)} and "
                    f"{listing(theirs)}; the cloud could not answer for the edge"
                )
