"""The trust root: which keys are believed on this machine, and whether an artifact is vouched for by one of them.

A trust root is a directory of public keys (``*.pub``). It is configured by naming it, or by trusting a first key, which
creates the default one; from then on nothing unsigned is used. Keys are read at every use: one that is removed is
believed no longer. Imports ``cryptography`` only when a key is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.artifact import manifests
from penstock.artifact.blobs import disk_errors
from penstock.artifact.layout import Layout, Referrer
from penstock.artifact.manifests import Artifact
from penstock.errors import ConfigError, InvalidInput, SignatureError
from penstock.process import directories
from penstock.signing import statements
from penstock.signing.statements import Covered

if TYPE_CHECKING:
    from penstock.signing.ed25519 import PublicKey, SigningKey

ENVIRONMENT = "PENSTOCK_TRUST_ROOT"
SUFFIX = ".pub"
MAX_KEYS = 256
MAX_SIGNATURES = 64
"""Signature documents looked at for one artifact; registries list the oldest first, so the last are taken."""
_MAX_KEY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key by the name of its file."""

    name: str
    key: PublicKey

    def __str__(self) -> str:
        return f"{self.name} ({self.key.keyid[:16]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """A trusted key's statement. ``referrers``: manifest digests of the referrers that it lists."""

    name: str
    keyid: str
    referrers: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the signatures of an artifact amount to.

    Attributes:
        vouched: statements of trusted keys about exactly this artifact; empty means that it must not be used.
        unknown: ids of keys that signed and are not trusted here.
        problems: signatures in a trusted key's name that do not hold, and documents that are none.
    """

    vouched: tuple[Vouched, ...]
    unknown: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def covered(self) -> frozenset[str]:
        """Manifest digests of all referrers that a trusted key vouches for."""
        return frozenset().union(*(one.referrers for one in self.vouched))


class TrustRoot:
    """A directory of public keys. Using it verifies; there is no way to ask it not to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"TrustRoot({str(self.directory)!r})"

    def keys(self) -> tuple[TrustedKey, ...]:
        """Read the keys that are in it now, by name.

        Raises:
            ConfigError: a file in it is no key, or there are more than ``MAX_KEYS``. StorageError: unreadable.
        """
        from penstock.signing import ed25519

        found = []
        for path in _key_files(self.directory):
            try:
                key = ed25519.read_public(read_key_file(path), str(path))
            except InvalidInput as error:
                raise ConfigError(f"trust root: {error.message}; remove the file, or replace it by a key") from error
            found.append(TrustedKey(name=path.stem, key=key))
        return tuple(found)

    def examine(self, artifact: Artifact, documents: Iterable[bytes]) -> Verdict:
        """Say which of ``keys`` vouch for an artifact by these signature documents.

        Raises:
            ConfigError, StorageError: the trust root itself cannot be read.
        """
        return examine(artifact, documents, self.keys())

    def check(self, artifact: Artifact, documents: Sequence[bytes]) -> frozenset[str]:
        """Return manifest digests of the referrers that may be used with an artifact.

        Raises:
            SignatureError: no trusted key vouches for it: unsigned, signed by others, or tampered with.
            ConfigError, StorageError: the trust root itself cannot be read.
        """
        keys = self.keys()
        verdict = examine(artifact, documents, keys)
        if verdict.vouched:
            return verdict.covered
        raise SignatureError(f"artifact {artifact.digest} of {artifact.model!r} {self._why(verdict, keys)}")

    def _why(self, verdict: Verdict, keys: Sequence[TrustedKey]) -> str:
        if verdict.problems:
            return f"is not vouched for: {'; '.join(verdict.problems[:3])}"
        trusted = ", ".join(str(key) for key in keys[:5]) or "none"
        if verdict.unknown:
            signers = ", ".join(keyid[:16] for keyid in verdict.unknown[:5])
            return (
                f"is signed by {signers}, which {self.directory} does not trust (it trusts {trusted}); "
                "'penstock keys trust KEY.pub' adds a key"
            )
        return (
            f"is not signed, and only what is signed is used here ({self.directory} trusts {trusted}); sign it with "
            "'penstock artifact sign DIR --key KEY' and push it again"
        )


