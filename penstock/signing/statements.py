"""What is signed: a statement about one artifact in a DSSE envelope (https://github.com/secure-systems-lab/dsse).

Decides the bytes: same artifact and referrers, same payload. Knows no keys and no cryptography; that is
``penstock.signing.ed25519``. Which keys are believed is decided by ``penstock.signing.trust``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from penstock.artifact import manifests
from penstock.artifact.manifests import Artifact
from penstock.errors import SignatureError

PAYLOAD_TYPE = "application/vnd.penstock.statement.v1+json"
MAX_REFERRERS = 1000
MAX_SIGNATURES = 16
"""In one envelope."""


class Covered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """A referrer that was there at signing: its artifactType and the digest of its manifest."""

    kind: str
    digest: str


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Says of an artifact what belongs to it. A referrer that is not listed is not vouched for.

    Attributes:
        artifact: digest of the index.
        variants: manifest digests, in its order.
        referrers: sorted; signatures are never among them.
    """

    schema: Literal[1] = 1
    model: str
    artifact: str
    variants: tuple[str, ...]
    referrers: Annotated[tuple[Covered, ...], msgspec.Meta(max_length=MAX_REFERRERS)]


class EnvelopeSignature(msgspec.Struct, frozen=True, kw_only=True):
    """``keyid`` is a hint, not a proof; ``sig`` is base64."""

    sig: str
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A DSSE envelope. Unknown fields are allowed: the specification says to ignore them."""

    payload: str
    payloadType: str  # noqa: N815 - the specification's name
    signatures: Annotated[tuple[EnvelopeSignature, ...], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)]


def about(artifact: Artifact, referrers: Iterable[Covered]) -> Statement:
    """Make the statement about an artifact and what refers to it now."""
    covered = sorted({referrer for referrer in referrers if referrer.kind != manifests.SIGNATURE})
    return Statement(
        model=artifact.model,
        artifact=artifact.digest,
        variants=tuple(variant.digest for variant in artifact.variants),
        referrers=tuple(covered),
    )


def payload_of(statement: Statement) -> bytes:
    """Write the statement as canonical JSON, without time or randomness."""
    return manifests.canonical_json(statement)


def pre_authentication(payload: bytes) -> bytes:
    """Return what is signed in place of the payload: DSSE's PAE, so that its type is signed too."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def encode(payload: bytes, signatures: Iterable[tuple[str, bytes]]) -> bytes:
    """Write the envelope of (keyid, signature) pairs."""
    envelope = Envelope(
        payload=base64.b64encode(payload).decode(),
        payloadType=PAYLOAD_TYPE,
        signatures=tuple(
            EnvelopeSignature(keyid=keyid, sig=base64.b64encode(signature).decode()) for keyid, signature in signatures
        ),
    )
    return manifests.canonical_json(envelope)


def decode(data: bytes) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Read (payload, (keyid, signature) pairs); nothing of it is verified yet.

    Raises:
        SignatureError: not an envelope of ours.
    """
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
        found = tuple((one.keyid, base64.b64decode(one.sig, validate=True)) for one in envelope.signatures)
    except (msgspec.MsgspecError, binascii.Error, UnicodeError) as error:
        raise SignatureError(f"not a signature document: {error}") from error
    if envelope.payloadType != PAYLOAD_TYPE:
        raise SignatureError(f"the signature is of a {envelope.payloadType[:100]!r}, expected {PAYLOAD_TYPE}")
    return payload, found


def read(payload: bytes) -> Statement:
    """Parse a payload, after its signature was verified.

    Raises:
        SignatureError: not a statement.
    """
    try:
        return msgspec.json.decode(payload, type=Statement)
    except msgspec.MsgspecError as error:
        raise SignatureError(f"the signed statement cannot be read: {error}") from error
