"""Log and trace settings while a server runs: what each change leads to, and which are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from penstock.errors import InvalidInput
from penstock.process.live_settings import LiveSettings, log_level_after
from penstock.process.trace_settings import TraceSettings

INFO = {"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0}
DEBUG = {**INFO, "log_verbose_level": 1}
ERROR = {**INFO, "log_info": False, "log_warning": False}


@dataclass
class Tracing:
    is_on: bool = True
    share: float = 0.01


@pytest.mark.parametrize(
    ("now", "changes", "level"),
    [
        (INFO, {}, "info"), (INFO, {"log_verbose_level": 2}, "debug"), (DEBUG, {"log_verbose_level": 0}, "info"),
        (DEBUG, {"log_info": False}, "warning"), (INFO, {"log_info": False}, "warning"), (DEBUG, {}, "debug"),
        (INFO, {"log_info": False, "log_warning": False}, "error"), (ERROR, {"log_warning": True}, "warning"),
        (ERROR, {"log_info": True}, "info"), (ERROR, {"log_error": True}, "error"),
    ],
)  # fmt: skip
def test_a_change_of_tritons_settings_is_a_level(now: Any, changes: dict[str, Any], level: str) -> None:
    assert log_level_after(now, changes) == level


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"log_file": "x"}, "cannot be set here"), ({"log_info": 1}, "not true or false"),
        ({"log_verbose_level": True}, "not 0 or more"), ({"log_verbose_level": -1}, "not 0 or more"),
        ({"log_error": False}, "always written"), ({"log_warning": False}, "has warnings, too"),
    ],
)  # fmt: skip
def test_what_cannot_be_logged_so_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        log_level_after(INFO, changes)


def test_traces_are_turned_off_and_on_and_their_rate_goes_back() -> None:
    tracing = Tracing()
    live = LiveSettings(tracing)
    assert live.trace_settings()["trace_rate"] == ["100"]
    live.set_trace({"trace_rate": ["4"]})
    assert (tracing.share, live.trace_settings()["trace_level"]) == (0.25, ["TIMESTAMPS"])
    live.set_trace({"trace_level": ["OFF"]})
    assert not tracing.is_on
    live.set_trace({"trace_level": ["TIMESTAMPS"], "trace_rate": []})
    assert (tracing.is_on, tracing.share) == (True, 0.01)


def test_what_traces_requests_keeps_to_what_was_set() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from penstock.process.tracing import Tracer

    tracer = Tracer(TraceSettings(endpoint="http://127.0.0.1:9", timeout_s=0.1), "test", draw=lambda: 0.2)
    try:
        live = LiveSettings(tracer)
        sampled = f"00-{'1' * 32}-{'2' * 16}-01"
        assert (tracer.wants(""), tracer.wants(sampled)) == (False, True)
        live.set_trace({"trace_rate": ["4"]})
        assert (tracer.wants(""), tracer.wants(sampled)) == (True, True)
        live.set_trace({"trace_level": ["OFF"]})
        assert (tracer.wants(""), tracer.wants(sampled)) == (False, False)
    finally:
        tracer.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trace_level": ["TENSORS"]}, "TENSORS"), ({"trace_level": ["OFF", "TIMESTAMPS"]}, "is not OFF"),
        ({"trace_rate": ["0"]}, "not a number"), ({"trace_rate": ["1", "2"]}, "not a number"),
        ({"trace_file": ["/etc/passwd"]}, "cannot be set here"), ({"trace_mode": ["triton"]}, "cannot be set here"),
    ],
)  # fmt: skip
def test_traces_that_cannot_be_are_refused_and_nothing_changes(changes: dict[str, Any], says: str) -> None:
    tracing = Tracing()
    with pytest.raises(InvalidInput, match=says):
        LiveSettings(tracing).set_trace({"trace_rate": ["7"], **changes})
    assert tracing == Tracing()