def examine(artifact: Artifact, documents: Iterable[bytes], keys: Sequence[TrustedKey]) -> Verdict:
    """Say which of ``keys`` vouch for an artifact by these signature documents."""
    vouched: list[Vouched] = []
    unknown: dict[str, None] = {}
    problems: list[str] = []
    for document in documents:
        try:
            payload, signatures = statements.decode(document)
            for keyid, signature in signatures:
                named = [key for key in keys if keyid in ("", key.key.keyid)]
                signer = next((key for key in named if key.key.has_signed(payload, signature)), None)
                if signer is not None:
                    vouched.append(_vouched(artifact, payload, signer))
                elif named and keyid:
                    problems.append(f"{named[0]} did not sign this statement: it was tampered with, or is damaged")
                else:
                    unknown[keyid or "a key without id"] = None
        except SignatureError as error:
            problems.append(error.message)
    return Verdict(vouched=tuple(vouched), unknown=tuple(unknown), problems=tuple(problems))


def configured(setting: str, environment: Mapping[str, str]) -> TrustRoot | None:
    """Return the trust root that is in force, or None where none is configured.

    Args:
        setting: a directory; "" for ``PENSTOCK_TRUST_ROOT``, or else the default one, which the first
            ``penstock keys trust`` creates.

    Raises:
        ConfigError: a directory that was named is none.
    """
    named = setting or environment.get(ENVIRONMENT, "")
    if named:
        directory = directories.expanded(named)
        if not directory.is_dir():
            raise ConfigError(f"trust root: {directory} is not a directory; create it, and add keys to trust")
        return TrustRoot(directory)
    try:
        directory = default_directory(environment)
    except ConfigError:
        return None  # a user without a home has no directory there
    # also when its last key was removed: that must not be the way to trust everybody
    return TrustRoot(directory) if directory.is_dir() else None


def default_directory(environment: Mapping[str, str]) -> Path:
    """Return ``~/.config/penstock/trust``.

    Raises:
        ConfigError: this user has no home.
    """
    return directories.config_directory(environment) / "trust"


def sign(directory: Path, key: SigningKey) -> Referrer:
    """Sign the artifact in a layout with everything that refers to it now; signing it again changes nothing.

    Raises:
        ArtifactError: the layout is damaged: what is signed is what was checked.
    """
    layout = Layout(directory)
    problems = layout.verify()
    if problems:
        raise SignatureError(f"{directory} does not verify, so it was not signed: {'; '.join(problems[:3])}")
    present = [Covered(kind=referrer.kind, digest=referrer.digest) for referrer in layout.referrers()]
    document = key.sign(statements.about(layout.artifact(), present))
    return layout.attach(manifests.SIGNATURE, document, title="signature.json")


def signatures_of(layout: Layout) -> tuple[bytes, ...]:
    """Return the signature documents of a layout, oldest first.

    Raises:
        NotFound, DigestMismatch, TooLarge: one of them is gone or damaged.
    """
    found = layout.referrers(manifests.SIGNATURE)[-MAX_SIGNATURES:]
    return tuple(layout.blobs.read(referrer.content.digest) for referrer in found)


def read_key_file(path: Path) -> bytes:
    """Read a key's file.

    Raises:
        InvalidInput: too large to be a key. StorageError: unreadable.
    """
    with disk_errors(f"reading {path}"), path.open("rb") as file:
        data = file.read(_MAX_KEY_BYTES + 1)
    if len(data) > _MAX_KEY_BYTES:
        raise InvalidInput(f"{path} has more than {_MAX_KEY_BYTES} bytes, which no key has", field="key")
    return data


def _vouched(artifact: Artifact, payload: bytes, signer: TrustedKey) -> Vouched:
    """Return what a signature document vouches for.

    Raises:
        SignatureError: what the key signed is another artifact.
    """
    said = statements.read(payload)
    digests = tuple(variant.digest for variant in artifact.variants)
    if (said.model, said.artifact, said.variants) != (artifact.model, artifact.digest, digests):
        raise SignatureError(f"{signer} signed {said.model!r} {said.artifact}, which is not this artifact")
    return Vouched(
        name=signer.name, keyid=signer.key.keyid, referrers=frozenset(covered.digest for covered in said.referrers)
    )


def _key_files(directory: Path) -> list[Path]:
    with disk_errors(f"reading trust root {directory}"):
        files = sorted(directory.glob(f"*{SUFFIX}"))
    if len(files) > MAX_KEYS:
        raise ConfigError(f"trust root: {directory} holds {len(files)} keys, more than the {MAX_KEYS} allowed")
    return files
