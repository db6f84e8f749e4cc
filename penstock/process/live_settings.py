"""What can be changed while a server runs, under the names of Triton's trace and log extensions: how much is logged,
and which share of requests is traced. What it is set to lasts until the process ends.

Keys of Triton's that mean nothing here are not told, and refused when they are set.
Source: Triton, "Logging Extension" and "Trace Extension".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from penstock.errors import InvalidInput
from penstock.process.telemetry import LEVELS

LogValue = bool | int | str
_INFO, _WARNING, _ERROR, _VERBOSE = "log_info", "log_warning", "log_error", "log_verbose_level"
_LOG_KEYS = (_INFO, _WARNING, _ERROR, _VERBOSE)
_LEVEL, _RATE, _MODE = "trace_level", "trace_rate", "trace_mode"
_OPENTELEMETRY = "opentelemetry"
_MAX_RATE = 2**31 - 1


class Tracing(Protocol):
    """What traces requests.

    Attributes:
        is_on: whether any is traced.
        share: of the requests whose callers have not decided.
    """

    is_on: bool
    share: float


class LiveSettings:
    """The settings of one server."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        """``tracing``: None where nothing can be traced."""
        self._tracing = tracing
        self._shares = (tracing.share,) if tracing is not None else (0.0,)

    @property
    def can_trace(self) -> bool:
        """Say whether anything can be traced."""
        return self._tracing is not None

    def log_settings(self) -> dict[str, LogValue]:
        """Tell how much is logged."""
        level = logging.root.level
        return {
            _INFO: level <= logging.INFO,
            _WARNING: level <= logging.WARNING,
            _ERROR: True,
            _VERBOSE: int(level <= logging.DEBUG),
        }

    def set_log(self, changes: Mapping[str, object]) -> None:
        """Log more, or less.

        Raises:
            InvalidInput: a setting that there is not, or a value that it cannot have; nothing was changed.
        """
        logging.root.setLevel(LEVELS[log_level_after(self.log_settings(), changes)])

    def trace_settings(self) -> dict[str, list[str]]:
        """Tell what is traced: one of so many requests."""
        tracing = self._tracing
        if tracing is None:
            return {_LEVEL: ["OFF"], _MODE: [_OPENTELEMETRY]}
        is_on = tracing.is_on and tracing.share > 0
        rate = [str(round(1 / tracing.share))] if tracing.share > 0 else []
        return {_LEVEL: ["TIMESTAMPS" if is_on else "OFF"], _RATE: rate, _MODE: [_OPENTELEMETRY]}

    def set_trace(self, changes: Mapping[str, Sequence[str]]) -> None:
        """Trace more, or fewer; a setting without a value goes back to what the server began with.

        Raises:
            InvalidInput: a setting that there is not, or a value that it cannot have; nothing was changed.
        """
        tracing = self._tracing
        if not changes:
            return
        if tracing is None:
            raise InvalidInput(
                "trace_level: nothing can be traced; start the server with observing.traces.endpoint", field=_LEVEL
            )
        is_on, share = tracing.is_on, tracing.share
        for name, values in changes.items():
            if name == _LEVEL:
                is_on = _is_on(values)
            elif name == _RATE:
                share = 1 / _rate(values) if values else self._shares[0]
            elif name != _MODE or (values and list(values) != [_OPENTELEMETRY]):
                raise InvalidInput(f"{name[:60]}: cannot be set here; {_LEVEL} and {_RATE} can", field=name[:60])
        tracing.is_on, tracing.share = is_on, share


def log_level_after(now: Mapping[str, LogValue], changes: Mapping[str, object]) -> str:
    """Return the level that the log has after changes of Triton's settings.

    Raises:
        InvalidInput: a setting that there is not, or a value that it cannot have.
    """
    for name, value in changes.items():
        if name not in _LOG_KEYS:
            raise InvalidInput(f"{name[:60]}: cannot be set here; {', '.join(_LOG_KEYS)} can", field=name[:60])
        kinds: tuple[type, ...] = (int,) if name == _VERBOSE else (bool,)
        if not isinstance(value, kinds) or (name == _VERBOSE and (isinstance(value, bool) or value < 0)):  # type: ignore[operator]
            expected = "0 or more" if name == _VERBOSE else "true or false"
            raise InvalidInput(f"{name}: {value!r} is not {expected}", field=name)
    wanted = {**now, **changes}
    if not wanted[_ERROR]:
        raise InvalidInput(f"{_ERROR}: errors are always written; leave it true", field=_ERROR)
    if wanted[_VERBOSE] and (_INFO not in changes or wanted[_INFO]):
        return "debug"
    if wanted[_INFO] and _WARNING in changes and not wanted[_WARNING]:
        raise InvalidInput(f"{_WARNING}: a log with {_INFO} has warnings, too; set {_INFO} to false", field=_WARNING)
    if wanted[_INFO]:
        return "info"
    return "warning" if wanted[_WARNING] else "error"


def _is_on(values: Sequence[str]) -> bool:
    if any(value not in ("OFF", "TIMESTAMPS") for value in values) or len(values) > 1:
        raise InvalidInput(f"{_LEVEL}: {', '.join(values)[:60]} is not OFF or TIMESTAMPS", field=_LEVEL)
    return list(values) != ["OFF"]


def _rate(values: Sequence[str]) -> int:
    text = values[0]
    if len(values) != 1 or not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= _MAX_RATE):
        raise InvalidInput(
            f"{_RATE}: {', '.join(values)[:60]!r} is not a number: one of how many requests is traced", field=_RATE
        )
    return int(text)
