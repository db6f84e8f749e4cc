"""A head for the confidence of a chosen candidate: trained on what its graph computes, and part of it if that helps.

Owns that the head learns from the very numbers that a device computes: the features are an output of the candidate's
own graph, asked as the variant is served. Once the head is part of the graph, both are compared again on every tuning
row: its answers must be what they were, and its confidence what was trained. A head ships where the recipe names it, or
where it is shown to keep more than the other scores and its cost is within ``MAX_COST``. What is learnt, and what is
shown, is decided by ``compiler.certificate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Interval, ProbeFigures, ScoreFigures
from compiler.certificate import probe, score_choice
from compiler.certificate.issue import AnsweredRows
from compiler.certificate.probe import Seen
from compiler.data import Split, calls
from compiler.graph import confidence_head, files
from compiler.graph.confidence_head import FEATURES_OUTPUT, PROBE_OUTPUT, Features
from compiler.measure import cost
from compiler.passes.job import MODEL_FILE
from compiler.pipeline.cached_steps import CachedSteps, Model, engine, machine_facts
from compiler.pipeline.candidates import Candidate, Probed, score_figures
from compiler.progress import Doing
from compiler.recipe.certificate_section import AUTO, CertificateSection
from compiler.recipe.targets import Target
from penstock import wording
from penstock.artifact.blobs import digest_of
from penstock.errors import CalibrationError, CompileError
from penstock.hosting import row_independence
from penstock.policy import confidence
from penstock.policy.confidence import PROBE
from penstock.policy.decoding import Decoder
from penstock.wire.tensors import Array

MAX_COST = 0.02
"""Share of a single-row call that a head may cost where the recipe does not name it."""

_MAX_APART = 1e-3  # confidence in float32 against float64
_LEAST_SAME = 0.995  # rows whose class must be what it was: one beside a rounding border may change
_TUNED_FILE = "tuned.npy"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A head to be tried.

    Attributes:
        candidate: whose confidence it is to be.
        ask: asks a candidate and the cloud the tuning split.
        tune: that split.
        promise: to be made of the variant.
        rows_to_certify: how many examples will certify it.
        max_batch: rows of one call, as the variant is served.
        samples: rows on which devices look whether rows change each other's answers.
        may_run_alone: whether a variant whose rows do is served one row at a time, or refused.
    """

    candidate: Candidate
    ask: Callable[[Candidate], AnsweredRows]
    tune: Split
    promise: CertificateSection
    rows_to_certify: int
    max_batch: int
    samples: Mapping[str, Array]
    may_run_alone: bool
    seed: int

    @cached_property
    def answered(self) -> AnsweredRows:
        """Return what the candidate and the cloud answered."""
        return self.ask(self.candidate)

    def alone(self, mixed: str) -> Trial:
        """Return the same for a candidate whose rows run one at a time.

        Raises:
            CompileError: the recipe refuses that.
        """
        if not self.may_run_alone:
            raise CompileError(f'probe: {mixed}, and quality.mixed_rows = "refuse"')
        return replace(self, candidate=replace(self.candidate, rows_mixed=mixed), max_batch=1)

    @property
    def decoder(self) -> Decoder:
        """Return what reads the candidate's answers."""
        return self.answered.judge.decoder


def is_wanted(promise: CertificateSection, target: Target, decoder: Decoder) -> bool:
    """Say whether a head is to be tried: for classes, where the candidate runs here and says nothing of it itself."""
    is_asked_for = promise.score in (AUTO, PROBE) and decoder.decoding.form == "classes" and not decoder.probe
    return is_asked_for and target.runs_here and target.engine == "onnx"


def tried(steps: CachedSteps, trial: Trial, doing: Doing) -> Candidate:
    """Train a head; return the candidate with it where it ships, and with what came of it in any case.

    Raises:
        CalibrationError, CompileError: the recipe names this score, and the candidate cannot have it.
    """
    found = _tried(steps, trial, doing)
    assert found.probed is not None
    doing.note(found.probed.figures.reason)
    return found


def tuned(candidate: Candidate) -> dict[str, Array]:
    """Return the confidence in each tuning row by heads that did not see it, as an output; {} for no head."""
    if candidate.probed is None or candidate.probed.tuned is None:
        return {}
    return {PROBE_OUTPUT: np.load(candidate.probed.tuned)}


