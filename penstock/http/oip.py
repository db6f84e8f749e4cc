"""The Open Inference Protocol over HTTP, for whatever data plane there is behind: rows, decoding, encoding.

Inference requests that are plain come through the express lane (:meth:`Oip.prepare`, :meth:`Oip.answer`), everything
else through the table of routes; both end in the same calls. Decides nothing: who is let in, and what is answered, is
the data plane's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as version_of
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from penstock.errors import InvalidInput, PenstockError, Unavailable
from penstock.http import express, shapes
from penstock.http.operations import Operation, Raw
from penstock.http.overview import state_document
from penstock.http.routes import Handler, Reply, Request, Route, Table, json_reply, refusal
from penstock.policy.access import Action
from penstock.process.telemetry import refusal_of
from penstock.rest import codec
from penstock.rest.metadata import encode_metadata
from penstock.wire.classification import classified
from penstock.wire.context import AUTHORIZATION, REQUEST_ID, RequestContext, context_of, timeout_s_of
from penstock.wire.credentials import PeerCertificate, credential_of
from penstock.wire.inference import EXTENSIONS, InferRequest, InferResponse, ModelConfig, ModelMetadata, ModelState
from penstock.wire.model_documents import config_document
from penstock.wire.regions import NO_REGIONS, Regions

Ticket = TypeVar("Ticket", bound=AbstractContextManager[Any])

_HEADER_LENGTH = codec.HEADER_LENGTH.lower()
_JSON_LINES = b"Content-Type: " + codec.JSON.encode()
_BINARY_LINES = b"Content-Type: " + codec.BINARY.encode() + b"\r\n" + codec.HEADER_LENGTH.encode() + b": %d"
_REQUEST_ID_LINE = b"%b\r\n" + REQUEST_ID.encode() + b": %b"
_log = logging.getLogger(__name__)

_RAW = Raw("JSON of the length in Inference-Header-Content-Length, then the tensors' bytes in their order.")
_LENGTH = {codec.HEADER_LENGTH: "Length of the JSON part of a binary body."}
_INFER = Operation(
    summary="Answer an inference request",
    group="inference",
    asks={codec.JSON: shapes.InferBody, codec.BINARY: _RAW},
    answers={codec.JSON: shapes.InferAnswer, codec.BINARY: _RAW},
    headers=_LENGTH,
)
_MODEL_READY = Operation(
    summary="Say whether a model can answer now; 503 with the reason where it cannot",
    group="models",
    answers={codec.JSON: shapes.ModelReady},
)
_METADATA = Operation(
    summary="Say what a model takes and gives", group="models", answers={codec.JSON: shapes.ModelMetadataDocument}
)
_CONFIG = Operation(summary="Say how a model is run", group="models", answers={codec.JSON: shapes.Config})
_SERVER = Operation(
    summary="Say what this server is, and which extensions work",
    group="server",
    answers={codec.JSON: shapes.ServerMetadata},
)
_LIVE = Operation(
    summary="Say whether the process is well; 503 where it is not",
    group="server",
    answers={codec.JSON: dict[str, bool]},
)
_READY = Operation(
    summary="Say whether requests are admitted; 503 where they are not",
    group="server",
    answers={codec.JSON: dict[str, bool]},
)
_INDEX = Operation(
    summary="List every version of every model, with its state",
    group="models",
    asks={codec.JSON: shapes.IndexBody},
    needs_body=False,
    answers={codec.JSON: list[shapes.StateDocument]},
)


class DataPlane(Protocol[Ticket]):
    """What answers behind the protocol. A ticket is one admitted request: leaving it gives its place back."""

    @property
    def is_live(self) -> bool: ...

    @property
    def is_ready(self) -> bool: ...

    def authenticate(self, authorization: str, action: Action) -> str:
        """Return the name of who may do ``action``; raises Unauthenticated or PermissionDenied."""
        ...

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None) -> Ticket:
        """Let a request in before its payload is looked at, or raise what keeps it out.

        Args:
            size_bytes: of its body, as announced; None when it comes in chunks.
        """
        ...

    def infer(self, ticket: Ticket, context: RequestContext, request: InferRequest) -> Awaitable[InferResponse]:
        """Answer an admitted, decoded request before its deadline."""
        ...

    def metadata(self, model: str, version: str) -> ModelMetadata: ...

    def config(self, model: str, version: str) -> ModelConfig: ...

    def model_state(self, model: str, version: str) -> ModelState: ...

    def index(self) -> Sequence[ModelState]: ...


class _IndexRequest(msgspec.Struct):
    ready: bool = False


@dataclass(frozen=True, slots=True)
class InferHead:
    """What path and headers of an inference request say; kept for heads that come again byte for byte.

    Attributes:
        who: the request's id and trace, as a context that lacks the times.
    """

    model: str
    version: str
    authorization: str
    header_length: int | None
    timeout_s: float | None
    who: RequestContext


class Oip(Generic[Ticket]):
    """Answers the protocol's requests from one data plane."""

    def __init__(
        self,
        plane: DataPlane[Ticket],
        now: Callable[[], float],
        *,
        name: str,
        queue_full_status: int = 503,
        server_headers: Mapping[str, str] | None = None,
        extensions: Sequence[str] = (),
        regions: Regions = NO_REGIONS,
    ) -> None:
        """
        Args:
            now: the event loop's clock.
            extensions: of the protocol that other rows of the same server answer.
            name: of the server, in its metadata.
            regions: of memory that is shared with clients.
            server_headers: what goes with the metadata, for whatever else asks at /v2.
            queue_full_status: 503, or 429 for clients that only back off on that.
        """
        self._plane, self._now, self._regions = plane, now, regions
        self._refuse = partial(refusal, queue_full=queue_full_status)
        document = {"name": name, "version": version_of("penstock"), "extensions": (*EXTENSIONS, *extensions)}
        self._server = msgspec.json.encode(document)
        self._server_headers = {**(server_headers or {}), "Content-Type": codec.JSON}
        self._infer_rows = Table(self._rows("/infer", "POST", self._infer, _INFER))

    def routes(self) -> list[Route]:
        """List the rows of the protocol. Probes carry no credential."""
        ask = Action.INFER
        return [
            *self._rows("/infer", "POST", self._infer, _INFER),
            *self._rows("/ready", "GET", self._model_ready, _MODEL_READY),
            *self._rows("", "GET", self._model_metadata, _METADATA),
            *self._rows("/config", "GET", self._model_config, _CONFIG),
            Route("GET", "/v2", self._server_metadata, ask, says=_SERVER),
            Route("GET", "/v2/", self._server_metadata, ask, says=_SERVER),
            Route("GET", "/v2/health/live", self._live, says=_LIVE),
            Route("GET", "/v2/health/ready", self._ready, says=_READY),
            Route("POST", "/v2/repository/index", self._index, ask, says=_INDEX),
            Route("GET", "/v2/repository/index", self._index, ask, says=replace(_INDEX, asks={})),
        ]

    # -- the express lane --------------------------------------------------------------------------------------------

    def prepare(self, target: str, headers: Mapping[str, str]) -> InferHead | None:
        """Read the head of an inference request.

        None is for what is the table's: every other request, and one to which a no must be said, or a new id given,
        each time that it comes.
        """
        who = context_of(headers, "http")
        if who.request_id != headers.get(REQUEST_ID, ""):
            return None
        try:
            _, names = self._infer_rows.find("POST", target.partition("?")[0])
            return InferHead(
                names["model"],
                names.get("version", ""),
                headers.get(AUTHORIZATION, ""),
                _header_length(headers),
                timeout_s_of(headers),
                who,
            )
        except PenstockError:
            return None

    async def answer(self, head: InferHead, body: bytes, peer: PeerCertificate | None = None) -> bytes:
        """Answer with a whole response; never raises. ``peer``: whose certificate the connection was made with."""
        plane, who = self._plane, head.who
        try:
            credential = head.authorization if peer is None else credential_of(head.authorization, peer)
            tenant = plane.authenticate(credential, Action.INFER)
            context = who.begin(self._now(), timeout_s=head.timeout_s, tenant=tenant)
            with plane.admit(context, head.model, head.version, len(body)) as ticket:
                decoded = self._decode(body, head.header_length, head.model, head.version)
                response = await plane.infer(ticket, context, decoded.request)
                if decoded.classes is not None:
                    response = classified(response, decoded.classes, plane.metadata(head.model, head.version))
                encoded = codec.encode_response(response, decoded)
        except Exception as error:
            reply = self._refuse(refusal_of(_log, error, who))
            return express.response(reply.status, _with_id(express.header_lines(reply.headers), who), reply.body)
        length = encoded.header_length
        lines = _JSON_LINES if length is None else _BINARY_LINES % length
        return express.response(200, _with_id(lines, who) if who.request_id else lines, encoded.body)

    # -- the table ---------------------------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Reply:
        names = request.names
        model, version = names["model"], names.get("version", "")
        with self._plane.admit(request.context, model, version, request.body.size_bytes) as ticket:
            context = request.context.within(timeout_s_of(request.headers))
            header_length = _header_length(request.headers)
            body = await request.body.read(context)
            decoded = self._decode(body, header_length, model, version)
            response = await self._plane.infer(ticket, context, decoded.request)
            if decoded.classes is not None:
                response = classified(response, decoded.classes, self._plane.metadata(model, version))
            encoded = codec.encode_response(response, decoded)
        return Reply(body=encoded.body, headers=encoded.headers)

    def _decode(self, body: bytes, header_length: int | None, model: str, version: str) -> codec.DecodedRequest:
        if header_length == 0:
            specs = self._plane.metadata(model, version).inputs
            return codec.decode_raw_request(body, specs, model=model, version=version)
        return codec.decode_request(
            body, header_length=header_length, model=model, version=version, regions=self._regions
        )

    async def _server_metadata(self, request: Request) -> Reply:
        return Reply(body=self._server, headers=self._server_headers)

    async def _live(self, request: Request) -> Reply:
        return _health("live", self._plane.is_live)

    async def _ready(self, request: Request) -> Reply:
        return _health("ready", self._plane.is_ready)

    async def _model_ready(self, request: Request) -> Reply:
        state = self._plane.model_state(request.names["model"], request.names.get("version", ""))
        if state.state != "READY":
            raise Unavailable(f"model {state.model!r} version {state.version!r} is not ready: {state.reason}")
        return json_reply({"name": state.model, "version": state.version, "ready": True})

    async def _model_metadata(self, request: Request) -> Reply:
        metadata = self._plane.metadata(request.names["model"], request.names.get("version", ""))
        return Reply(body=encode_metadata(metadata), headers={"Content-Type": codec.JSON})

    async def _model_config(self, request: Request) -> Reply:
        return json_reply(config_document(self._plane.config(request.names["model"], request.names.get("version", ""))))

    async def _index(self, request: Request) -> Reply:
        body = await request.body.read(request.context)
        try:
            only_ready = msgspec.json.decode(body, type=_IndexRequest).ready if body.strip() else False
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidInput(f"body: not valid: {error}", field="body") from None
        return json_reply(
            [state_document(state) for state in self._plane.index() if state.state == "READY" or not only_ready]
        )

    def _rows(self, suffix: str, method: str, handler: Handler, says: Operation) -> list[Route]:
        """Make the rows of a model's default version and of a version that is named."""
        model = "/v2/models/{model}"
        return [
            Route(method, f"{path}{suffix}", handler, Action.INFER, self._refuse, says)
            for path in (model, model + "/versions/{version}")
        ]


def _with_id(lines: bytes, who: RequestContext) -> bytes:
    return _REQUEST_ID_LINE % (lines, who.request_id.encode()) if who.request_id else lines


def _header_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get(_HEADER_LENGTH)
    return None if text is None else codec.parse_header_length(text)


def _health(name: str, is_well: bool) -> Reply:
    return json_reply({name: is_well}, status=200 if is_well else 503)
