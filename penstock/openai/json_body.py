"""Read a request's JSON strictly: where it is broken, what stands twice, and which field holds the wrong thing.

JSON leaves open what a key that stands twice means, and Python's and other readers accept numbers and characters that
no JSON has. What two servers on one path could read differently is refused here, whatever the field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from penstock.errors import InvalidInput

T = TypeVar("T")

_PATH = re.compile(r" - at `\$(?:\.)?(.*)`$")
_MAX_NAMED = 8
_MAX_NAME = 64


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a body that has to hold one JSON object.

    Raises:
        InvalidInput: it is no UTF-8, no JSON (the message has the place), no object, or nested too deeply; a key
            stands twice; it holds NaN, an infinity, or half a surrogate pair.
    """
    try:
        text = body.decode("utf-8")
        document = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite_float
        )
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _broken(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _broken("half a surrogate pair, which is no character; send whole characters") from None
    except json.JSONDecodeError as error:
        raise _broken(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _broken("nested too deeply") from None
    except InvalidInput:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise _broken(f"not readable: {error}") from None
    if not isinstance(document, dict):
        raise _broken("expected a JSON object")
    return document


def convert(value: object, kind: type[T], *, field: str = "") -> T:
    """Make a typed value of a parsed one. Nothing is coerced: "1" is no number and 1.0 no integer.

    Args:
        kind: what it has to be.
        field: where ``value`` stands in the request.

    Raises:
        InvalidInput: ``field`` of the error names the part that is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        text = str(error)
        match = _PATH.search(text)
        inner = match[1] if match else ""
        where = (field + inner if inner.startswith("[") or not field else f"{field}.{inner}") if inner else field
        raise InvalidInput(f"{where or 'body'}: {_PATH.sub('', text)}", field=where or "body") from None


def unknown_names(document: Mapping[str, Any], known: Iterable[str]) -> tuple[str, ...]:
    """List the keys that nothing here reads, a few of them and shortened."""
    strangers = sorted(set(document) - set(known))
    more = len(strangers) - _MAX_NAMED
    names = [name[:_MAX_NAME] for name in strangers[:_MAX_NAMED]]
    return (*names, f"{more} more") if more > 0 else tuple(names)


def _broken(why: str) -> InvalidInput:
    return InvalidInput(f"body: {why}", field="body")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise InvalidInput(f"{twice[:_MAX_NAME]}: stands twice in one object; send it once", field=twice[:_MAX_NAME])
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _broken(f"{name} is not JSON; send a finite number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _broken(f"{text[:40]} is larger than any number that is read here")
    return value
