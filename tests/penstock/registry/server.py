"""A small registry whose faults a test chooses."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.artifact.blobs import digest_of
from penstock.artifact.manifests import Descriptor

DATA = bytes(range(256)) * 4096
DIGEST = digest_of(DATA)
BLOB = Descriptor(media_type="application/octet-stream", digest=DIGEST, size=len(DATA))


@dataclass
class Registry:
    """A small registry whose faults a test chooses."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)  # bytes of each response or request until the line breaks
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answered before anything else
    statuses_of_blobs: list[int] = field(default_factory=list)  # answered to requests for blobs, without a body
    stall_after: list[int] = field(default_factory=list)  # bytes of each blob's body until nothing more comes
    ignores_ranges: bool = False
    shifts_ranges: list[int] = field(default_factory=list)  # bytes by which the next ranges are off
    is_endless: bool = False  # blobs go on and on
    closes_idle: bool = False  # every connection, after each response, without saying so
    forgets_uploads: bool = False  # whenever it is asked how far one is
    forgets_tags: bool = False  # every manifest that is pushed
    redirect_to: str = ""
    url: str = ""
    connections: set[object] = field(default_factory=set)
    credentials: list[str | None] = field(default_factory=list)
    stalls: threading.Event = field(default_factory=threading.Event)  # set when a body has stalled
    goes_on: threading.Event = field(default_factory=threading.Event)  # ends a stall; set when the server stops


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.registry.cut_after and body:
            self.wfile.write(body[: self.registry.cut_after.pop(0)])
            self.close_connection = True
        elif self.registry.stall_after and body:
            self.wfile.write(body[: self.registry.stall_after.pop(0)])
            self.registry.stalls.set()
            self.registry.goes_on.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(body)
            self.close_connection = self.close_connection or self.registry.closes_idle

    def handle_any(self) -> None:
        registry = self.registry
        registry.log.append(f"{self.command} {self.path} {self.headers.get('Range') or ''}".strip())
        registry.connections.add(self.client_address)
        registry.credentials.append(self.headers.get("Authorization"))
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PATCH" and registry.cut_after:
            received = self.rfile.read(registry.cut_after.pop(0))
            registry.uploads["u"] += received
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if registry.statuses:
            status, headers = registry.statuses.pop(0)
            error = json.dumps({"errors": [{"code": "SOME_CODE", "message": "because"}]}).encode()
            self.answer(status, error, **headers)
            return
        path, _, query = self.path.partition("?")
        if match := re.fullmatch(r"/v2/m/blobs/(sha256:.*)", path):
            self.blob(match[1])
        elif path == "/v2/m/blobs/uploads/":
            registry.uploads["u"] = b""
            self.answer(202, Location="/upload/u?state=x")
        elif path == "/upload/u":
            self.upload(body, query)
        elif registry.forgets_tags and self.command == "PUT" and "/manifests/" in path:
            self.answer(201)
        else:
            self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815  # names that http.server looks for

    def blob(self, digest: str) -> None:
        registry = self.registry
        if registry.redirect_to:
            self.answer(307, Location=registry.redirect_to + self.path)
            return
        if digest not in registry.blobs:
            self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}')
            return
        data = registry.blobs[digest]
        if registry.statuses_of_blobs:
            self.answer(registry.statuses_of_blobs.pop(0))
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if registry.is_endless:
            self.endless()
        elif asked is None or registry.ignores_ranges:
            self.answer(200, data)
        elif int(asked[1]) >= len(data):
            self.answer(416)
        else:
            begin = int(asked[1]) + (registry.shifts_ranges.pop(0) if registry.shifts_ranges else 0)
            self.answer(206, data[begin:], Content_Range=f"bytes {begin}-{len(data) - 1}/{len(data)}")

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has had enough
            while True:
                self.wfile.write(bytes(65536))

    def upload(self, body: bytes, query: str) -> None:
        registry = self.registry
        if registry.forgets_uploads and self.command == "GET":
            registry.uploads.pop("u", None)
        have = registry.uploads.get("u")
        if have is None:
            self.answer(404)
        elif self.command == "GET":
            self.answer(204, Location="/upload/u?state=y", Range=f"0-{max(0, len(have) - 1)}")
        elif self.command == "PATCH":
            assert (self.headers["Content-Range"] or "").startswith(f"{len(have)}-")
            registry.uploads["u"] = have + body
            self.answer(202, Location="/upload/u?state=z", Range=f"0-{len(have) + len(body) - 1}")
        else:
            values = urllib.parse.parse_qs(query)
            digest = values["digest"][0]
            assert "state" in values, "the upload's own parameters must come back"
            if digest_of(have) != digest:
                self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}')
                return
            registry.blobs[digest] = registry.uploads.pop("u")
            self.answer(201)


def serve(registry: Registry, tls: ssl.SSLContext | None = None) -> Callable[[], None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"registry": registry}))
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    registry.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        registry.goes_on.set()
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
