"""How people and tools name what is in a registry: ``digits:v2``, ``acme/digits@sha256:...``."""

from __future__ import annotations

import re

from penstock.artifact.blobs import check_digest
from penstock.artifact.manifests import check_model_name, check_tag
from penstock.errors import ArtifactError

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAMESPACE = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_REFERRERS_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z]+)?")


def is_namespace(text: str) -> bool:
    """Say whether ``text`` can stand before the name of a model in that of a repository."""
    return _NAMESPACE.fullmatch(text) is not None


def split_reference(reference: str) -> tuple[str, str]:
    """Split ``digits:v2`` or ``acme/digits@sha256:...`` or ``digits`` into (repository, tag or digest or "").

    Raises:
        ArtifactError: neither form.
    """
    name, at, digest = reference.partition("@")
    if at:
        return _check_repository(name), check_digest(digest)
    name, colon, tag = reference.partition(":")
    return _check_repository(name), check_tag(tag) if colon else ""


def referrers_tag(digest: str) -> str:
    """Return the tag under which a registry without a list of referrers keeps one (OCI distribution 1.1)."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"


def is_referrers_tag(tag: str) -> bool:
    """Say whether a tag is no version: it lists what refers to an artifact, or holds what cosign attaches to one."""
    return _REFERRERS_TAG.fullmatch(tag) is not None


def _check_repository(name: str) -> str:
    namespace, slash, model = name.rpartition("/")
    check_model_name(model)
    if (slash and not is_namespace(namespace)) or len(name) > 255:
        raise ArtifactError(
            f"{name[:140]!r} is not a repository; use lower-case letters, digits and . _ - between them in every part"
        )
    return name
