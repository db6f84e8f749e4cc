"""One finished request, told to whoever observes: metrics by tenant, logs, traces, usage, drift, capture.

The data plane makes a :class:`Finished` when a request is over and hands it to every registered observer. Where none
is registered nothing is made. Observers are called on the event loop, one after the other: they are short, wait for
nothing and must not raise. A defect in one of them is logged once, counted, and never reaches the request.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import msgspec

from cloud_core.registry.registry import ModelVersion
from penstock.artifact.manifests import Variant
from penstock.errors import PenstockError
from penstock.hosting.run_notes import RunNote
from penstock.process.telemetry import log
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse

MAX_WHY_CHARS = 300

_log = logging.getLogger(__name__)


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """One request that is over, answered or not. Durations are in seconds.

    Attributes:
        code: ``ok``, ``cancelled`` by a client that went away, or an error's code.
        why: the error's message, cut; "" where there was none.
        is_admitted: False for what was refused before its payload was looked at.
        model: "" where it was refused before a model was known; never a name that no model has.
        version: its tag, or the digest of one without.
        variant: digest of what ran.
        arm: of a split of traffic; "" without one.
        tenant: "" for anybody.
        transport: ``http`` or ``grpc``; "" where it is not known.
        request_id: as the client gave it; "" where it gave none.
        traceparent: W3C trace context that came with it; "" without.
        rows: that were asked for.
        prompt_tokens: of texts whose answer began.
        answer_tokens: of texts.
        request_bytes: of the body as it was announced, or of its tensors where they are larger.
        started_at: when it was admitted, by ``time.perf_counter``.
        duration_s: from admission to the end of the answer.
        runs: its ways through queue and run: one, several for calls that are asked in parts, none where it did not run
            or where an engine for texts ran it.
        request: decoded, for arrays. Whoever keeps it copies its arrays: their memory may be used again.
        response: the same; None where there was none.
    """

    code: str
    why: str = ""
    is_admitted: bool = True
    model: str = ""
    version: str = ""
    variant: str = ""
    arm: str = ""
    tenant: str = ""
    transport: str = ""
    request_id: str = ""
    traceparent: str = ""
    rows: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    request_bytes: int = 0
    started_at: float
    duration_s: float = 0.0
    runs: Sequence[RunNote] = ()
    request: InferRequest | None = None
    response: InferResponse | None = None

    @property
    def queued_s(self) -> float | None:
        """Return the longest time that it waited to run; None where it did not, or nobody knows."""
        return max([waited for run in self.runs if (waited := run.queued_s) is not None], default=None)

    @property
    def ran_s(self) -> float | None:
        """Return how long its longest run took; None where it did not run, or nobody knows."""
        return max([run.batch.took_s for run in self.runs if run.batch is not None], default=None)


class Observer(Protocol):
    """Is told of every request that is over."""

    def finished(self, request: Finished) -> None:
        """Look at a request. Called on the event loop, so it waits for nothing."""
        ...


class Served(Protocol):
    """What answers."""

    @property
    def variant(self) -> Variant: ...


class Lane(Protocol):
    """What was said of a model's traffic."""

    @property
    def arm(self) -> str: ...


class Route(Protocol):
    """Where a request led."""

    @property
    def version(self) -> ModelVersion: ...

    @property
    def served(self) -> Served: ...

    @property
    def lane(self) -> Lane | None: ...


class Ticket(Protocol):
    """An admitted request."""

    @property
    def route(self) -> Route: ...

    @property
    def context(self) -> RequestContext: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def started_at(self) -> float: ...


class Note:
    """What is noted of a request while it is under way."""

    __slots__ = ("answer_tokens", "prompt_tokens", "request", "response", "rows", "runs")

    def __init__(self) -> None:
        self.rows = self.prompt_tokens = self.answer_tokens = 0
        self.runs: list[RunNote] = []
        self.request: InferRequest | None = None
        self.response: InferResponse | None = None

    def run(self, request: InferRequest, rows: int) -> RunNote:
        """Note that rows are queued now; what is returned goes with them."""
        self.request, self.rows = request, self.rows + rows
        note = RunNote(queued_at=perf_counter(), rows=rows)
        self.runs.append(note)
        return note

    def finished(self, ticket: Ticket, code: str, error: BaseException | None, took_s: float) -> Finished:
        """Say how the request ended."""
        context, version = ticket.context, ticket.route.version
        return Finished(
            code=code,
            why=why_of(error),
            model=version.model,
            version=version.tag or version.digest,
            variant=ticket.route.served.variant.digest,
            arm=ticket.route.lane.arm if ticket.route.lane else "",
            tenant=context.tenant,
            transport=context.transport,
            request_id=context.request_id,
            traceparent=context.traceparent,
            rows=self.rows,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            request_bytes=ticket.size_bytes,
            started_at=ticket.started_at,
            duration_s=took_s,
            runs=self.runs,
            request=self.request,
            response=self.response,
        )

    def spent(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Note what one text took."""
        self.prompt_tokens += prompt_tokens
        self.answer_tokens += answer_tokens


class Observers:
    """Everybody who is told.

    Attributes:
        is_empty: nobody is told of what goes well; looked at for each request.
        is_deaf: nobody is told of anything.
        defects: how often one of them failed.
    """

    def __init__(self) -> None:
        self.is_empty = self.is_deaf = True
        self.defects = 0
        self._of_all: tuple[Observer, ...] = ()
        self._of_failures: tuple[Observer, ...] = ()
        self._told: set[int] = set()  # of observers: at most as many as there are

    def add(self, observer: Observer, *, only_failures: bool = False) -> None:
        """Tell ``observer`` of everything that is over from now on, or only of what was not answered: what goes well
        costs nothing then."""
        if only_failures:
            self._of_failures = (*self._of_failures, observer)
        else:
            self._of_all = (*self._of_all, observer)
        self._note_who()

    def remove(self, observer: Observer) -> None:
        """Tell it nothing more; one that is not registered is left alone."""
        self._of_all = tuple(one for one in self._of_all if one is not observer)
        self._of_failures = tuple(one for one in self._of_failures if one is not observer)
        self._note_who()

    def _note_who(self) -> None:
        self.is_empty = not self._of_all
        self.is_deaf = self.is_empty and not self._of_failures

    def tell(self, request: Finished) -> None:
        """Tell of a request: everybody, or of an answer those who hear of answers."""
        for observer in self._of_all if request.code == "ok" else (*self._of_all, *self._of_failures):
            try:
                observer.finished(request)
            except Exception as error:
                self.defects += 1
                if id(observer) not in self._told:
                    self._told.add(id(observer))
                    log(_log, logging.ERROR, "an observer failed", exc_info=error, observer=type(observer).__name__)

    def refused(self, error: PenstockError, context: RequestContext | None, *, model: str, request_bytes: int) -> None:
        """Tell everybody of a request that was refused before its payload was looked at."""
        context = context or _NOBODY
        self.tell(
            Finished(
                code=error.code,
                why=why_of(error),
                is_admitted=False,
                model=model,
                tenant=context.tenant,
                transport=context.transport,
                request_id=context.request_id,
                traceparent=context.traceparent,
                request_bytes=request_bytes,
                started_at=perf_counter(),
            )
        )


_NOBODY = RequestContext(arrived_at=0.0)


def why_of(error: BaseException | None) -> str:
    """Return an error's message, cut; "" where it is none of ours: its text stays in the log."""
    return error.message[:MAX_WHY_CHARS] if isinstance(error, PenstockError) else ""
