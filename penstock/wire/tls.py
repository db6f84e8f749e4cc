"""TLS of everything that dials: which authorities a client trusts, who it says it is, and what went wrong, in words.

One rule for HTTP, gRPC, pushes and pulls. A server's certificate and name are always checked; there is no switch for
that. Reads files; opens no connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penstock.errors import ConfigError

if TYPE_CHECKING:
    import ssl

CA_FILE, CERT_FILE, KEY_FILE = "PENSTOCK_CA_FILE", "PENSTOCK_CLIENT_CERT", "PENSTOCK_CLIENT_KEY"


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``https://`` and ``grpcs://`` are spoken with. All files are PEM.

    Attributes:
        ca_file: certificates of the authorities that are trusted, and of no others; "" for those that this machine
            trusts (``SSL_CERT_FILE`` names others).
        cert_file: the certificate that is shown to servers that ask for one, followed by those between it and its
            authority; "" for none.
        key_file: its private key; "" where ``cert_file`` holds that too.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        if self.key_file and not self.cert_file:
            raise ValueError("key_file: a private key says nothing without its certificate; give cert_file, too")


def from_environment(environment: Mapping[str, str] | None = None) -> Tls:
    """Return what PENSTOCK_CA_FILE, PENSTOCK_CLIENT_CERT and PENSTOCK_CLIENT_KEY say.

    Raises:
        ConfigError: a key without a certificate.
    """
    env = os.environ if environment is None else environment
    try:
        return Tls(ca_file=env.get(CA_FILE, ""), cert_file=env.get(CERT_FILE, ""), key_file=env.get(KEY_FILE, ""))
    except ValueError:
        raise ConfigError(f"{KEY_FILE}: a private key says nothing without its certificate; set {CERT_FILE}") from None


def context(tls: Tls) -> ssl.SSLContext:
    """Make what sockets are wrapped with. It reads the files now: a certificate that is renewed counts for later ones.

    Raises:
        ConfigError: a file that cannot be read, or holds something else.
    """
    import ssl  # here, so that clients without TLS do not load it

    path = tls.ca_file
    try:
        made = ssl.create_default_context(cafile=tls.ca_file or None)
        if tls.cert_file:
            path = tls.cert_file
            made.load_cert_chain(tls.cert_file, tls.key_file or None, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _unreadable(tls, path, error) from error
    return made


def pem(tls: Tls) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return authorities, private key and certificates as gRPC wants them; None for what is not given.

    The authorities that this machine trusts are given, too, where they are in one file: gRPC would take its own.

    Raises:
        ConfigError: a file that cannot be read, or holds something else.
    """
    import ssl

    context(tls)  # gRPC would only write a line about what is wrong with them to stderr
    roots = tls.ca_file or ssl.get_default_verify_paths().cafile
    key = tls.key_file or tls.cert_file
    return (
        Path(roots).read_bytes() if roots else None,
        Path(key).read_bytes() if key else None,
        Path(tls.cert_file).read_bytes() if tls.cert_file else None,
    )


_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", re.I)
_WHY = re.compile(r"(?:certificate verify failed|CERTIFICATE_VERIFY_FAILED): ([^(\])]+)")
_PLAIN = re.compile(
    r"WRONG_VERSION_NUMBER|wrong version number|record layer failure|packet length too long", re.IGNORECASE
)
_WANTS_ONE = re.compile(
    r"CERTIFICATE_REQUIRED|certificate required|No required SSL certificate|HANDSHAKE_FAILURE|handshake failure|"
    r"alert bad certificate|BAD_CERTIFICATE|alert unknown ca|UNKNOWN_CA",
    re.IGNORECASE,
)
_TO_TLS = re.compile(r"plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server", re.IGNORECASE)


def trouble(complaint: str) -> str:
    """Return what a library's or server's complaint about TLS means and what to do about it; "" for anything else."""
    if _UNTRUSTED.search(complaint):
        found = _WHY.search(complaint)
        why = found.group(1).strip().rstrip(".") if found else ""
        if "mismatch" in why.lower():
            return f"its certificate is not for this name: {why}"
        named = f" ({why})" if why else ""
        return (
            f"its certificate is not to be trusted here{named}; where an authority of your own made it, give the "
            f"certificate of that: ca_file, or {CA_FILE}"
        )
    if _PLAIN.search(complaint):
        return "what answers there speaks no TLS; use http:// or grpc:// for it"
    if _WANTS_ONE.search(complaint):
        return f"the server takes no client without a certificate that it trusts; give cert_file, or {CERT_FILE}"
    if _TO_TLS.search(complaint):
        return "what answers there speaks TLS; use https:// for it"
    return ""


def _no_password() -> str:
    raise ValueError("the private key is encrypted, and nobody is there to be asked for its password")


def _unreadable(tls: Tls, path: str, error: Exception) -> ConfigError:
    which = "ca_file" if path == tls.ca_file else "cert_file"
    said = getattr(error, "strerror", None) or str(error)
    if getattr(error, "library", None) or "PEM" in said or "X509" in said:  # of OpenSSL, which names its own functions
        said = "no certificates in PEM" if which == "ca_file" else f"no certificate in PEM with the key for it ({said})"
    return ConfigError(f"tls.{which}: {path}: {said}")
