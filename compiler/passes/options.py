"""What a recipe sets for a pass, checked against the pass's own Struct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from penstock.errors import ConfigError
from penstock.process.config import nearest

_Options = TypeVar("_Options", bound=msgspec.Struct)


def decode(options: Mapping[str, Any], kind: type[_Options], *, name: str) -> _Options:
    """Return the options of pass ``name``, checked.

    Raises:
        ConfigError: an unknown option, with the nearest known one, or a value that it cannot have.
    """
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in options:
        if key not in known:
            raise ConfigError(f"pass {name}: unknown option {key!r}; {nearest(key, known)}")
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).rpartition(" - at `$.")
        option = f"option {where.rstrip('`')!r}: " if text else ""
        raise ConfigError(f"pass {name}: {option}{text or error}") from error
