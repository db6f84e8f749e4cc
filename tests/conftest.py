"""Fixtures that integration tests share. Unit tests need none of them."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.toolchains import toolchain  # noqa: F401, a fixture


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a unix socket's name, which pytest's own tmp_path may not."""
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def digits_build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DigitsBuild:
    """The digits models, trained once (and kept for the next session while code and libraries stay the same)."""
    from examples.digits import train

    assert request.config.cache is not None
    models = request.config.cache.mkdir("digits-models")
    train.train(models)
    return DigitsBuild(directory=tmp_path_factory.mktemp("digits"), models=models)


@pytest.fixture
def core_factory(short_dir: Path) -> Iterator[Callable[..., CoreProcess]]:
    """``core_factory(config="", name="")`` starts a core; all are killed at the end of the test."""
    started: list[CoreProcess] = []

    def start(config: str = "", name: str = "c") -> CoreProcess:
        core = CoreProcess(directory=short_dir / name, config=config)
        started.append(core)
        core.start()
        return core

    yield start
    for core in started:
        core.kill()


@pytest.fixture
def core_process(core_factory: Callable[..., CoreProcess]) -> CoreProcess:
    """A core on free ports with an empty data directory."""
    return core_factory()


@pytest.fixture
def agent_factory(short_dir: Path) -> Iterator[Callable[..., AgentProcess]]:
    """``agent_factory(core, device_id="a1", config=..., arguments=())`` starts an agent; all are killed at the end."""
    started: list[AgentProcess] = []

    def start(
        core: CoreProcess, device_id: str = "a1", config: str = AGENT_CONFIG, arguments: tuple[str, ...] = ()
    ) -> AgentProcess:
        agent = AgentProcess(directory=short_dir, device_id=device_id, core=core, config=config, arguments=arguments)
        started.append(agent)
        agent.start()
        return agent

    yield start
    for agent in started:
        agent.kill()


@pytest.fixture
def agent_process(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild
) -> AgentProcess:
    """An agent that has committed digits:v1, which was pushed to ``core_process``."""
    core_process.push(digits_build.layout("v1"))
    agent = agent_factory(core_process)
    agent.wait_until_runs("digits", "v1")
    return agent
