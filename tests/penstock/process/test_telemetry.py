from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from penstock.errors import ConfigError, NotFound
from penstock.process import telemetry
from penstock.wire.context import RequestContext


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


def test_a_defect_is_logged_with_id_and_trace_and_told_without_its_inside(stream: io.StringIO) -> None:
    telemetry.setup_logging("info", "text", stream=stream)
    context = RequestContext(arrived_at=0.0, request_id="r-1", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    told = telemetry.refusal_of(logging.getLogger("x"), ValueError("a secret"), context)
    assert (told.code, "secret" in told.message) == ("internal", False)
    for said in ("a secret", "request_id=r-1", f"trace_id={'a' * 32}"):
        assert said in stream.getvalue()


def test_a_refusal_is_told_as_it_is_and_fills_no_log(stream: io.StringIO) -> None:
    telemetry.setup_logging("info", "text", stream=stream)
    error = NotFound("no such model")
    assert telemetry.refusal_of(logging.getLogger("x"), error, RequestContext(arrived_at=0.0)) is error
    assert stream.getvalue() == ""


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
