"""What belongs to an artifact in a registry: certificate, evaluation, report, signature. Finds it, and makes it found.

A registry of OCI 1.1 lists by itself what refers to a manifest. Others keep such manifests and list nothing, so that
whoever pushes writes the list, under a tag that is made of the artifact's digest. What is pushed is looked for again
afterwards: an artifact whose certificate nobody finds is one without.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.artifact import manifests
from penstock.artifact.manifests import Descriptor
from penstock.artifact.references import referrers_tag
from penstock.errors import ArtifactError, DigestMismatch, NotFound
from penstock.registry.client import RegistryClient

_ATTEMPTS = 4
_MAX_TAGGED = 1000


def find(client: RegistryClient, name: str, digest: str, kind: str = "") -> list[Descriptor]:
    """Find which manifests refer to ``digest``, those of artifact type ``kind`` if one is given.

    Returns:
        Their descriptors in the registry's order, as a rule the oldest first.

    Raises:
        ArtifactError: no such list. DigestMismatch, TooLarge, Unavailable: it cannot be had.
    """
    listed = client.listed_referrers(name, digest, kind)
    if listed is not None:
        return [entry for entry in listed if kind in ("", entry.artifact_type)]  # filtering is optional for registries
    tagged = [entry for entry in _tagged(client, name, digest) if kind in ("", entry.artifact_type or kind)]
    if len(tagged) > _MAX_TAGGED:
        raise ArtifactError(f"{client.url}: {len(tagged)} referrers of {digest}, more than the {_MAX_TAGGED} allowed")
    found = [read for entry in tagged if (read := _read(client, name, digest, entry.digest)) is not None]
    return [entry for entry in found if kind in ("", entry.artifact_type)]


def ensure_listed(client: RegistryClient, name: str, digest: str, pushed: Sequence[Descriptor]) -> None:
    """Have manifests that were pushed listed as referrers of ``digest``.

    Registries know no lock: who writes the same tag at the same moment may undo it, so it is read again and written
    again.

    Raises:
        ArtifactError: the registry took them and does not list them. Unavailable: out of reach.
    """
    missing = list(pushed)
    for attempt in range(_ATTEMPTS):
        client.pause(attempt)  # an index that is late, or somebody else who writes the tag
        listed = client.listed_referrers(name, digest)
        found = _tagged(client, name, digest) if listed is None else listed
        missing = [entry for entry in pushed if entry.digest not in {one.digest for one in found}]
        if not missing:
            return
        if listed is None:
            _write_tag(client, name, digest, [*found, *map(_plain, missing)])
    kinds = ", ".join(sorted({entry.artifact_type or entry.media_type for entry in missing}))
    raise ArtifactError(
        f"{client.url} took what belongs to {name}@{digest} and does not list it afterwards ({kinds}); no version was "
        "named, since it would be without that"
    )


def _tagged(client: RegistryClient, name: str, digest: str) -> list[Descriptor]:
    """Read what stands in for a list of referrers. Anybody may have written it.

    Raises:
        ArtifactError: the tag is used for something else.
    """
    tag = referrers_tag(digest)
    try:
        document = client.manifest(name, tag)
    except NotFound:
        return []
    if document.media_type != manifests.INDEX:
        raise ArtifactError(
            f"{client.url}: {name}:{tag} should list what refers to the artifact, but is {document.media_type!r}; "
            "delete that tag"
        )
    return manifests.decode_index(document.data).manifests


def _read(client: RegistryClient, name: str, subject: str, digest: str) -> Descriptor | None:
    """Describe a listed manifest by what it says itself; None where it is gone, of no kind of ours, or refers to
    something else."""
    try:
        document = client.manifest(name, digest)
        manifest = manifests.decode_manifest(document.data)
    except DigestMismatch:
        raise
    except (NotFound, ArtifactError):
        return None
    if manifest.subject is None or manifest.subject.digest != subject:
        return None
    return Descriptor(
        media_type=document.media_type,
        digest=digest,
        size=len(document.data),
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=manifest.annotations,
    )


def _write_tag(client: RegistryClient, name: str, digest: str, entries: list[Descriptor]) -> None:
    index = manifests.Index(schema_version=2, media_type=manifests.INDEX, manifests=entries)
    data = msgspec.json.encode(index, order="deterministic")
    client.push_manifest(name, referrers_tag(digest), data, manifests.INDEX)


def _plain(entry: Descriptor) -> Descriptor:
    """Leave out the name that a document has in the layout alone."""
    kept = {key: value for key, value in entry.annotations.items() if key != manifests.REF_NAME}
    return msgspec.structs.replace(entry, annotations=kept)
