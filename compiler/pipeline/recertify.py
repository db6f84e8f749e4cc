"""A packed artifact certified again: its variants answer new examples, and a new certificate joins the old ones.

Owns that nothing is compiled or changed: the variants are run as packed, after they reproduced their golden vectors on
this machine, and the certificate is attached only when its evidence is. What is chosen, promised and bound is
``compiler.certificate.issue``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from compiler.artifact.replay import opened, runs_here
from compiler.certificate import evidence, learn_then_test
from compiler.certificate.issue import AnsweredRows, issue
from compiler.certificate.score_choice import Choice
from compiler.data import Split, calls
from compiler.measure.answers import answers
from compiler.measure.quality import Judge
from compiler.pipeline import judging, new_examples
from compiler.pipeline.certifying import check_enough, sample_of
from compiler.pipeline.new_examples import Examples, ExampleSource
from compiler.recipe import certificate_section
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.recipes import CLOUD
from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate, Harm
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Artifact, Variant, VariantSpec
from penstock.errors import ArtifactError, CalibrationError, InvalidInput, PenstockError
from penstock.hosting.loading import Loaded
from penstock.process.config import nearest
from penstock.runtime import TEXT_ENGINES
from penstock.wire.tensors import Array

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Say what is to be certified. What is None or empty is as in each variant's newest certificate, else the default.

    Attributes:
        source: the new examples.
        target: only variants for this target; "" for all that this machine can run.
        max_harm: promised shares, the default first.
        delta: chance that the promise does not hold.
        harm: what counts as harm.
        choose_again: choose score and temperature on a third of the examples (or their split for it), instead of
            using those of the newest certificate.
        check_cloud: refuse a promise whose cloud is not shown to be better than guessing.
    """

    source: ExampleSource
    target: str = ""
    max_harm: tuple[float, ...] = ()
    delta: float | None = None
    harm: Harm | None = None
    choose_again: bool = False
    check_cloud: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold what came of one variant.

    Attributes:
        certificate: the new one; None where it was refused.
        digest: of the new certificate's manifest, "" without one.
        refusal: why there is none, "" where there is.
        needed: examples that would do, None where no number would.
        reason: where score and temperature are from.
    """

    role: str
    target: str
    edge_digest: str
    certificate: Certificate | None
    digest: str = ""
    refusal: str = ""
    needed: int | None = None
    reason: str = ""


def recertify(directory: Path, request: Request, *, say: Say) -> list[Outcome]:
    """Certify the edge variants of the artifact in ``directory`` on new examples, and attach what was certified.

    A variant that is refused keeps the certificates it has. Each certificate is one look at the examples: asking again
    and again until one passes would be a promise that nobody has made.

    Raises:
        ArtifactError: the artifact is damaged, or a variant does not reproduce its golden vectors here.
        ConfigError, InvalidInput: the request or the examples are wrong. CompileError: answers that are not finite.
    """
    layout = Layout(directory)
    problems = layout.verify()
    if problems:
        raise ArtifactError(f"{directory} does not verify, so nothing was certified: {'; '.join(problems[:3])}")
    artifact = layout.artifact()
    cloud = artifact.variant(CLOUD)
    if cloud.spec.engine in TEXT_ENGINES:
        raise InvalidInput(
            f"{directory} holds language models, which are certified on prompts by 'penstock compile': name the "
            "directories that they were built in as models of a recipe, and they are taken as they are",
            field="artifact",
        )
    wanted = _wanted(artifact, request.target)
    rungs = len({variant.spec.role for variant in artifact.variants if variant.spec.role != CLOUD})
    sections = {variant.digest: _section(layout, variant, request, rungs) for variant in wanted}
    newest = {variant.digest: _newest(layout, variant) for variant in wanted}
    tunes = request.choose_again or None in newest.values()
    source = request.source
    known = [one for one in newest.values() if one is not None]
    if source.group_by is None:  # a promise to groups stays one
        source = replace(source, group_by=next((one.group_by for one in known if one.group_by), None))
    if source.cluster_by is None and source.repeats is None:  # and one over clusters, too
        source = replace(source, cluster_by=next((one.cluster_by for one in known if one.cluster_by), None))
    needs_labels = any(section.harm == "labels" for section in sections.values())
    judge = judging.judge_of_variant(cloud.spec, _correct(newest.values(), needs_labels=needs_labels))
    examples = new_examples.read(source, cloud.spec, judge, needs_labels=needs_labels, tunes=tunes)
    say(f"{examples.certify.rows} examples to certify{f', {examples.tune.rows} to tune' if tunes else ''}")
    if examples.repeats.words:
        say(examples.repeats.words)
    outcomes = []
    with opened(layout, cloud) as teacher:
        for variant in wanted:
            say(f"certifying {variant.spec.role}/{variant.spec.target}")
            task = _Task(
                layout=layout,
                artifact=artifact,
                variant=variant,
                section=sections[variant.digest],
                examples=examples,
                newest=newest[variant.digest],
                choose_again=request.choose_again,
            )
            with opened(layout, variant) as student:
                pair = _Pair(student=student, teacher=teacher, variant=variant, cloud=cloud, judge=judge)
                outcomes.append(_certified(task, pair))
    return outcomes


def _correct(newest: Iterable[Certificate | None], *, needs_labels: bool) -> str:
    """Return by what an answer was right so far; "" where that was its label, or labels are not looked at."""
    said = [one.correct for one in newest if one is not None and isinstance(one.correct, str)]
    return said[0] if said and needs_labels else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A loaded variant and the loaded cloud variant.

    Attributes:
        variant: what the variant is.
        cloud: what the cloud variant is.
        judge: of their answers.
    """

    student: Loaded
    teacher: Loaded
    variant: Variant
    cloud: Variant
    judge: Judge

    def ask(self, split: Split) -> AnsweredRows:
        """Ask both the examples of a split.

        Raises:
            CompileError: one of them answers with NaN or infinities.
        """
        return AnsweredRows(
            outputs=_outputs(self.student, self.variant.spec, split, self.judge),
            cloud=_outputs(self.teacher, self.cloud.spec, split, self.judge),
            labels=split.labels,
            groups=split.groups,
            judge=self.judge.with_probe(self.variant.spec.probe),
            clusters=split.clusters,
        )