def _tried(steps: CachedSteps, trial: Trial, doing: Doing) -> Candidate:
    harm = trial.answered.harmful(trial.promise.harm)
    try:
        problem = probe.why_not(harm)
        if problem:
            raise CalibrationError(f"probe: {problem}")
        found = steps.keep("probe", _key(trial, harm), lambda out, work: _produce(trial, out, work), doing)
    except (CalibrationError, CompileError) as error:
        if trial.promise.score == PROBE:
            raise
        return _without(trial.candidate, error.message)
    figures = msgspec.convert(found.facts["figures"], ProbeFigures)
    scores = msgspec.convert(found.facts["scores"], tuple[ScoreFigures, ...])
    kept = replace(trial.candidate, probed=Probed(figures=figures, scores=scores, tuned=None))
    if not figures.ships:
        return kept
    path = found.directory / MODEL_FILE
    beside = tuple(file for file in (files.data_path(path),) if file.exists())
    model = replace(trial.candidate.made, path=path, content=found.content, files=beside)
    mixed = steps.rows_mixed_by(model, trial.samples, doing, precision=trial.candidate.precision)
    if mixed and not trial.candidate.rows_mixed:  # a head sees what the logits hide in their rounding
        if trial.promise.score == PROBE:
            return _tried(steps, trial.alone(mixed), doing)
        way = 'certificate.score = "probe" takes it all the same, and rows run one at a time'
        figures = msgspec.structs.replace(figures, ships=False, reason=f"{figures.reason}; {mixed}: left out ({way})")
        return replace(kept, probed=Probed(figures=figures, scores=scores, tuned=None))
    return replace(
        kept, model=model, probed=Probed(figures=figures, scores=scores, tuned=found.directory / _TUNED_FILE)
    )


def _key(trial: Trial, harm: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "model": trial.candidate.made.content,
        "split": trial.tune.digest,
        "harmful": digest_of(np.packbits(harm).tobytes()),
        "promise": msgspec.to_builtins(trial.promise),
        "rows_to_certify": trial.rows_to_certify,
        "output": trial.decoder.output,
        "kind": trial.decoder.kind,
        "max_batch": trial.max_batch,
        "seed": trial.seed,
        "machine": machine_facts(),
    }


def _produce(trial: Trial, out: Path, work: Path) -> dict[str, Any]:
    """Train, compare and, where it ships, write the graph with the head and the confidences of the tuning rows."""
    source, answered, output = trial.candidate.made, trial.answered, trial.decoder.output
    model = files.read(source.path, field="model")
    features = confidence_head.find(model, output)
    rank = _rank(source, features, trial, work)
    seen = _seen(source, features, rank, trial, work)
    _check_same(answered.outputs[output], seen.outputs, trial.candidate.precision)
    harm = answered.harmful(trial.promise.harm)
    classes = answered.classes()
    assert classes is not None
    temperature, _ = score_choice.temperature_of(seen.outputs, classes, seen.kind)
    learned = probe.cross_fitted(seen, harm, temperature=temperature, seed=trial.seed, clusters=answered.clusters)
    choice = _with_confidence(answered, seen.outputs, learned).choose(
        trial.promise, rows_to_certify=trial.rows_to_certify
    )
    figures = ProbeFigures(
        ships=choice.score == PROBE,
        reason=choice.reason,
        features=features.reader,
        width=seen.features.shape[1],
        gain=None if choice.gain is None else Interval(**asdict(choice.gain)),
    )
    if figures.ships:
        head = probe.fit(seen, harm, temperature=temperature, seed=trial.seed)
        confidence_head.with_head(model, features, head, output=output, rank=rank)
        files.write(model, out / MODEL_FILE)
        outputs = _asked(out / MODEL_FILE, trial, [output, PROBE_OUTPUT])
        _check_same(answered.outputs[output], outputs[output], trial.candidate.precision)
        apart = float(np.max(np.abs(outputs[PROBE_OUTPUT].astype(np.float64) - head.confidences(seen))))
        if not apart <= _MAX_APART:
            raise CompileError(
                f"probe: the graph computes a confidence that is {apart:.2g} off the one that was trained"
            )
        np.save(out / _TUNED_FILE, learned)
        figures = _priced(figures, trial, out / MODEL_FILE)
    if not figures.ships:
        for file in out.iterdir():
            file.unlink()
    facts: dict[str, Any] = msgspec.to_builtins({"figures": figures, "scores": score_figures(choice)})
    return facts


