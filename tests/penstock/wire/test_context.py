"""What travels beside a request, whatever transport it came by."""

from __future__ import annotations

import math
import re

import pytest

from penstock.errors import InvalidInput
from penstock.wire import context
from penstock.wire.context import MAX_TIMEOUT_S, RequestContext
from penstock.wire.inference import Parameter

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOW = RequestContext(arrived_at=100.0)


def test_the_earliest_limit_wins_wherever_it_was_given() -> None:
    assert NOW.within(5.0).within(None).within(3.0).deadline == 103.0
    assert NOW.within(5.0).with_parameters({"timeout": 2_000_000}).deadline == 102.0
    assert NOW.within(5.0).with_parameters({"timeout": 9_000_000}).deadline == 105.0


def test_without_a_limit_there_is_none_and_the_default_is_for_those_only() -> None:
    assert NOW.with_parameters({"timeout": 0}).deadline == math.inf  # 0 is none, as in Triton
    assert NOW.or_within(30.0).deadline == 130.0
    assert NOW.within(60.0).or_within(30.0).deadline == 160.0


def test_a_limit_that_is_over_stays_over() -> None:
    assert NOW.within(-1.0).within(5.0).deadline == 99.0
    assert NOW.within(0.0).deadline == 100.0


def test_a_very_long_limit_is_the_longest_that_there_is() -> None:
    longest = NOW.arrived_at + MAX_TIMEOUT_S
    assert NOW.within(1e12).deadline == longest
    assert NOW.with_parameters({"timeout": 2**63 - 1}).deadline == longest
    assert context.timeout_s_of({"x-request-timeout-ms": "9" * 12}) == MAX_TIMEOUT_S


@pytest.mark.parametrize("bad", ["soon", True, False, -5, -0.5, math.nan, math.inf])
def test_a_timeout_that_is_no_time_is_refused(bad: Parameter) -> None:
    with pytest.raises(InvalidInput, match="parameters.timeout: .*microseconds") as caught:
        NOW.with_parameters({"timeout": bad})
    assert caught.value.field == "parameters.timeout"


def test_priority_defaults_to_zero() -> None:
    assert NOW.with_parameters({"explain": True}).priority == 0
    assert NOW.with_parameters({"priority": 1}).priority == 1


@pytest.mark.parametrize("bad", [-1, 1.5, 0.0, "high", True, False])
def test_a_priority_that_is_no_level_is_refused(bad: Parameter) -> None:
    with pytest.raises(InvalidInput, match="priority"):
        NOW.with_parameters({"priority": bad})


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("1500", 1.5), ("0.5", 0.0005)])
def test_milliseconds_are_read(text: str, seconds: float) -> None:
    assert context.timeout_s_of({"x-request-timeout-ms": text}) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "soon",
        "-1",
        "-0",
        "+1",
        "1e3",
        "nan",
        "inf",
        "-inf",
        "1_000",
        "0x10",
        "1.",
        ".5",
        "\uff11",
        "1" * 13,
        "1" * 400,
    ],
)
def test_milliseconds_that_are_none_are_refused_with_field_value_and_what_was_expected(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a number of milliseconds; expected 0 or more") as caught:
        context.timeout_s_of({"x-request-timeout-ms": text})
    assert caught.value.field == "x-request-timeout-ms"
    assert repr(text[:40]) in caught.value.message
    assert len(caught.value.message) < 200


def test_a_request_id_is_kept_replaced_or_absent() -> None:
    assert context.request_id_of({}) == ""
    assert context.request_id_of({"x-request-id": "abc-123"}) == "abc-123"
    for bad in ("", "a b", "x" * 129, "line\nbreak", "ünicode"):
        assert re.fullmatch(r"[0-9a-f]{16}", context.request_id_of({"x-request-id": bad}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        TRACE[:-3],
        "ff" + TRACE[2:],
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        TRACE.upper(),
        f"{TRACE}-extra",
    ],
)
def test_a_malformed_trace_is_ignored(text: str) -> None:
    assert context.traceparent_of({"traceparent": text}) == ""


def test_a_trace_is_read_and_one_of_a_later_version_goes_on_as_ours() -> None:
    assert context.traceparent_of({"traceparent": TRACE}) == TRACE
    assert context.traceparent_of({"traceparent": f"01{TRACE[2:]}-extra"}) == TRACE
    assert context.context_of({"traceparent": TRACE}).trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_what_goes_on_is_the_id_the_trace_and_the_time_that_remains() -> None:
    full = RequestContext(arrived_at=0.0, request_id="r-1", traceparent=TRACE, tenant="shop", priority=3)
    assert context.headers_of(full, 1.5) == {
        "x-request-timeout-ms": "1500",
        "x-request-id": "r-1",
        "traceparent": TRACE,
    }
    assert context.headers_of(RequestContext(arrived_at=0.0)) == {}
    assert context.headers_of(full, 1e-9)["x-request-timeout-ms"] == "1"  # 0 would be over


def test_an_id_that_cannot_be_a_header_is_not_sent_as_one() -> None:
    assert context.headers_of(context.client_context("two words")) == {}
    assert context.headers_of(context.client_context("r-7")) == {"x-request-id": "r-7"}
