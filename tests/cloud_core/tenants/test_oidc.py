"""Tokens that another library signs, keys behind a real HTTP server, and what must not be taken for either."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from cloud_core.policy.admission import Tenant, hashed
from cloud_core.tenants.oidc import OidcIssuer
from cloud_core.tenants.settings import OidcSettings
from penstock import AsyncClient
from penstock.errors import PermissionDenied, Unauthenticated, Unavailable
from tests.cloud_core.rig import start_core
from tests.waiting import running, until

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # providers have it all the same
ISSUER, AUDIENCE = "https://idp.example/", "penstock"
RSA_KEY = RSAKey.generate_key(2048, {"kid": "r1", "use": "sig"})
EC_KEY = ECKey.generate_key("P-256", {"kid": "e1"})
ED_KEY = OKPKey.generate_key("Ed25519", {"kid": "d1"})
STRANGER = RSAKey.generate_key(2048, {"kid": "r1"})
ALGORITHMS = {"r1": "RS256", "e1": "ES256", "d1": "EdDSA"}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": now + 600,
        "iat": now,
        "tenant": "shop",
        "groups": ["apps"],
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def signed(key: Any, *, alg: str = "", kid: str | None = None, **changes: Any) -> str:
    header = {"alg": alg or ALGORITHMS[key.kid], "kid": key.kid if kid is None else kid}
    return jwt.encode(header, claims(**changes), key, algorithms=[header["alg"]])


def coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def by_hmac(secret: bytes) -> str:
    """Sign as an attacker would: joserfc refuses to."""
    said = ".".join((coded(b'{"alg":"HS256","kid":"r1"}'), coded(json.dumps(claims()).encode())))
    return f"{said}.{coded(hmac.digest(secret, said.encode(), 'sha256'))}"


class Provider:
    """Serves a set of keys, which may change, and counts how often it is asked."""

    def __init__(self) -> None:
        self.body, self.asked = key_set(RSA_KEY, EC_KEY, ED_KEY), 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805  # the library's own name
                self.asked += 1
                handler.send_response(200)
                handler.end_headers()
                handler.wfile.write(self.body)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys.json"


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def settings_of(jwks: str, **changes: Any) -> OidcSettings:
    values = {"algorithms": ("RS256", "ES256", "EdDSA"), "role_claim": "groups", "default_role": "",
              "roles": {"apps": "client", "ops": "admin"}, "leeway_s": 0.0, **changes}  # fmt: skip
    return OidcSettings(issuer=ISSUER, audience=AUDIENCE, jwks=jwks, **values)


def issuer_of(jwks: str, **changes: Any) -> OidcIssuer:
    now = asyncio.get_running_loop().time
    known = {"shop": Tenant(name="shop", models=("ml*",)), "ops": Tenant(name="ops", role="client")}
    return OidcIssuer(settings_of(jwks, **changes), now=now, wall_clock=time.time, known=known)


def ask(issuer: OidcIssuer, token: str) -> Tenant | None:
    return issuer.tenant_of(token, hashed(token))


async def test_tokens_of_all_kinds_of_keys_are_their_tenants(provider: Provider) -> None:
    issuer = issuer_of(provider.url)
    async with running(issuer.reader.run()):
        await until("the keys", lambda: issuer.reader.has_read)
        for key in (RSA_KEY, EC_KEY, ED_KEY):
            assert ask(issuer, signed(key)) == Tenant(name="shop", role="client", models=("ml*",))
        assert ask(issuer, signed(EC_KEY, tenant="ops", groups="ops apps")) == Tenant(name="ops", role="admin")
        assert ask(issuer, signed(EC_KEY, aud=["other", AUDIENCE])) is not None
    assert provider.asked == 1


async def test_what_is_forged_foreign_old_or_meant_for_others_is_nobody(provider: Provider) -> None:
    issuer = issuer_of(provider.url)
    good = signed(RSA_KEY)
    head, body, signature = good.split(".")
    other = coded(json.dumps(claims(tenant="ops", groups=["ops"])).encode())
    none = coded(b'{"alg":"none","kid":"r1"}')
    bad = {
        "another key under the same name": signed(STRANGER),
        "other claims under a good signature": f"{head}.{other}.{signature}",
        "no signature": f"{none}.{body}.",
        "a public key as the secret of HMAC": by_hmac(RSA_KEY.as_pem(private=False)),
        "another kind of key than the algorithm's": signed(EC_KEY, kid="r1"),
        "an algorithm that is not allowed": signed(RSA_KEY, alg="RS512"),
        "expired": signed(RSA_KEY, exp=int(time.time()) - 5),
        "not yet": signed(RSA_KEY, nbf=int(time.time()) + 500),
        "no end": signed(RSA_KEY, exp=None),
        "another issuer": signed(RSA_KEY, iss="https://idp.example"),
        "another audience": signed(RSA_KEY, aud="others"),
        "no audience": signed(RSA_KEY, aud=None),
        "a tenant that is not here": signed(RSA_KEY, tenant="payroll"),
        "no tenant": signed(RSA_KEY, tenant=None),
        "no role": signed(RSA_KEY, groups=["others"]),
        "half a token": good.rpartition(".")[0],
        "too long": good + "A" * 20_000,
        "no JSON": "e30.e30.e30",
        "nothing": "..",
        "not even ASCII": "\udcff.é.\x00",
    }
    async with running(issuer.reader.run()):
        await until("the keys", lambda: issuer.reader.has_read)
        assert {what: ask(issuer, token) for what, token in bad.items()} == dict.fromkeys(bad)
        assert ask(issuer, good) is not None


async def test_a_new_key_is_read_when_a_token_names_it_and_not_more_often_than_allowed(provider: Provider) -> None:
    issuer = issuer_of(provider.url, min_refresh_s=0.2)
    new = ECKey.generate_key("P-256", {"kid": "e2"})
    token = jwt.encode({"alg": "ES256", "kid": "e2"}, claims(), new, algorithms=["ES256"])
    async with running(issuer.reader.run()):
        await until("the keys", lambda: issuer.reader.has_read)
        old = signed(RSA_KEY)
        assert ask(issuer, old) is not None
        assert ask(issuer, token) is None  # the keys were read just now, and are what they are
        provider.body = key_set(new)
        asked = provider.asked

        def is_known() -> bool:
            try:
                return ask(issuer, token) is not None
            except Unavailable:  # being read
                return False

        await until("the new key", is_known)
        assert provider.asked == asked + 1
        assert ask(issuer, old) is None  # verified before, by a key that is gone


async def test_keys_that_cannot_be_read_leave_those_that_are_here(provider: Provider, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    issuer = issuer_of(str(file), min_refresh_s=0.1, refresh_s=1.0)
    async with running(issuer.reader.run()):
        with pytest.raises(Unavailable):
            ask(issuer, signed(RSA_KEY))
        file.write_bytes(key_set(RSA_KEY))
        await until("the keys", lambda: issuer.reader.has_read)
        for wrong in (
            b"",
            b"[]",
            b'{"keys": []}',
            b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "r1"}]}',
            RSA_KEY.as_pem(),
            b"x" * 2_000_000,
        ):
            with pytest.raises(Unavailable):
                issuer._take_keys(wrong)
        assert ask(issuer, signed(RSA_KEY)) is not None


async def test_a_core_takes_tokens_beside_its_own(tmp_path: Path, provider: Provider) -> None:
    oidc = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": provider.url, "role_claim": "groups",
            "roles": {"apps": "client"}, "default_role": ""}  # fmt: skip
    tenants = [{"name": "operators", "token": "admin-token-1"}, {"name": "shop", "models": ["faces"]}, {"name": "lab"}]
    x = np.ones((1, 4), np.float32)

    async def infer(target: str, token: str) -> None:
        async with AsyncClient(target, token=token) as client:
            await client.infer("mlp", x)

    async with await start_core(tmp_path, tenants=tenants, auth={"oidc": oidc}) as core:
        await until("the keys", lambda: provider.asked)
        for target in (f"http://127.0.0.1:{core.http_port}", f"grpc://127.0.0.1:{core.grpc_port}"):
            await infer(target, signed(RSA_KEY, tenant="lab"))
            await infer(target, "admin-token-1")
            with pytest.raises(PermissionDenied):
                await infer(target, signed(RSA_KEY))
            with pytest.raises(Unauthenticated):
                await infer(target, signed(STRANGER))
            with pytest.raises(Unauthenticated):
                await infer(target, signed(RSA_KEY, groups=[]))
        assert {tenant for tenant, _ in core.tenancy.usage.since_start} == {"operators", "lab"}  # type: ignore[union-attr]
