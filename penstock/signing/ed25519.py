"""Ed25519 keys: make, read, sign, verify. The only module that imports ``cryptography``.

A key's id is the SHA-256 of its SubjectPublicKeyInfo in DER, as ``openssl pkey -pubin -outform DER | sha256sum`` prints
it. Where keys are kept, and which are believed, is the business of ``penstock.signing.trust`` and of the command line.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from penstock.errors import InvalidInput, missing_extra
from penstock.signing import statements
from penstock.signing.statements import Statement

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
except ImportError as error:  # the library is behind an extra
    raise missing_extra("cryptography", "sign", "signing and verifying artifacts") from error


@dataclass(frozen=True, slots=True, eq=False)
class PublicKey:
    """A key that verifies."""

    _key: Ed25519PublicKey

    @property
    def keyid(self) -> str:
        """Return the key's id, 64 hex digits."""
        der = self._key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    @property
    def pem(self) -> bytes:
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def has_signed(self, payload: bytes, signature: bytes) -> bool:
        """Say whether ``signature`` is this key's of ``payload``."""
        try:
            self._key.verify(signature, statements.pre_authentication(payload))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A key that signs."""

    _key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key())

    def pem(self, passphrase: bytes = b"") -> bytes:
        """Write the key as PKCS8, encrypted where there is a passphrase."""
        how: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            how = serialization.BestAvailableEncryption(passphrase)
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)

    def sign(self, statement: Statement) -> bytes:
        """Sign a statement; return the envelope. Ed25519 draws no random numbers: same statement
        and key, same bytes."""
        payload = statements.payload_of(statement)
        signature = self._key.sign(statements.pre_authentication(payload))
        return statements.encode(payload, [(self.public.keyid, signature)])


def generate() -> SigningKey:
    """Make a new key from the operating system's random numbers."""
    return SigningKey(Ed25519PrivateKey.generate())


def read_public(pem: bytes, what: str) -> PublicKey:
    """Read a public key in PEM.

    Args:
        what: what to call it in errors: a file's name.

    Raises:
        InvalidInput: not a public key in PEM, or not of ed25519.
    """
    if b"PRIVATE KEY" in pem:
        raise InvalidInput(f"{what} is a private key; give the public one beside it (.pub)", field="key")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"{what} is no public key in PEM: {_short(error)}", field="key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _other_kind(what, key)
    return PublicKey(key)


def is_encrypted(pem: bytes) -> bool:
    """Say whether a private key needs a passphrase."""
    return b"ENCRYPTED PRIVATE KEY" in pem


def read_private(pem: bytes, what: str, *, passphrase: bytes = b"") -> SigningKey:
    """Read a private key in PEM.

    Raises:
        InvalidInput: not a private key in PEM, not of ed25519, or another passphrase.
    """
    if b"PRIVATE KEY" not in pem:
        raise InvalidInput(f"{what} is no private key; 'penstock keys generate' makes one", field="key")
    try:
        key = serialization.load_pem_private_key(pem, passphrase or None)
    except TypeError as error:  # a passphrase is missing, or there is one too many
        if not is_encrypted(pem):
            return read_private(pem, what)
        raise InvalidInput(f"{what} needs a passphrase: PENSTOCK_KEY_PASSPHRASE, or a terminal", field="key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        why = "the passphrase is wrong" if is_encrypted(pem) else _short(error)
        raise InvalidInput(f"{what} cannot be read: {why}", field="key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(what, key)
    return SigningKey(key)


def _other_kind(what: str, key: object) -> InvalidInput:
    kind = type(key).__name__.removeprefix("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return InvalidInput(f"{what} is a key of another kind ({kind}); artifacts are signed by ed25519 keys", field="key")


def _short(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200] or type(error).__name__
