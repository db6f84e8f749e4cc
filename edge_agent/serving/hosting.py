"""The models on this device: loads, proves and switches them, and keeps what is known of each one in service.

Owns which variant answers for a model, and the state that decides its cascade mode (certificate, audit evidence, the
cloud's version). Does not fetch, and does not decide when to switch: that is the updater's. Models that answer with
arrays run in this process, those that answer with texts in processes of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from edge_agent.policy import audit as auditing
from edge_agent.policy import cascade
from edge_agent.policy.audit import Audit
from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving import array_model
from edge_agent.serving.array_model import ArrayModel
from edge_agent.serving.counts import Outcomes, Tally
from edge_agent.serving.grader import Grader, grader_for
from edge_agent.serving.load_plan import LoadPlan, restored_audit, usable_certificate
from penstock.artifact.certificates import Certificate
from penstock.artifact.tensor_names import metadata_of
from penstock.errors import InvalidInput, NotFound, Unavailable
from penstock.hosting.embedding import Embedding
from penstock.hosting.generation import text_model
from penstock.hosting.generation.settings import GenerationSettings
from penstock.hosting.generation.text_model import TextModel
from penstock.hosting.loading import Loaded
from penstock.process import telemetry
from penstock.process.telemetry import LogSettings
from penstock.runtime import TEXT_ENGINES, platform_of
from penstock.wire.inference import Parameter
from penstock.wire.outcomes import NOTHING, OutcomeCounts

_LOG = logging.getLogger(__name__)
_MIN_PREFIX = len("sha256:") + 12


class Hosted:
    """One variant, ready to answer.

    Attributes:
        failures: requests that the engine failed since activation.
        in_flight: requests in it now.
        serves: what answers: arrays, or texts.
        grader: grades kept answers for audits, where the promise is about somebody's opinion.
        on_alarm: called when an audit ends keeping, so that it is on disk and reported at once.
        account: response parameters that say what answers here: artifact, certificate, threshold.
        kept_account: with those of an answer that is kept, the confidence aside.
    """

    def __init__(
        self,
        plan: LoadPlan,
        loaded: Loaded | TextModel,
        tally: Tally,
        *,
        run_length: float,
        max_queue_rows: int,
        max_harm: float | None = None,
        audits: Sequence[Audit] = (),
        texts: Embedding | None = None,
        grader: Grader | None = None,
    ) -> None:
        """Take ``max_harm``, the level of the certificate (None for its own), ``audits``, what is remembered of this
        model's, ``texts``, which makes rows of texts for a model that takes them, and ``grader`` as the attribute.
        """
        self.grader = grader or Grader(plan.model)
        self.plan = plan
        self.tally = tally
        self.failures = 0
        self.is_retired = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._run_length = run_length
        self.on_alarm: Callable[[], None] = lambda: None
        self._certificate, self._problem = usable_certificate(plan, max_harm)
        self._audit = restored_audit(plan, self._certificate, audits, tally.total)
        self.account: dict[str, Parameter] = {"artifact": plan.artifact_digest, "certificate": ""}
        if self._certificate is not None:
            self.account |= {"certificate": plan.certificate_digest, "threshold": self._certificate.threshold}
        self.kept_account: dict[str, Parameter] = {
            **self.account,
            "served_by": "edge",
            "reason": cascade.Reason.CONFIDENT.value,
            "rows_escalated": 0,
        }
        self._seen_cloud_digest = ""
        self._decided = cascade.ModeDecision(mode=CascadeMode.CASCADE)
        self._update_mode()
        spec = plan.variant.spec
        self.serves: ArrayModel | TextModel = (
            ArrayModel(spec, loaded, self, max_queue_rows=max_queue_rows, texts=texts)
            if isinstance(loaded, Loaded)
            else loaded
        )
        self.metadata = metadata_of(
            spec,
            name=plan.model,
            versions=(plan.version,),
            platform=platform_of(spec.engine),
            inputs=self.serves.inputs,
            outputs=self.serves.outputs,
        )

    def __repr__(self) -> str:
        return f"Hosted({self.plan.model}:{self.plan.version}, {self.mode}, in_flight={self.in_flight})"

    def enter(self) -> None:
        """Note that a request is in it: it is not released before, as far as there is time for that."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """Note that a request is over."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    @property
    def arrays(self) -> ArrayModel:
        """Return what answers with arrays.

        Raises:
            InvalidInput: it answers with texts.
        """
        if isinstance(self.serves, ArrayModel):
            return self.serves
        raise InvalidInput(
            f"model {self.plan.model!r} generates text; ask it at /v1/chat/completions or /v1/completions",
            field="model",
        )

    @property
    def is_text(self) -> bool:
        """Say whether it answers with texts."""
        return isinstance(self.serves, TextModel)

    @property
    def texts(self) -> TextModel:
        """Return what answers with texts.

        Raises:
            InvalidInput: it answers with arrays.
        """
        if isinstance(self.serves, TextModel):
            return self.serves
        raise InvalidInput(
            f"model {self.plan.model!r} answers with arrays; ask it at /v2/models/{self.plan.model}/infer",
            field="model",
        )

    @property
    def mode(self) -> CascadeMode:
        """Return what the device may do with this model's answers now."""
        return self._decided.mode

    @property
    def mode_why(self) -> str:
        """Say why the mode is not ``cascade``; "" when it is."""
        return self._decided.why

    @property
    def certificate(self) -> Certificate | None:
        """Return the certificate in use, at the level in use: None where there is none, or none that fits."""
        return self._certificate

    @property
    def audit(self) -> Audit | None:
        """Return the evidence against the promise in use, for whoever keeps it on disk; None without a promise."""
        return self._audit

    @property
    def counts(self) -> OutcomeCounts:
        """Rows by outcome since the artifact was activated."""
        return self.tally.total

    def answers_to(self, version: str) -> bool:
        """Is this the version that a request names: "" (any), the tag, the artifact's digest or a prefix of it?"""
        digest = self.plan.artifact_digest
        return version in ("", self.plan.version, digest) or (
            len(version) >= _MIN_PREFIX and digest.startswith(version)
        )

    def note_cloud(self, variant: str) -> None:
        """Note with which variant the cloud answered ("" when it does not say, which proves nothing)."""
        if variant and variant != self._seen_cloud_digest:
            self._seen_cloud_digest = variant
            self._update_mode()

    def is_certified_cloud(self, variant: str) -> bool:
        """May an answer of this cloud variant be compared with what the certificate promised?"""
        return self._certificate is not None and variant in ("", self.plan.subject.cloud_digest)

    def note_audit(self, *, audited: int, harm: int) -> None:
        """Drawn rows whose harm is now known."""
        self.tally.record(audited=audited, audit_harm=harm)
        if self._certificate is not None and self._audit is not None:
            limits = {"bound": self._certificate.audit_max_harm, "run_length": self._run_length}
            self._take(auditing.noted(self._audit, audited=audited, harm=harm, **limits))

    def note_graded_audit(self, *, share: float, random: float) -> None:
        """Note how harmful a drawn and kept answer is; ``random`` in [0, 1) counts it or not."""
        self.tally.record(audited=1, audit_harm=auditing.counted(share, random))
        if self._certificate is not None and self._audit is not None:
            limits = {"bound": self._certificate.audit_max_harm, "run_length": self._run_length}
            self._take(auditing.noted_share(self._audit, share=share, **limits))

    def note_judgement(self, *, is_distrusted: bool, trusted_at: float) -> None:
        """Note what the fleet service says about this promise, and when an operator trusted it (0 for never)."""
        if self._audit is not None:
            self._take(auditing.told(self._audit, is_distrusted=is_distrusted, trusted_at=trusted_at))

    def _take(self, audit: Audit) -> None:
        before, self._audit = self._audit, audit
        if before and (before.has_alarmed, before.is_distrusted) != (audit.has_alarmed, audit.is_distrusted):
            self._update_mode()
            self.on_alarm()

    def _update_mode(self) -> None:
        audit = self._audit
        decided = cascade.choose_mode(
            certificate_problem=self._problem,
            cloud_digest=self.plan.subject.cloud_digest,
            seen_cloud_digest=self._seen_cloud_digest,
            has_crossed=audit is not None and audit.has_alarmed,
            is_distrusted=audit is not None and audit.is_distrusted,
        )
        if decided != self._decided:
            counts = self.counts
            telemetry.log(
                _LOG,
                logging.WARNING if decided.why else logging.INFO,
                "cascade mode changed",
                model=self.plan.model,
                version=self.plan.version,
                mode=decided.mode,
                why=decided.why,
                audited=counts.audited,
                audit_harm=counts.audit_harm,
            )
        self._decided = decided


