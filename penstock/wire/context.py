"""What travels beside a request: who asks, until when, how urgently, under which id and trace.

The facts have the same names as HTTP headers and as gRPC metadata, and are read here by the same rules. Every transport
makes one :class:`RequestContext` of them, which goes through every queue, and writes what goes on to the next process
with :func:`headers_of`. Knows no transport.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping

import msgspec

from penstock.errors import InvalidInput
from penstock.wire.current_trace import current_traceparent
from penstock.wire.inference import Parameter

REQUEST_ID = "x-request-id"
TIMEOUT_MS = "x-request-timeout-ms"
TRACEPARENT = "traceparent"
AUTHORIZATION = "authorization"
STICKY_KEY = "x-sticky-key"
HEADERS = frozenset({REQUEST_ID, TIMEOUT_MS, TRACEPARENT, AUTHORIZATION, STICKY_KEY})

TRACE_ID = slice(3, 35)
"""Where a traceparent has the trace's id."""

MAX_TIMEOUT_S = 3600.0
"""A longer limit means this one, wherever it was given: nobody waits for longer, and clients write "no limit" as the
largest number that they know."""

_replace = msgspec.structs.replace
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MILLISECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):  # a frozen dataclass costs a microsecond each
    """What travels beside one request. Times are on the clock of the process that holds it.

    Attributes:
        arrived_at: when the request came in; every limit counts from here.
        deadline: when the answer is worth nothing any more; infinite while no limit was named.
        priority: 0 is the default, 1 the highest, larger numbers lower.
        request_id: as the client gave it, echoed and passed on; "" where it gave none.
        traceparent: W3C trace context in the form of version 00; "" where there is none, or a malformed one.
        tenant: the name of who asks, as the credential proved it; "" for anybody.
        transport: by which it came: ``http`` or ``grpc``; "" where nobody said.
        sticky_key: what should keep a caller with one version of a model that is split; "" where none was given.
    """

    arrived_at: float
    deadline: float = math.inf
    priority: int = 0
    request_id: str = ""
    traceparent: str = ""
    tenant: str = ""
    transport: str = ""
    sticky_key: str = ""

    @property
    def trace_id(self) -> str:
        """Return the trace's id in hex; "" without one."""
        return self.traceparent[TRACE_ID]

    def begin(self, arrived_at: float, *, timeout_s: float | None = None, tenant: str = "") -> RequestContext:
        """Begin a request under this id and trace. Every transport calls it once for each request."""
        deadline = math.inf if timeout_s is None else arrived_at + timeout_s
        return _replace(self, arrived_at=arrived_at, deadline=deadline, tenant=tenant)

    def within(self, timeout_s: float | None) -> RequestContext:
        """Add one more limit, counted from arrival: the earliest of all wins. None adds nothing.

        A limit that is over stays over: it is never clamped to "now", and so to "most urgent".
        """
        if timeout_s is None:
            return self
        return self.until(self.arrived_at + min(timeout_s, MAX_TIMEOUT_S))

    def until(self, deadline: float) -> RequestContext:
        """Add one more limit, as a time on this process's clock."""
        return self if self.deadline <= deadline else _replace(self, deadline=deadline)

    def with_parameters(self, parameters: Mapping[str, Parameter]) -> RequestContext:
        """Add what the protocol's reserved parameters say: ``timeout`` (microseconds) and ``priority``.

        Raises:
            InvalidInput: one of them is not a number, or negative.
        """
        if not parameters:
            return self
        context = self.within(_timeout_s(parameters.get("timeout")))
        priority = parameters.get("priority")
        if priority is None:
            return context
        if isinstance(priority, bool) or not isinstance(priority, int) or priority < 0:
            raise InvalidInput(
                f"parameters.priority: {priority!r} is not a non-negative integer (1 is highest, 0 default)",
                field="parameters.priority",
            )
        return _replace(context, priority=priority)

    def or_within(self, default_s: float) -> RequestContext:
        """Add a deadline where the caller named none: ``default_s`` from arrival."""
        return _replace(self, deadline=self.arrived_at + default_s) if self.deadline == math.inf else self


def context_of(headers: Mapping[str, str], transport: str = "") -> RequestContext:
    """Read id and trace from headers, for requests that have yet to begin. Refuses nothing.

    Args:
        headers: names in lower case, or a mapping that does not tell case.
        transport: by which they came.
    """
    return RequestContext(
        arrived_at=0.0,
        request_id=request_id_of(headers),
        traceparent=traceparent_of(headers),
        transport=transport,
        sticky_key=headers.get(STICKY_KEY, ""),
    )


def client_context(request_id: str) -> RequestContext:
    """Make the context of a request that a client begins, in the trace that the application is in. An id that is no
    header travels in the message only."""
    request_id = request_id if is_request_id(request_id) else ""
    return RequestContext(arrived_at=0.0, request_id=request_id, traceparent=current_traceparent())


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the client's request id; a new one in place of an id that cannot be echoed; "" where none was given."""
    given = headers.get(REQUEST_ID)
    if given is None or is_request_id(given):
        return given or ""
    return secrets.token_hex(8)


def is_request_id(text: str) -> bool:
    """Say whether an id can travel as a header: printable ASCII without spaces, 1 to 128 characters."""
    return _REQUEST_ID.fullmatch(text) is not None


def traceparent_of(headers: Mapping[str, str]) -> str:
    """Return the trace context to pass on; "" when malformed: a trace is restarted rather than a request refused.

    Source: W3C Trace Context, section 3.2.2 (version ff and all-zero ids are invalid; later versions may append, and
    are passed on as the version that is known here).
    """
    match = _TRACEPARENT.fullmatch(headers.get(TRACEPARENT, ""))
    if match is None:
        return ""
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return ""
    return f"00-{trace_id}-{span_id}-{flags}"


def timeout_s_of(headers: Mapping[str, str]) -> float | None:
    """Read the limit in ``x-request-timeout-ms``, in seconds; 0 is a limit that is over.

    Raises:
        InvalidInput: not a number of milliseconds. An endless row of digits is a mistake, and told so; what is merely
            long is taken for ``MAX_TIMEOUT_S``.
    """
    text = headers.get(TIMEOUT_MS)
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text):
        raise InvalidInput(
            f"{TIMEOUT_MS}: {text[:40]!r} is not a number of milliseconds; expected 0 or more, of at most 12 digits",
            field=TIMEOUT_MS,
        )
    return min(float(text) / 1e3, MAX_TIMEOUT_S)


def headers_of(context: RequestContext, timeout_s: float | None = None) -> dict[str, str]:
    """Make the headers, or gRPC metadata, that carry a context to the next process.

    Args:
        timeout_s: the time that *remains*; None over gRPC, whose own deadline says it.
    """
    headers = {} if timeout_s is None else {TIMEOUT_MS: str(max(1, int(timeout_s * 1000)))}
    if context.request_id:
        headers[REQUEST_ID] = context.request_id
    if context.traceparent:
        headers[TRACEPARENT] = context.traceparent
    if context.sticky_key:
        headers[STICKY_KEY] = context.sticky_key
    return headers


def _timeout_s(micros: Parameter | None) -> float | None:
    if micros is None or (micros == 0 and not isinstance(micros, bool)):  # Triton's convention: 0 means no timeout
        return None
    if isinstance(micros, bool) or not isinstance(micros, int | float) or not 0 < micros < math.inf:
        raise InvalidInput(
            f"parameters.timeout: {micros!r} is not a number of microseconds; expected 0 (none) or more",
            field="parameters.timeout",
        )
    return micros / 1e6
