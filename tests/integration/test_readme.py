"""Every command of README.md, the tutorial and the SDK's page is run: in a walk-through here, or by a named test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.language import text_layout
from tests.processes import CoreProcess, DigitsBuild
from tests.project.readme import Block, blocks, script

ROOT = Path(__file__).resolve().parents[2]
README = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
TUTORIAL = blocks((ROOT / "docs" / "tutorial" / "first-cascade.md").read_text(encoding="utf-8"))
CALLS = ROOT / "docs" / "how-to" / "call-a-model.md"

EXAMPLE = """\
<!-- tested by tests/x.py -->
```bash
make demo   # first
make test
```

```console
$ penstock core serve &
$ penstock infer digits \\
>   --zeros
some output
```

```toml
[not]
run = true
```

```python
print("hello")
```
"""


def test_blocks_are_found_with_language_and_place() -> None:
    found = blocks(EXAMPLE)
    assert [(b.language, b.tested_by) for b in found] == [("bash", "tests/x.py"), ("console", ""), ("python", "")]
    assert found[0].commands == ("make demo", "make test")
    assert found[1].commands == ("penstock core serve &", "penstock infer digits --zeros")


def run_script(text: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", text],
        cwd=directory,
        env={**os.environ, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=250,
        check=False,
    )


def test_a_script_waits_for_servers_and_stops_at_the_first_failure(tmp_path: Path) -> None:
    server = tmp_path / "server.sh"
    server.write_text("echo ready\nsleep 60\n")
    text = script([Block("bash", f"bash {server} &\ngrep ready server-0.log\nfalse\ntouch too-far\n", "")])
    done = run_script(text, tmp_path)
    assert done.returncode != 0
    assert done.stdout.splitlines()[-2:] == ["ready", "$ false"]
    assert not (tmp_path / "too-far").exists()


def test_a_script_fails_when_a_server_does_not_start(tmp_path: Path) -> None:
    done = run_script(script([Block("bash", "ls nothing-here &\ntouch too-far\n", "")]), tmp_path)
    assert done.returncode != 0
    assert "not ready: ls nothing-here" in done.stdout
    assert not (tmp_path / "too-far").exists()


def test_a_python_block_is_run(tmp_path: Path) -> None:
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert run_script(script(blocks(EXAMPLE)[2:]), tmp_path, **env).stdout == "hello\n"


def test_readme_starts_with_demo_and_test() -> None:
    commands = [command for block in README for command in block.commands]
    assert commands[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("block", [b for b in README if b.tested_by], ids=lambda b: b.tested_by)
def test_a_block_that_is_tested_elsewhere_is(block: Block) -> None:
    path, _, function = block.tested_by.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not function or f"def {function}(" in text
    assert [command for command in block.commands if command not in text] == []


def test_readme_walk_through(short_dir: Path) -> None:
    walk = [block for block in README if not block.tested_by]
    assert walk, "README.md has no walk-through"
    for port in (8000, 8001):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which README.md uses, is taken on this machine")
    (short_dir / "examples").symlink_to(ROOT / "examples")
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(short_dir),
        "XDG_RUNTIME_DIR": str(short_dir),
        "XDG_DATA_HOME": str(short_dir),
        "PENSTOCK_AGENT_DATA_DIR": str(short_dir / "agent"),
        "PENSTOCK_AGENT_HEARTBEAT__INTERVAL_S": "0.2",
        "PENSTOCK_AGENT_HEARTBEAT__MAX_S": "0.2",
        "PENSTOCK_AGENT_UPDATE__PROBATION_S": "0.2",
    }
    done = run_script(script(walk), short_dir, **env)
    assert done.returncode == 0, done.stdout


def test_the_tutorial_types_what_the_walk_through_runs() -> None:
    walked = [b for b in README if not b.tested_by]
    runs = [command for b in walked for command in b.commands]
    typed = [command for b in TUTORIAL for command in b.commands]
    assert typed == runs
    assert [b.text for b in TUTORIAL if b.language == "python"] == [b.text for b in walked if b.language == "python"]


def test_examples_of_the_sdk_run(core_process: CoreProcess, digits_build: DigitsBuild, tmp_path: Path) -> None:
    core_process.push(digits_build.layout("v1"))
    core_process.push(text_layout(tmp_path).root)
    np.save(tmp_path / "digits.npy", digits_build.test_split()[0][:1])
    text = CALLS.read_text(encoding="utf-8")
    text = text.replace("grpc://127.0.0.1:8001", core_process.grpc_target)
    text = text.replace("http://127.0.0.1:8000", core_process.http_url)
    done = run_script(script(blocks(text)), tmp_path, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout
