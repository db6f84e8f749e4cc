"""Who a client proves to be by its certificate. It goes where the ``Authorization`` header goes, and is none.

What a client writes is a plain ``str``; only a transport that has verified a certificate makes the other kind.
"""

from __future__ import annotations

from collections.abc import Iterable

_MAX_NAMES = 64


class PeerCertificate(str):
    """The names that a verified certificate holds.

    Attributes:
        names: ``DNS:``, ``URI:`` and ``EMAIL:`` of its subject alternative names, then ``CN:`` of its subject.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> PeerCertificate:
        """Make one; of a certificate with very many names the first count."""
        found = tuple(names)[:_MAX_NAMES]
        made = cls("certificate " + ", ".join(found))
        made.names = found
        return made


def credential_of(authorization: str, peer: PeerCertificate | None) -> str:
    """Return what a caller is known by: what it says itself, or its certificate."""
    return authorization or peer or ""
