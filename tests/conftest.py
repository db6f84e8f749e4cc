"""How the suite runs, and fixtures that integration tests share. Unit tests need none of them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.shared import kept_directory, one_at_a_time, run_directory
from tests.toolchains import toolchain  # noqa: F401, a fixture

# a busy machine is no defect; in CI the examples are the same each time, so that a commit passes or fails for itself
settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("suite")

LONGEST_FIRST = (
    "compiler/passes/test_vision_graphs.py",
    "compiler/generation/test_build.py",
    "compiler/distill/test_student.py",
    "contract/test_bad_input.py",
    "compiler/passes/test_node_cases.py",
    "integration/test_demo.py",
    "compiler/sources/test_torch_modules.py",
    "integration/test_real_accuracy.py",
    "edge_agent/test_agent.py",
    "compiler/distill/test_command.py",
    "integration/test_real_models.py",
    "integration/test_encoder_decoder.py",
    "integration/test_generation.py",
    "integration/test_choices.py",
    "integration/test_rollout_page.py",
    "examples/test_codecomplete.py",
    "compiler/passes/test_int8_qat.py",
    "compiler/sources/test_encoder_decoders.py",
    "cloud_core/serving/test_texts.py",
    "compiler/sources/test_huggingface.py",
    "compiler/distill/test_hugging_face.py",
    "simulation/test_fleet.py",
    "penstock/toolchain/test_install.py",
    "integration/test_kill.py",
    "edge_agent/test_kills.py",
    "compiler/generation/test_compile.py",
    "integration/test_readme.py",
    "compiler/pipeline/test_compilation.py",
    "compiler/distill/test_defer.py",
    "benchmarks/test_benchmarks.py",
    "compiler/generation/test_engine.py",
    "integration/test_log_readers.py",
    "integration/test_tenants.py",
    "compiler/pipeline/test_bad_models.py",
    "integration/test_copied_directory.py",
    "integration/test_clients_of_others.py",
    "integration/test_assignments.py",
    "contract/test_grpc_servers.py",
    "cloud_core/fleet/test_fleet_cli.py",
    "compiler/commands/test_compile.py",
)
"""Files of more than ten seconds of a processor: they go first, so that no worker begins one when others are done."""


def pytest_configure() -> None:
    # a worker of pytest-xdist is told a width for pytest's own lines, and commands that tests run would keep to it
    os.environ.pop("COLUMNS", None)
    # a shell that starts the run in the background has it ignore Ctrl-C, and programs that tests interrupt inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Start a worker more than there are processors: the longest tests wait for other processes and package indexes."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without Python's garbage collector, which later need not look at thousands of tests that stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. pytest-xdist gives a worker whole files (``--dist loadfile``), in this order."""
    here = Path(__file__).parent
    for place in LONGEST_FIRST:
        if not (here / place).exists():
            raise pytest.UsageError(f"LONGEST_FIRST in tests/conftest.py names {place}, which is not there")
    order = {here / place: number for number, place in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A TCP port of the loopback interface at which nobody listens, and nobody can while the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


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

    models = kept_directory(request.config, tmp_path_factory, "digits-models")
    with one_at_a_time(models):
        train.train(models)
    return DigitsBuild(directory=run_directory(tmp_path_factory, "digits"), models=models)


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
    core_process.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    return agent
