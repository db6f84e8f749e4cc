"""What a client of a registry sends to prove who it is: a token of its own, a password, or a token of a token service.

A registry that refuses a request names in its challenge who gives tokens for it, and for what (RFC 6750; "Token
Authentication" of the distribution project). Decides what to send, and which service to ask; sends nothing. The secret
goes to the registry itself or to the service that it named, never in the clear where the registry is asked over TLS,
and never because of what a server said that the registry redirects to.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from penstock.errors import Unauthenticated
from penstock.registry.address import http_parts

_MAX_CHALLENGE_CHARS = 8192
_LEAST_LIFE_S = 60.0  # of a token, whatever its service says, by the specification
_MARGIN_S = 10.0  # a token is renewed this long before its end: a chunk takes its time to arrive
_MAX_GRANTS = 256
_WORD = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([A-Za-z][\w-]*)')
_REPOSITORY = re.compile(r".*?/v2/(.+?)/(?:manifests|blobs|tags|referrers)/")
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Who gives tokens, and for what."""

    realm: str
    service: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsePassword:
    """The registry itself takes user and password; :meth:`Authorization.header` gives them from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to a token service: its URL, and the credential that goes there."""

    url: str
    authorization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    challenge: Challenge
    token: str
    expires_at: float


class _Granted(msgspec.Struct, frozen=True):
    """What a token service answers; it may say more than this."""

    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Authorization:
    """What is sent to one registry. Times are those of one monotonic clock."""

    def __init__(self, *, user: str, secret: str, is_tls: bool) -> None:
        """
        Args:
            user: whose password ``secret`` is; "" for a bearer token, or for nobody at all.
            is_tls: whether the registry is asked over TLS.
        """
        self._user, self._secret, self._is_tls = user, secret, is_tls
        self._speaks_basic = False
        self._grants: dict[tuple[str, bool], _Grant] = {}

    def header(self, method: str, path: str) -> str:
        """Return the value of ``Authorization`` for a request; "" for none."""
        grant = self._grants.get(_purpose(method, path))
        if grant is not None:
            return f"Bearer {grant.token}"
        if self._user:
            return self._basic() if self._speaks_basic else ""
        return f"Bearer {self._secret}" if self._secret else ""

    def outdated(self, method: str, path: str, now: float) -> Challenge | None:
        """Return the challenge to answer again before a request is sent, since the token for it is about to end."""
        grant = self._grants.get(_purpose(method, path))
        return grant.challenge if grant is not None and now >= grant.expires_at else None

    def answer_to(self, values: Sequence[str]) -> Challenge | UsePassword | None:
        """Decide how to go on after a refusal with these ``WWW-Authenticate`` values; None where nothing would help."""
        found = parse_challenges(values)
        bearer = found.get("bearer", {})
        if bearer.get("realm"):
            return Challenge(realm=bearer["realm"], service=bearer.get("service", ""), scope=bearer.get("scope", ""))
        if "basic" in found and self._user and not self._speaks_basic:
            self._speaks_basic = True
            return UsePassword()
        return None

    def ask(self, challenge: Challenge) -> Ask:
        """Return the question that answers a challenge.

        Raises:
            Unauthenticated: the realm is no address that may be asked.
        """
        parts = http_parts(challenge.realm)
        if parts is None or parts.username is not None:
            raise Unauthenticated(f"the registry names {challenge.realm[:200]!r} as its token service; no such address")
        if self._is_tls and parts.scheme != "https":
            raise Unauthenticated(
                f"the registry is asked over TLS and names a token service without, {challenge.realm[:200]!r}; "
                "it was not asked"
            )
        wanted = [("service", challenge.service)] if challenge.service else []
        wanted += [("scope", scope) for scope in challenge.scope.split()]
        wanted += [("account", self._user), ("client_id", "penstock")] if self._user else []
        query = "&".join(filter(None, (parts.query, urllib.parse.urlencode(wanted))))
        url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path or "/", query, ""))
        return Ask(url=url, authorization=self._basic() if self._user else "")

    def grant(self, method: str, path: str, challenge: Challenge, answer: bytes, now: float) -> None:
        """Keep what a token service gave.

        Raises:
            Unauthenticated: it gave no token.
        """
        try:
            given = msgspec.json.decode(answer, type=_Granted)
        except msgspec.MsgspecError as error:
            raise Unauthenticated(f"the token service {challenge.realm} sent no token: {error}") from error
        token = given.token or given.access_token
        if not _TOKEN.fullmatch(token):
            raise Unauthenticated(f"the token service {challenge.realm} sent no token")
        if len(self._grants) >= _MAX_GRANTS:
            self._grants.clear()
        life_s = max(given.expires_in or 0.0, _LEAST_LIFE_S)
        self._grants[_purpose(method, path)] = _Grant(
            challenge=challenge, token=token, expires_at=now + life_s - _MARGIN_S
        )

    def _basic(self) -> str:
        return f"Basic {base64.b64encode(f'{self._user}:{self._secret}'.encode()).decode()}"


def parse_challenges(values: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the parameters of each scheme that ``WWW-Authenticate`` names, all in lower case but for the values."""
    found: dict[str, dict[str, str]] = {}
    for value in values:
        scheme = ""
        for match in _WORD.finditer(value[:_MAX_CHALLENGE_CHARS]):
            name, quoted, plain, word = match.groups()
            if word is not None:
                scheme = word.lower()
                found.setdefault(scheme, {})
            elif scheme:
                text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                found[scheme].setdefault(name.lower(), text)
    return found


def _purpose(method: str, path: str) -> tuple[str, bool]:
    """Return what a token is for: a repository, and whether it is written to."""
    match = _REPOSITORY.match(path)
    return match[1] if match else "", method not in ("GET", "HEAD")