def _with_confidence(answered: AnsweredRows, outputs: Array, learned: NDArray[np.float64]) -> AnsweredRows:
    """Return answers as those of a variant that has a head."""
    judge = answered.judge
    return replace(
        answered,
        outputs={judge.decoder.output: outputs, PROBE_OUTPUT: learned},
        judge=judge.with_probe(PROBE_OUTPUT),
        is_learned=True,
    )


def _without(candidate: Candidate, reason: str) -> Candidate:
    figures = ProbeFigures(ships=False, reason=reason)
    return replace(candidate, probed=Probed(figures=figures, scores=(), tuned=None))


def _rank(source: Model, features: Features, trial: Trial, work: Path) -> int:
    """Look how many dimensions features have, on rows of the tuning split.

    Raises:
        CompileError: their first one is not the rows.
    """
    model = files.read(source.path, field="model")
    confidence_head.open_at(model, features)
    files.write(model, work / "open.onnx")
    opened = engine(work / "open.onnx")
    given = calls.first(trial.tune.inputs, opened.inputs, rows=min(2, trial.max_batch))
    found = opened.run(given, [features.tensor, trial.decoder.output])
    shape, answers = found[features.tensor].shape, found[trial.decoder.output].shape
    if answers[1] < 2:
        raise CompileError("probe: a head needs two classes or more in the scored output, and this one has one number")
    if len(shape) < 2 or shape[0] != answers[0]:
        raise CompileError(
            f"probe: what {features.reader!r} takes is of shape {list(shape)} for {answers[0]} rows: a head needs "
            "features of each row"
        )
    return len(shape)


def _seen(source: Model, features: Features, rank: int, trial: Trial, work: Path) -> Seen:
    """Ask the candidate for its answers and, in the same calls, for the features that a head of it would read."""
    model = files.read(source.path, field="model")
    confidence_head.with_features(model, features, rank=rank)
    path = work / "features.onnx"
    files.write(model, path)
    found = _asked(path, trial, [trial.decoder.output, FEATURES_OUTPUT])
    return Seen(outputs=found[trial.decoder.output], features=found[FEATURES_OUTPUT], kind=trial.decoder.kind)


def _asked(path: Path, trial: Trial, outputs: Sequence[str]) -> dict[str, Array]:
    """Ask a model for some outputs of all tuning rows, in calls as the variant is served."""
    loaded, inputs = calls.by_rows(engine(path)), trial.tune.inputs
    parts = [
        loaded.run({name: array[at : at + trial.max_batch] for name, array in inputs.items()}, outputs)
        for at in range(0, trial.tune.rows, trial.max_batch)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def _check_same(before: Array, after: Array, precision: str) -> None:
    """Check that a graph still answers what it did: another consumer of a tensor may keep operators from being fused.

    Raises:
        CompileError: by more than rounding.
    """
    same = float(np.mean(confidence.predicted(before) == confidence.predicted(after)))
    if same < _LEAST_SAME or row_independence.first_apart({"": before}, {"": after}, precision=precision) is not None:
        raise CompileError(f"probe: reading the features changes what the graph answers ({same:.2%} of rows as before)")


def _priced(figures: ProbeFigures, trial: Trial, path: Path) -> ProbeFigures:
    """Measure what a head costs; it does not ship for more than is allowed unless the recipe names it."""
    added = cost.added_share(engine(trial.candidate.made.path), engine(path), trial.tune.inputs)
    is_dear = added.low > MAX_COST and trial.promise.score == AUTO
    words = f"it costs {wording.percent(added.value)} of a call ({wording.between(added.low, added.high)})"
    return msgspec.structs.replace(
        figures,
        cost=added,
        ships=not is_dear,
        reason=f"{figures.reason}; {words}{f', more than {MAX_COST:.0%}: left out' if is_dear else ''}",
    )
