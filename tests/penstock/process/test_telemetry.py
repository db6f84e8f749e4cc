from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from penstock.errors import ConfigError
from penstock.process import telemetry


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield io.StringIO()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_text_line_has_stamp_level_logger_event_and_fields(stream: io.StringIO) -> None:
    telemetry.setup_logging("info", "text", stream=stream)
    telemetry.log(logging.getLogger("room"), logging.INFO, "ready", http="127.0.0.1:8000", share=0.25)
    stamp, rest = stream.getvalue().rstrip("\n").split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert rest == "info room ready http=127.0.0.1:8000 share=0.25"


def test_a_value_with_a_line_break_cannot_forge_a_line(stream: io.StringIO) -> None:
    telemetry.setup_logging("info", "text", stream=stream)
    telemetry.log(logging.getLogger("room"), logging.INFO, "refused", model="x\n2026 error room forged")
    assert stream.getvalue().count("\n") == 1
    assert r'model="x\n2026 error room forged"' in stream.getvalue()


def test_json_line_is_one_object_with_the_traceback_inside(stream: io.StringIO) -> None:
    telemetry.setup_logging("info", "json", stream=stream)
    try:
        raise ValueError("no\nway")
    except ValueError as error:
        telemetry.log(logging.getLogger("room"), logging.ERROR, "failed", exc_info=error, rows=3)
    (line,) = stream.getvalue().splitlines()
    document = json.loads(line)
    assert (document["level"], document["event"], document["rows"]) == ("error", "failed", 3)
    assert "ValueError: no" in document["traceback"]


def test_level_filters(stream: io.StringIO) -> None:
    telemetry.setup_logging("warning", stream=stream)
    telemetry.log(logging.getLogger("room"), logging.INFO, "quiet")
    assert stream.getvalue() == ""


def test_setup_twice_does_not_log_twice(stream: io.StringIO) -> None:
    telemetry.setup_logging(stream=stream)
    telemetry.setup_logging(stream=stream)
    telemetry.log(logging.getLogger("room"), logging.INFO, "once")
    assert stream.getvalue().count("once") == 1


@pytest.mark.parametrize(("level", "format"), [("loud", "text"), ("info", "xml")])
def test_unknown_level_or_format_is_refused(level: str, format: str) -> None:
    with pytest.raises(ConfigError, match=r"is not one of"):
        telemetry.setup_logging(level, format)  # type: ignore[arg-type]


def test_request_id_keeps_a_printable_one_and_replaces_the_rest() -> None:
    assert telemetry.request_id("abc-123") == "abc-123"
    for bad in ("", "a b", "x" * 129, "line\nbreak", "ünicode"):
        made = telemetry.request_id(bad)
        assert re.fullmatch(r"[0-9a-f]{16}", made)


def test_traceparent_round_trip_and_child() -> None:
    text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    context = telemetry.parse_traceparent(text)
    assert context is not None
    assert str(context) == text
    child = context.child()
    assert child.trace_id == context.trace_id
    assert child.span_id != context.span_id
    assert telemetry.parse_traceparent(str(telemetry.new_trace())) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
    ],
)
def test_malformed_traceparent_is_ignored(text: str) -> None:
    assert telemetry.parse_traceparent(text) is None


def test_traceparent_of_a_later_version_may_carry_more() -> None:
    assert telemetry.parse_traceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra") is not None


def test_what_a_client_sent_wrong_is_no_error_of_ours(stream: io.StringIO) -> None:
    from aiohttp.http_exceptions import LineTooLong
    from aiohttp.web_protocol import RequestPayloadError

    for level, lines in (("info", 1), ("debug", 3)):
        stream.truncate(0)
        telemetry.setup_logging(level, "json", stream=stream)
        for error in (LineTooLong(b"aaaa", 8190), RequestPayloadError("cut"), ValueError("a defect")):
            logging.getLogger("aiohttp.server").error("Error handling request", exc_info=error)
        assert stream.getvalue().count("\n") == lines
        assert "a defect" in stream.getvalue()