class Hosting:
    """All models of this device by name.

    Attributes:
        on_retired: called when a model that answers no more was released.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        *,
        run_length: float = 1e6,
        threads: int = 0,
        max_queue_rows: int = 1024,
        drain_s: float = 5.0,
        max_harm_of: Callable[[str], float | None] = lambda model: None,
        metric_of: Callable[[str], str] = lambda model: "",
        generation: GenerationSettings | None = None,
        log_settings: LogSettings | None = None,
    ) -> None:
        """Take ``run_length``, audits until a false alarm, ``threads`` of each engine (0 chooses by measurement),
        ``max_harm_of``, the level of a model's certificate (None for its own), ``metric_of``, the function that grades
        its answers ("" for none), and ``log_settings``, of processes that generate.
        """
        self._metric_of = metric_of
        self._max_harm_of = max_harm_of
        self._generation, self._log_settings = generation or GenerationSettings(), log_settings
        self._outcomes = outcomes
        self._run_length = run_length
        self._threads = threads
        self._max_queue_rows = max_queue_rows
        self._drain_s = drain_s
        self._active: dict[str, Hosted] = {}
        self._loading: dict[str, int] = {}
        self._expected: set[str] = set()
        self._broken: dict[str, str] = {}
        self.on_retired: Callable[[], Awaitable[None]] | None = None

    def expect(self, models: Iterable[str]) -> None:
        """Models that ran before a restart and are about to be prepared: until then they are loading, not unknown."""
        self._expected.update(models)

    def cannot_load(self, model: str, why: str) -> None:
        """Note why a model that should answer does not, for whoever asks it."""
        self._broken[model] = why

    def models(self) -> tuple[str, ...]:
        """List the names of the models that can answer."""
        return tuple(sorted(self._active))

    def hosted(self) -> tuple[Hosted, ...]:
        """Return the models that can answer, by name."""
        return tuple(self._active[name] for name in self.models())

    def get(self, model: str, version: str = "") -> Hosted:
        """Return the active variant of a model.

        Raises:
            NotFound: no such model or version; the message names what there is. Unavailable: it is loading.
        """
        hosted = self._active.get(model)
        if hosted is not None and (not version or hosted.answers_to(version)):
            return hosted
        if hosted is not None:
            raise NotFound(
                f"model {model!r} has no version {version!r} here; "
                f"this device runs {hosted.plan.version} ({hosted.plan.artifact_digest})"
            )
        if model in self._broken and model not in self._loading:
            raise Unavailable(f"model {model!r} cannot be loaded here: {self._broken[model]}", retry_after_s=5.0)
        if model in self._loading or model in self._expected:
            raise Unavailable(f"model {model!r} is loading", retry_after_s=0.5)
        raise NotFound(f"no model named {model!r}; this device runs {', '.join(self.models()) or 'no model yet'}")

    async def prepare(self, plan: LoadPlan, *, counts: OutcomeCounts = NOTHING, audits: Sequence[Audit] = ()) -> Hosted:
        """Load a variant, warm it up and let it prove itself on its golden vectors. It does not answer yet.

        Args:
            counts: what was counted for this artifact before (after a restart).
            audits: what is remembered of this model's audits, so that an alarm stays one.

        Raises:
            ArtifactError and others: as :func:`penstock.hosting.loading.load`.
        """
        self._loading[plan.model] = self._loading.get(plan.model, 0) + 1
        spec = plan.variant.spec
        loaded: Loaded | TextModel
        texts: Embedding | None = None
        try:
            if spec.engine in TEXT_ENGINES:
                loaded = await text_model.load(
                    spec, plan.files, self._generation, threads=self._threads, log_settings=self._log_settings
                )
            else:
                loaded, texts = await asyncio.to_thread(array_model.load, spec, plan.files, threads=self._threads)
        finally:
            self._expected.discard(plan.model)  # loaded or not, nothing more is known to come
            self._loading[plan.model] -= 1
            if not self._loading[plan.model]:
                del self._loading[plan.model]
        grader = await asyncio.to_thread(grader_for, plan.model, plan.certificate, self._metric_of(plan.model))
        tally = self._outcomes.open(plan.model, plan.artifact_digest, counts)
        hosted = Hosted(
            replace(plan, files=replace(plan.files, golden=None)),  # up to 64 MiB that have served their purpose
            loaded,
            tally,
            run_length=self._run_length,
            max_queue_rows=self._max_queue_rows,
            max_harm=self._max_harm_of(plan.model),
            audits=audits,
            texts=texts,
            grader=grader,
        )
        telemetry.log(_LOG, logging.INFO, "model proved itself", model=plan.model, version=plan.version,
                      target=spec.target, serves=repr(hosted.serves), mode=hosted.mode)  # fmt: skip
        return hosted

    def withdraw(self, model: str) -> Hosted | None:
        """Let a model answer no more; returns what answered, for the caller to ``retire``."""
        self._expected.discard(model)
        return self._active.pop(model, None)

    def activate(self, hosted: Hosted) -> Hosted | None:
        """Let it answer from now on; returns what answered before, for the caller to ``retire``."""
        previous = self._active.get(hosted.plan.model)
        self._active[hosted.plan.model] = hosted
        self._broken.pop(hosted.plan.model, None)
        return previous if previous is not hosted else None

    async def retire(self, hosted: Hosted) -> None:
        """Wait (at most ``drain_s``) for the requests in it, then release it. It must not come back."""
        hosted.is_retired = True
        if self._active.get(hosted.plan.model) is hosted:
            del self._active[hosted.plan.model]
        try:
            async with asyncio.timeout(self._drain_s):
                await hosted.idle.wait()
        except TimeoutError:
            telemetry.log(
                _LOG, logging.WARNING, "retired with requests in it", model=hosted.plan.model, requests=hosted.in_flight
            )
        if not any(other.tally is hosted.tally for other in self._active.values()):
            self._outcomes.retire(hosted.plan.model, hosted.plan.artifact_digest)
        await hosted.serves.close()
        if self.on_retired is not None:
            await self.on_retired()

    async def close(self) -> None:
        """Retire every model."""
        for hosted in self.hosted():
            await self.retire(hosted)
