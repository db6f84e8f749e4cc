"""Which conversations go through an HTTP proxy, by the variables that curl and others read.

One rule for all of them: HTTP, gRPC, pushes and pulls. Decides from an address and an environment; opens nothing.
What stays on this machine (loopback, unix sockets) goes through none.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import InvalidInput

_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "http": ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}
_WITHOUT_TLS: Mapping[str, str] = {"grpc": "http", "grpcs": "https"}
_MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        userinfo: user and password as the variable has them, percent-encoded; "" without.
    """

    host: str
    port: int
    userinfo: str = ""

    @property
    def address(self) -> str:
        """Return ``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Return what a request has to carry for the proxy, and for it alone."""
        if not self.userinfo:
            return {}
        user, _, password = self.userinfo.partition(":")
        secret = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
        return {"Proxy-Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}

    @property
    def url(self) -> str:
        """Return the URL, with user and password."""
        return f"http://{self.userinfo}@{self.address}" if self.userinfo else f"http://{self.address}"


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for one server, or None where it is reached directly.

    Args:
        scheme: ``http`` or ``grpc`` (``http_proxy`` counts), ``https`` or ``grpcs`` (``https_proxy`` counts); in both
            cases then ``all_proxy``. Names in small letters go first; an empty value means no proxy.

    Raises:
        InvalidInput: the variable that counts holds something else than ``http://host:port``.
    """
    if is_this_machine(host):
        return None
    for name in _VARIABLES[_WITHOUT_TLS.get(scheme, scheme)]:
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in environment:
            continue  # in a CGI program a client sets it, by a header "Proxy"
        if (value := environment.get(name)) is not None:
            is_direct = not value.strip() or _is_excepted(host, port, environment)
            return None if is_direct else _parsed(name, value.strip())
    return None


def is_this_machine(host: str) -> bool:
    """Say whether an address is one of loopback, by its name or number."""
    name = host.lower().rstrip(".")
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _is_excepted(host: str, port: int, environment: Mapping[str, str]) -> bool:
    listed = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    return any(_covers(entry, host.lower().rstrip("."), port) for entry in re.split(r"[,\s]+", listed)[:_MAX_ENTRIES])


def _covers(entry: str, host: str, port: int) -> bool:
    """Say whether an entry of ``no_proxy`` names a host: by ``*``, name, domain, number or network, with or without
    a port."""
    entry = entry.lower()
    name, colon, digits = entry.rpartition(":")
    if colon and digits.isascii() and digits.isdigit() and (":" not in name or name.endswith("]")):
        if int(digits) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*.").strip(".")
    address = _address(host)
    if entry == "*" or not entry:
        return entry == "*"
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    return host == entry or host.endswith(f".{entry}")


def _parsed(name: str, value: str) -> Proxy:
    try:
        parts = urllib.parse.urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or 80
    except ValueError:
        parts, port = urllib.parse.SplitResult("", "", "", "", ""), 0
    if parts.scheme != "http" or not parts.hostname or not port:
        shown = re.sub(r"//[^@/]*@", "//...@", value)  # may hold a password
        raise InvalidInput(
            f"{name}: {shown!r} is not a proxy that can be used; give http://host:port, or name the server in no_proxy",
            field=name,
        )
    return Proxy(host=parts.hostname, port=port, userinfo=parts.netloc.rpartition("@")[0])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