def _outputs(loaded: Loaded, spec: VariantSpec, split: Split, judge: Judge) -> dict[str, Array]:
    return answers(
        calls.by_rows(loaded.engine),
        split.inputs,
        decoder=replace(judge.decoder, probe=spec.probe),
        max_batch=loaded.max_batch if loaded.timing.is_batchable else spec.max_batch,
        what=f"{spec.role} variant",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One variant to certify.

    Attributes:
        newest: its newest certificate, None where it has none.
    """

    layout: Layout
    artifact: Artifact
    variant: Variant
    section: CertificateSection
    examples: Examples
    newest: Certificate | None
    choose_again: bool


def _certified(task: _Task, pair: _Pair) -> Outcome:
    spec = task.variant.spec
    shown = Outcome(role=spec.role, target=spec.target, edge_digest=task.variant.digest, certificate=None)
    try:
        _check_unseen(task)
        check_enough(task.examples.certify, task.examples.repeats, task.section)
        choice = _choice(task, pair)
        shown = replace(shown, reason=choice.reason)
        issued = issue(
            pair.ask(task.examples.certify).certify_data(choice, harm=task.section.harm),
            task.section,
            choice,
            manifests.subject_of(task.artifact, task.variant),
            sample_of(task.examples.certify, task.examples.repeats, group_by=task.examples.group_by),
            serial=1 if task.newest is None else task.newest.serial + 1,
            correct="" if pair.judge.is_right_when_equal or task.section.harm != "labels" else pair.judge.right_words,
            are_classes=pair.judge.is_right_when_equal,
        )
    except CalibrationError as error:
        return replace(shown, refusal=error.message, needed=error.needed)
    # the evidence first: whoever sees the certificate finds what it names, also when this is cut short in between
    task.layout.attach(manifests.EVIDENCE, issued.evidence, title="evidence.msgpack")
    digest = task.layout.attach_certificate(issued.certificate).digest
    return replace(shown, certificate=issued.certificate, digest=digest)


def _check_unseen(task: _Task) -> None:
    """Check that the examples have not certified this variant before: no promise covers a second look at them.

    Raises:
        CalibrationError: they have.
    """
    digest = task.examples.certify.digest
    for _, earlier in task.layout.certificates():
        if earlier.edge_digest == task.variant.digest and earlier.data_digest == digest:
            raise CalibrationError(
                f"certificate {earlier.serial} of this variant rests on these very examples; looking at them until "
                "they say something else would break the promise. Give examples that have certified nothing yet"
            )


def _choice(task: _Task, pair: _Pair) -> Choice:
    """Take score and thresholds from the newest certificate, or choose them on examples that certify nothing.

    Raises:
        CalibrationError: nothing can be chosen on them.
    """
    if task.newest is None or task.choose_again:
        return pair.ask(task.examples.tune).choose(task.section, rows_to_certify=task.examples.certify.units)
    one = task.newest
    return Choice(
        score=one.score,
        temperature=one.temperature,
        coverage={},
        thresholds=_thresholds_of(task.layout, one),
        reason=f"{one.score} at temperature {one.temperature:g}, as in certificate {one.serial}",
    )


def _wanted(artifact: Artifact, target: str) -> list[Variant]:
    """Return the variants below the cloud that are asked for and that this machine can run.

    Raises:
        InvalidInput: there is none; what there is is listed.
    """
    edges = [variant for variant in artifact.variants if variant.spec.role != CLOUD]
    known = sorted({variant.spec.target for variant in edges})
    if target and target not in known:
        raise InvalidInput(f"--target: no variant for {target!r}; {nearest(target, known)}", field="target")
    asked = [variant for variant in edges if target in ("", variant.spec.target)]
    runnable = [variant for variant in asked if runs_here(variant)]
    if not runnable or (target and len(runnable) < len(asked)):
        raise InvalidInput(
            f"this machine cannot run {', '.join(sorted({v.spec.target for v in asked}))}, and figures are measured, "
            "never guessed: certify on a device of that kind",
            field="target",
        )
    return runnable


def _newest(layout: Layout, variant: Variant) -> Certificate | None:
    found = layout.certificate_for(variant.digest)
    return None if found is None else found[1]


def _section(layout: Layout, variant: Variant, request: Request, rungs: int) -> CertificateSection:
    """Return the promise for one variant: as its newest certificate has it, with what the request changes.

    Raises:
        ConfigError: a share out of range.
    """
    one = _newest(layout, variant)
    section = certificate_section.for_rung(CertificateSection(), rungs)
    if one is not None:
        refused = tuple(item.max_harm for item in one.refused)
        levels = (*one.max_harms, *refused)
        delta = sum(level.delta for level in one.levels) + sum(level.delta for level in one.refused) or one.delta
        section = CertificateSection(max_harm=levels, delta=delta, harm=one.harm)
    asked = {  # of the whole cascade, of which this is one rung
        "max_harm": tuple(level / rungs for level in request.max_harm) or None,
        "delta": None if request.delta is None else request.delta / rungs,
        "harm": request.harm,
    }
    section = msgspec.structs.replace(section, check_cloud=request.check_cloud)
    section = msgspec.structs.replace(section, **{name: value for name, value in asked.items() if value is not None})
    certificate_section.check(section)
    return section


def _thresholds_of(layout: Layout, certificate: Certificate) -> tuple[float, ...]:
    """Return the thresholds that were tested before, if their evidence is here: fixed before these examples were."""
    try:
        stored = layout.blobs.read(certificate.evidence_digest, limit_bytes=evidence.MAX_BYTES)
        return evidence.decode(stored).thresholds
    except PenstockError:
        return learn_then_test.THRESHOLDS
