"""TLS of everything that listens: which certificate a server shows, and whose certificates it takes from clients.

Files are read here and again when they have changed, so that a renewed certificate counts for new connections without a
restart. A pair that does not fit together, as half-way through a renewal, changes nothing. Opens no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from penstock.errors import ConfigError
from penstock.wire.credentials import PeerCertificate

if TYPE_CHECKING:
    import ssl

_MAX_FILE_BYTES = 1024 * 1024


class ServerTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What HTTP and gRPC are served with: TLS 1.2 or later, or in the clear without a certificate. All files are PEM.

    Attributes:
        certificate: the certificate that clients see, followed by those between it and its authority; "" serves in the
            clear.
        key: its private key, not encrypted; "" where ``certificate`` holds that too.
        client_ca: certificates of authorities; every client then has to show a certificate of theirs. "" asks for
            none.
        reload_s: the files are looked at so often, and count for new connections when they have changed.
    """

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    reload_s: Annotated[float, msgspec.Meta(ge=0.1, le=86_400.0)] = 10.0

    def __post_init__(self) -> None:
        for name in ("key", "client_ca"):
            if getattr(self, name) and not self.certificate:
                raise ValueError(f"{name}: says nothing without a certificate of the server; give certificate, too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """What is in the files.

    Attributes:
        client_ca: None where clients need no certificate.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class ServerCertificates:
    """What connections are made with from now on.

    Attributes:
        context: what sockets are wrapped with, always the same; each handshake takes what the files last said.
        pem: the same for libraries that take bytes.
        generation: how often the files have changed.
    """

    def __init__(self, settings: ServerTls) -> None:
        """Read the files.

        Raises:
            ConfigError: one that cannot be read, or holds something else.
        """
        self._settings = settings
        self.pem = _read(settings)
        self.context = self._current = _context(settings)
        self.generation = 0
        self.context.sni_callback = self._take_current  # called for each handshake, with a name or without

    def reload(self) -> bool:
        """Read the files again; say whether they have changed. What is in service stays where they are wrong.

        Raises:
            ConfigError: a file that cannot be read, or holds something else.
        """
        found = _read(self._settings)
        if found == self.pem:
            return False
        made = _context(self._settings)
        if _read(self._settings) != found:
            raise ConfigError("tls: the files are being replaced")
        self._current, self.pem, self.generation = made, found, self.generation + 1
        return True

    def _take_current(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._current is not context:
            connection.context = self._current


def peer_certificate(found: Mapping[str, Any] | None) -> PeerCertificate | None:
    """Make a credential of what ``ssl`` says of a client's certificate, which it has verified; None without one."""
    if not found:
        return None
    names = [f"{kind}:{value}" for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    names += [f"EMAIL:{value}" for kind, value in found.get("subjectAltName", ()) if kind == "email"]
    subject = [pair for parts in found.get("subject", ()) for pair in parts]
    names += [f"CN:{value}" for name, value in subject if name == "commonName"]
    return PeerCertificate.of(names)


def _read(settings: ServerTls) -> Pem:
    certificate = _bytes("certificate", settings.certificate)
    return Pem(
        certificate=certificate,
        key=_bytes("key", settings.key) if settings.key else certificate,
        client_ca=_bytes("client_ca", settings.client_ca) if settings.client_ca else None,
    )


def _bytes(setting: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"tls.{setting}: {path}: {error.strerror}") from error


def _context(settings: ServerTls) -> ssl.SSLContext:
    import ssl  # here, so that settings can be read without it

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(settings.certificate, settings.key or None, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"tls.certificate: {settings.certificate}: no certificate in PEM with the key for it ({error})"
        ) from error
    if settings.client_ca:
        made.verify_mode = ssl.CERT_REQUIRED
        try:
            made.load_verify_locations(settings.client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(f"tls.client_ca: {settings.client_ca}: no certificates in PEM") from error
    return made


def _no_password() -> str:
    raise ValueError("the private key is encrypted, and nobody is there to be asked for its password")
