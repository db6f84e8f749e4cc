"""TLS for tests: authorities, certificates, and proxies that end TLS: one in a few lines of Python, and nginx.

Certificates are made when they are needed, with keys of an elliptic curve, which takes milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from penstock.wire.tls import Tls
from tests.waiting import wait_until

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate and its key, in files."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Who signs certificates, and what was signed: a server at loopback, and a client.

    Attributes:
        ca: its own certificate.
        key: its own private key.
    """

    ca: Path
    key: Path
    server: Identity
    client: Identity

    def sign(self, directory: Path, name: str, *, uri: str = "") -> Identity:
        """Make one more certificate at loopback, for a name and a URI."""
        ca_key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        ca = x509.load_pem_x509_certificate(self.ca.read_bytes())
        return _signed(directory, name, name, ca, ca_key, uri=uri)

    @property
    def tls(self) -> Tls:
        return Tls(ca_file=str(self.ca))

    @property
    def tls_with_client(self) -> Tls:
        return Tls(ca_file=str(self.ca), cert_file=str(self.client.cert), key_file=str(self.client.key))

    def server_context(self, *, wants_clients: bool = False) -> ssl.SSLContext:
        """What a server wraps its sockets with; HTTP/2 for who asks for it, as gRPC does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.cert, self.server.key)
        context.set_alpn_protocols(["h2", "http/1.1"])
        if wants_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context


def make_authority(directory: Path, name: str = "test") -> Authority:
    """Make an authority and what it signs."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate(f"{name} authority", ca_key, None, ca_key)
    made = {role: _signed(directory, role, f"{name} {role}", ca, ca_key) for role in ("server", "client")}
    path = directory / "ca.pem"
    path.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    _write_key(directory / "ca.key", ca_key)
    return Authority(ca=path, key=directory / "ca.key", server=made["server"], client=made["client"])


def _signed(
    directory: Path, file: str, name: str, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, *, uri: str = ""
) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    made = Identity(cert=directory / f"{file}.pem", key=directory / f"{file}.key")
    made.cert.write_bytes(_certificate(name, key, ca, ca_key, uri=uri).public_bytes(serialization.Encoding.PEM))
    _write_key(made.key, key)
    return made


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    by: x509.Certificate | None,
    by_key: ec.EllipticCurvePrivateKey,
    *,
    uri: str = "",
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        loopback,
        x509.DNSName("core.test"),  # as tests.forward_proxy has it
        *([x509.UniformResourceIdentifier(uri)] if uri else []),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), critical=False)
    )
    if by is None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs only
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(by_key, hashes.SHA256())


@asynccontextmanager
async def ends_tls(context: ssl.SSLContext, backend: str) -> AsyncIterator[str]:
    """Pass what comes over TLS on to ``host:port``, byte for byte; yields its own ``host:port``."""
    host, _, port = backend.rpartition(":")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        ways = [asyncio.create_task(_pipe(reader, inner_writer)), asyncio.create_task(_pipe(inner_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)  # TLS knows no half-closed connection
        finally:
            tasks.discard(task)
            for way in ways:
                way.cancel()
            for each in (writer, inner_writer):
                each.transport.abort()  # at once: a proxy that goes away waits for nobody's goodbye

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        bound, number = server.sockets[0].getsockname()[:2]
        yield f"{bound}:{number}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # connections that were aborted are closed in the loop's next rounds
            await asyncio.sleep(0)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


_PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"
_NGINX = """
{user} daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log warn;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  {server}
}}
"""


def _server_of_the_page(places: Mapping[str, str]) -> str:
    """The server that docs/operations.md has, with places of the test's own, and what it says of a path."""
    text = _PAGE.read_text(encoding="utf-8")
    (server,) = re.findall(r"^```nginx\n(.*?)^```$", text, re.M | re.S)
    (inner,) = re.findall(r"`(location /inner/ .*?)`", text)
    made = server.replace("location / {", f"{inner}\n    location / {{")
    for written, place in places.items():
        assert written in made, f"{_PAGE.name} has no {written}"
        made = made.replace(written, place)
    return str(made)


@contextmanager
def nginx(directory: Path, authority: Authority, port: int, *, http: str, grpc: str) -> Iterator[str]:
    """Run nginx in front of a core's two addresses as docs/operations.md has it; yields ``host:port``.

    Skips where nginx is not installed.
    """
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed (Debian's package nginx)")
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "nginx.conf"
    places = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/nginx/core.pem": str(authority.server.cert),
        "/etc/nginx/core.key": str(authority.server.key),
        "/etc/nginx/devices-ca.pem": str(authority.ca),
        "127.0.0.1:8000": urlsplit(http).netloc,
        "127.0.0.1:8001": urlsplit(grpc).netloc,
    }
    config.write_text(
        _NGINX.format(
            user="user root root;" if os.geteuid() == 0 else "",  # for its temporary files below our directory
            directory=directory,
            server=_server_of_the_page(places),
        )
    )
    process = subprocess.Popen([program, "-p", str(directory), "-c", str(config), "-e", str(directory / "error.log")])
    try:
        wait_until("nginx to listen", lambda: (directory / "pid").exists() or process.poll() is not None)
        assert process.poll() is None, (directory / "error.log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
