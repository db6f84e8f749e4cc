"""The servers that one would take instead of Penstock's core: what each is installed from, started by and measured at.

A peer's program, ``serve_NAME.py``, runs in an environment of its own and imports nothing of ours. It gets one JSON
argument: ``directory`` (empty), ``models`` (``name``, ``path``, ``max_batch``), ``http_port``, ``grpc_port`` and
``metrics_port``; and it serves the models until it is terminated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server of others.

    Attributes:
        name: of the peer, of its program and of the file with its requirements.
        package: whose version is written into the results.
        rows: row of the benchmark -> protocol that it speaks, ``http`` or ``grpc``.
    """

    name: str
    package: str
    rows: Mapping[str, str]

    @property
    def program(self) -> Path:
        return HERE / f"serve_{self.name}.py"

    @property
    def requirements(self) -> Sequence[str]:
        lines = (HERE / f"{self.name}.txt").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def version(self) -> str:
        """The pinned version of ``package``."""
        pins = dict(line.split("==", 1) for line in self.requirements)
        return pins[self.package]


PEERS: Sequence[Peer] = (
    Peer(name="triton", package="nvidia-pytriton", rows={"triton-http": "http", "triton-grpc": "grpc"}),
    Peer(name="mlserver", package="mlserver", rows={"mlserver-grpc": "grpc"}),  # over HTTP it takes only JSON tensors
)
PEER_ROWS = frozenset(row for peer in PEERS for row in peer.rows)
