"""Settings: file < environment < flags, into typed msgspec Structs. A misspelt key is refused with the nearest name.

A room declares its settings as ``msgspec.Struct(frozen=True, kw_only=True, forbid_unknown_fields=True)`` with defaults
for everything, nested Structs as sections. The environment names a nested key with a double underscore:
``PENSTOCK_CORE_HTTP__PORT=9000`` is ``[http] port = 9000`` for prefix ``PENSTOCK_CORE_``.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from penstock.errors import ConfigError

Settings = TypeVar("Settings", bound=msgspec.Struct)


def load(
    kind: type[Settings],
    *,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    env_prefix: str = "",
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Read settings of type ``kind``; later sources win: file, environment, flags.

    Args:
        flags: dotted names to values; None means "not given".

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known name), wrong type, out of range.
    """
    tree = _read_file(file) if file else {}
    _check_names(tree, kind, str(file))
    for name, text in (env or {}).items():
        if env_prefix and name.startswith(env_prefix):
            path = [part.lower() for part in name.removeprefix(env_prefix).split("__")]
            _put(tree, path, text, kind, source=name)
    for name, value in (flags or {}).items():
        if value is not None:
            _put(tree, name.split("."), value, kind, source=f"--{name.replace('.', '-').replace('_', '-')}")
    return convert(tree, kind, where=f"{file}: " if file else "")


def convert(tree: Mapping[str, Any], kind: type[Settings], *, where: str) -> Settings:
    """Convert a plain tree into settings.

    Args:
        where: begins every message: who set them.

    Raises:
        ConfigError: wrong type, out of range, or none of the words that it may be.
    """
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}{_readable(str(error))}{_choices(str(error), kind)}") from error


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error


def _check_names(tree: Mapping[str, Any], kind: type[msgspec.Struct], source: str, prefix: str = "") -> None:
    """Refuse unknown names and say which known one was meant, which msgspec cannot.

    A section may say in ``REPLACED`` what became of names that earlier releases knew.
    """
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for name, value in tree.items():
        if name not in fields:
            replaced = getattr(kind, "REPLACED", {}).get(name)
            advice = f"it became {replaced}" if replaced else nearest(name, fields)
            raise ConfigError(f"{source}: unknown setting {prefix + name!r}; {advice}")
        for section in _sections(fields[name]):
            if isinstance(value, Mapping):
                _check_names(value, section, source, f"{prefix}{name}.")
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, Mapping):
                        _check_names(item, section, source, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[msgspec.Struct]]:
    """Return the Struct types that an annotation is, or holds in a list, tuple or union (not in a dict: its keys are
    data).
    """
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    if typing.get_origin(annotation) is dict:
        return []
    return [section for argument in typing.get_args(annotation) for section in _sections(argument)]


def _put(tree: dict[str, Any], path: list[str], value: Any, kind: type[msgspec.Struct], *, source: str) -> None:
    node: dict[str, Any] = tree
    section: type[msgspec.Struct] = kind
    for index, name in enumerate(path):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(section)}
        if name not in fields:
            raise ConfigError(f"{source}: unknown setting {'.'.join(path)!r}; {nearest(name, fields)}")
        if index == len(path) - 1:
            node[name] = _parsed(value, fields[name])
            return
        node = node.setdefault(name, {})
        sections = _sections(fields[name])
        if not sections:
            raise ConfigError(f"{source}: {'.'.join(path[: index + 1])!r} is a value, not a section")
        section = sections[0]


def _parsed(value: Any, annotation: Any) -> Any:
    """Parse text from the environment: JSON for a list or table; ``a,b`` works for a list of words."""
    origin = typing.get_origin(annotation)
    if not isinstance(value, str) or origin not in (list, tuple, dict):
        return value
    if value.lstrip()[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{value!r} is not JSON: {error}") from error
    return [part.strip() for part in value.split(",") if part.strip()]


def _choices(message: str, kind: type[msgspec.Struct]) -> str:
    """Say what a setting may be, where it is one of a few words: msgspec names only the word that it is not."""
    text, _, where = message.rpartition(" - at `$.")
    if not text.startswith("Invalid enum value"):
        return ""
    annotation: Any = kind
    for name in where.rstrip("`").split("."):
        fields = {
            field.encode_name: field.type
            for section in _sections(annotation)[:1]
            for field in msgspec.structs.fields(section)
        }
        annotation = fields.get(name.partition("[")[0])
        if name.endswith("]"):  # an item of a list: what the list holds
            annotation = next(iter(typing.get_args(annotation)), None)
    words = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    return f"; one of {', '.join(repr(word) for word in words)}" if words else ""


def _readable(message: str) -> str:
    """Turn msgspec's ``Expected `int`, got `str` - at `$.http.port``` into ``http.port: expected ...``."""
    text, _, where = message.rpartition(" - at `$.")
    if not text:
        return message
    return f"{where.rstrip('`')}: {text[0].lower()}{text[1:]}"
