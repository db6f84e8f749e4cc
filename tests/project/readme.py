"""Reads the commands out of README.md and makes a script of them, so that a test can run what a reader would type.

A fenced ``console`` or ``bash`` block holds commands (in ``console`` those after ``$ ``; the rest is output), a
``python`` block a program. They run in order, in one directory. A command that ends in ``&`` is a server: the script
goes on when its log says that it is ready. A block that is better run elsewhere says so on the line before its fence:
``<!-- tested by tests/examples/test_demo.py -->``; that file must then contain each of its commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?:<!-- tested by (?P<where>\S+) -->[ ]*\n)?^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```[ ]*$", re.M | re.S
)
_COMMANDS = ("console", "bash", "sh")
_PREAMBLE = """\
set -euo pipefail
servers=()
trap 'kill "${servers[@]}" 2>/dev/null || true; wait' EXIT
serve() { # serve COMMAND...: start it, and go on when it says that it is ready
    local log="server-${#servers[@]}.log"
    "$@" >"$log" 2>&1 &
    servers+=($!)
    for _ in $(seq 1000); do
        grep -qw ready "$log" && return 0
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    echo "not ready: $*" >&2
    cat "$log" >&2
    return 1
}
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what is in it, and the test that runs it when it is not the walk-through."""

    language: str
    text: str
    tested_by: str

    @property
    def commands(self) -> tuple[str, ...]:
        """Command lines, continued lines joined; a ``python`` block has none."""
        if self.language not in _COMMANDS:
            return ()
        joined = re.sub(r"\\\n(> )?\s*", "", self.text)
        lines = [line.strip() for line in joined.splitlines()]
        if self.language == "console":
            lines = [line[2:].strip() for line in lines if line.startswith("$ ")]
        return tuple(re.sub(r"\s+#\s.*$", "", line) for line in lines if line and not line.startswith("#"))


def blocks(markdown: str) -> list[Block]:
    """Blocks with something to run, in order."""
    found = (Block(m["language"], m["body"], m["where"] or "") for m in _FENCE.finditer(markdown))
    return [block for block in found if block.language in (*_COMMANDS, "python")]


def script(walk: Iterable[Block]) -> str:
    """A bash script that runs the blocks and stops at the first failure."""
    lines = [_PREAMBLE]
    for block in walk:
        if block.language == "python":
            lines.append(f"python - <<'PYTHON'\n{block.text}PYTHON")
        for command in block.commands:
            shown = command.replace("'", "'\\''")
            lines.append(f"echo '$ {shown}'")
            lines.append(f"serve {command.removesuffix('&').strip()}" if command.endswith("&") else command)
    return "\n".join(lines) + "\n"
