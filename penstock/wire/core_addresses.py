"""Where a core is, in one value: it has an address for HTTP and one for gRPC, and whoever names it names one of them.

The other one is beside it: over TLS the same host and port, where a proxy tells the two apart; otherwise the next port,
as a core has them by default. Where that is not so, both are named, with a comma between them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.errors import InvalidInput
from penstock.wire.addresses import Target, parse_target

ENVIRONMENT = "PENSTOCK_CORE"
DEFAULT = "grpc://127.0.0.1:8001"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreAddresses:
    """What was said of where one core is.

    Attributes:
        named_http: None where only the other one was named.
        named_grpc: None where only the other one was named.
    """

    named_http: Target | None
    named_grpc: Target | None

    @property
    def http(self) -> Target:
        """Return the address for HTTP.

        Raises:
            InvalidInput: it was not named, and there is none beside the other one.
        """
        return self.named_http or _beside(self.named_grpc, -1)

    @property
    def grpc(self) -> Target:
        """Return the address for gRPC.

        Raises:
            InvalidInput: it was not named, and there is none beside the other one.
        """
        return self.named_grpc or _beside(self.named_http, +1)


def parse_core(text: str) -> CoreAddresses:
    """Read a core's address, or both of them.

    Raises:
        InvalidInput: none of the forms, or two of one kind.
    """
    targets = [parse_target(part.strip()) for part in text.split(",")]
    grpc = [target for target in targets if target.is_grpc]
    http = [target for target in targets if target.scheme in ("http", "https")]
    if not 1 <= len(targets) <= 2 or len(grpc) > 1 or len(http) > 1 or len(grpc) + len(http) != len(targets):
        raise InvalidInput(
            f"{text!r} is not the address of a core; give one, such as {DEFAULT} or https://core.example, or that of "
            "gRPC and that of HTTP with a comma between them",
            field="core",
        )
    return CoreAddresses(named_http=http[0] if http else None, named_grpc=grpc[0] if grpc else None)


def _beside(target: Target | None, step: int) -> Target:
    assert target is not None  # one of the two was named
    other = {"grpc": "http", "grpcs": "https", "http": "grpc", "https": "grpcs"}[target.scheme]
    port = target.port if target.is_secure else target.port + step
    if not 0 < port < 65536:
        raise InvalidInput(f"{target}: there is no port beside it; name both addresses of the core", field="core")
    return replace(target, scheme=other, port=port, path="")  # type: ignore[arg-type]  # a gRPC address has no path
