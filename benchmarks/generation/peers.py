"""What others made, each in an environment of its own: its requirements, and where its program is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PEERS = Path(__file__).parent.parent / "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A package that is measured, or measures."""

    name: str

    @property
    def requirements(self) -> Sequence[str]:
        lines = (_PEERS / f"{self.name}.txt").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def version(self) -> str:
        """The pinned version of the package that gives it its name."""
        return dict(line.split("==", 1) for line in self.requirements)[self.name]


CTRANSLATE2 = Tool(name="ctranslate2")
AIPERF = Tool(name="aiperf")
TOOLS = (CTRANSLATE2, AIPERF)
PROGRAM = _PEERS / "generate_ctranslate2.py"
