"""Debian's docker-registry (distribution 2.8): a registry that others wrote, without a list of referrers.

Started on a free port of loopback for the tests that need it. With it, where asked for, a token service as registries
of the public have one: it takes a password or nobody, and signs tokens that the registry verifies.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.waiting import PATIENCE_S, wait_until

_SERVICE, _ISSUER = "registry.test", "tokens.test"


@dataclass
class TokenService:
    """Gives tokens: to anybody for pulling what is public, to its one user for everything.

    Attributes:
        asked: query and credential of each request.
        ended: so many of the next tokens are over already.
    """

    user: str = "acme"
    password: str = "s3cret"
    public: tuple[str, ...] = ()
    asked: list[tuple[dict[str, list[str]], str]] = field(default_factory=list)
    ended: int = 0
    url: str = ""
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def write_certificate(self, file: Path) -> None:
        """Write what the registry verifies tokens with."""
        file.write_bytes(self._certificate().public_bytes(serialization.Encoding.PEM))

    def answer(self, query: dict[str, list[str]], authorization: str) -> tuple[int, dict[str, object]]:
        self.asked.append((query, authorization))
        expected = f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"
        if authorization and authorization != expected:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}
        access: list[dict[str, object]] = []
        for scope in query.get("scope", []):
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            may = actions.split(",") if authorization else ["pull"] if name in self.public else []
            access.append({"type": kind, "name": name, "actions": [each for each in actions.split(",") if each in may]})
        return 200, {"token": self._token(access), "expires_in": 300}

    def _token(self, access: list[dict[str, object]]) -> str:
        now = int(time.time())
        shift = 0
        if self.ended:
            self.ended, shift = self.ended - 1, -3600
        chain = [base64.b64encode(self._certificate().public_bytes(serialization.Encoding.DER)).decode()]
        head = {"typ": "JWT", "alg": "ES256", "x5c": chain}
        claims = {
            "iss": _ISSUER, "sub": self.user, "aud": _SERVICE, "iat": now + shift, "nbf": now + shift - 10,
            "exp": now + shift + 300, "jti": str(now), "access": access,
        }  # fmt: skip
        signed = f"{_coded(json.dumps(head).encode())}.{_coded(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_coded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _certificate(self) -> x509.Certificate:
        if not hasattr(self, "_made"):
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _ISSUER)])
            now = datetime.now(UTC)
            self._made = (
                x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
                .not_valid_before(now - timedelta(days=1))
                .not_valid_after(now + timedelta(days=1))
                .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
                .sign(self._key, hashes.SHA256())
            )
        return self._made


@contextlib.contextmanager
def token_service(service: TokenService) -> Iterator[TokenService]:
    """Serve tokens on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            status, document = service.answer(query, self.headers.get("Authorization") or "")
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def docker_registry(directory: Path, tokens: TokenService | None = None, *, prefix: str = "/") -> Iterator[str]:
    """Run docker-registry with its data in ``directory`` and its API below ``prefix``; the URL of its host."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of a test", "prefix": prefix},
    }
    if tokens is not None:
        bundle = directory / "tokens.pem"
        tokens.write_certificate(bundle)
        of_tokens = {"realm": tokens.url, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": str(bundle)}
        config["auth"] = {"token": of_tokens}
    file = directory / "registry.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(file)], stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until("docker-registry", lambda: _answers(f"{url}{prefix}v2/"))
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
