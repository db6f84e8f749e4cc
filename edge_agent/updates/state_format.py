"""The format of a model's state on disk: one JSON document with a schema version.

Turns states into bytes and back; reads and writes no file (``edge_agent.updates.store`` does). A document of an older
release is brought up to date; one of a newer release is refused, because what this one does not know in it would be
lost with the next write. A key that is not known is an error too: a misspelt one would silently mean its default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edge_agent.policy.model_state import ModelState
from penstock.errors import ArtifactError, newer_state

SCHEMA_VERSION = 4
"""Raise it when the document changes, add a step that brings older documents there, and keep a golden file."""

_VERSION_KEY, _CHECKSUM_KEY = "schema_version", "checksum"
_STEPS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda document: document,  # version 0, of Penstock 0.1.0, was the same document without a version
    2: lambda document: (
        document
    ),  # without audits: those that older releases kept beside the outbox are taken over once
    3: lambda document: document,  # trials without a boot id: they blamed a model for every power cut, and do not count
    4: lambda document: document,  # audits without an operator's word
}


def encode(state: ModelState) -> bytes:
    """Write a state as this release does."""
    # beside the state's own keys, not around them: a device that has to go back one release still finds its model
    document = {_VERSION_KEY: SCHEMA_VERSION} | msgspec.to_builtins(state)
    document[_CHECKSUM_KEY] = _checksum(document)
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()


def decode(data: bytes, where: str) -> ModelState:
    """Read a state that this or an older release wrote.

    Args:
        where: what to call the document in messages.

    Raises:
        NewerState: a newer release wrote it.
        ArtifactError: it is damaged, or has keys that are not known.
    """
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
        version = msgspec.convert(document.pop(_VERSION_KEY, 0), int)
        given = document.pop(_CHECKSUM_KEY, None)
        is_newer = version > SCHEMA_VERSION
        # looked at before the version is: one flipped bit makes a newer release of this one
        if given != (_checksum({_VERSION_KEY: version} | document) if version >= 3 else None) and not (
            is_newer and given is None
        ):
            raise ArtifactError(f"{where}: damaged, its checksum differs")
        if is_newer:
            raise newer_state(where, found=version, known=SCHEMA_VERSION)
        for number in range(version + 1, SCHEMA_VERSION + 1):
            document = _STEPS[number](document)
        return msgspec.convert(document, ModelState)
    except (msgspec.MsgspecError, KeyError) as error:
        raise ArtifactError(f"{where}: {error}") from error
