"""vLLM as a managed server: the command, the environment and the limits that follow from a model's settings.

Whatever may be set wrong is refused before anything is started. The interpreter that runs it is somebody else's to
find: vLLM has an environment of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from penstock.errors import ConfigError
from penstock.generation.tokenizer import TokenizerFacts
from penstock.hosting.generation.generator import Measures
from penstock.hosting.generation.managed.generator import Limits, ManagedGenerator
from penstock.hosting.generation.managed.life import Program
from penstock.hosting.generation.managed.settings import VllmSettings
from penstock.hosting.generation.settings import RemoteSettings
from penstock.policy.retry import Backoff
from penstock.policy.worker_health import Restarts
from penstock.runtime.generation import EngineFacts

_MODULE = "vllm.entrypoints.openai.api_server"
_GRAMMARS = frozenset({"json_schema", "regex", "choice"})

_OURS = frozenset({
    "--model", "--served-model-name", "--uds", "--host", "--port", "--api-key", "--ssl-keyfile", "--ssl-certfile",
    "--dtype", "--max-model-len", "--max-num-seqs", "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp",
    "--data-parallel-size", "-dp", "--enforce-eager", "--kv-cache-memory-bytes", "--shutdown-timeout",
    "--generation-config", "--config", "--root-path",
})  # fmt: skip
"""Options that follow from our settings, or that would take the server away from us."""

_FIXED = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_NOT_PASSED_ON = ("PENSTOCK_", "PYTHON", "XDG_", "VIRTUAL_ENV")
_RETRY_S = 1.0
_SAYS_NOTHING = re.compile(r"root cause|EngineCore encountered an issue|FutureWarning")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedServers:
    """Models that servers of ours run.

    Attributes:
        settings: by model.
        interpreter: returns the Python that vLLM is installed for. Asked when a model is loaded; raises what is to be
            done where there is none.
        directory: for logs, compiled code and the servers' homes.
        environment: ours, of which they get what is no secret.
    """

    settings: Mapping[str, VllmSettings]
    interpreter: Callable[[], Path]
    directory: Path
    environment: Mapping[str, str]

    def generator(self, model: str, told: TokenizerFacts, measures: Measures | None = None) -> ManagedGenerator:
        """Make the generator of a model that has settings; nothing is started yet.

        Args:
            told: what the model's files say.

        Raises:
            ConfigError: settings that contradict each other, no such directory. MissingToolchain: no interpreter.
        """
        settings = self.settings[model]
        check(model, settings)
        context_tokens = settings.context_tokens or told.context_tokens
        if context_tokens is None:
            raise ConfigError(f"{model}: its files do not say how many tokens it can take; set context_tokens")
        facts = EngineFacts(
            context_tokens=context_tokens,
            vocabulary=told.vocabulary,
            slots=settings.max_sequences,
            end_ids=told.end_ids,
            kv_bytes_per_token=0,
            grammars=_GRAMMARS,
        )
        home = self.directory.absolute() / model
        program = Program(
            command=partial(command, settings, model, self.interpreter()),
            environment=environment(settings, self.environment, home),
            directory=home,
            log=home / "server.log",
            max_log_bytes=settings.max_log_bytes,
            says_nothing=_SAYS_NOTHING,
        )
        return ManagedGenerator(
            model,
            program=program,
            limits=limits_of(settings),
            remote=asking_of(settings),
            facts=facts,
            measures=measures,
        )


def limits_of(settings: VllmSettings) -> Limits:
    """Return how long it may take for what it does."""
    longest_s = max(settings.backoff_base_s, settings.backoff_max_s)
    backoff = Backoff(base_s=settings.backoff_base_s, max_s=longest_s)
    return Limits(
        start_timeout_s=settings.start_timeout_s,
        hang_s=settings.hang_s,
        exit_s=settings.exit_s,
        restarts=Restarts(
            limit=settings.max_restarts, steady_s=settings.steady_s, backoff=backoff, slow_s=settings.slow_restart_s
        ),
    )


def asking_of(settings: VllmSettings) -> RemoteSettings:
    """Return how it is asked. It has no limit of its own that we would not reach before."""
    return RemoteSettings(
        max_outstanding=settings.max_sequences + settings.max_waiting,
        start_timeout_s=settings.start_timeout_s,
        hang_s=settings.hang_s,
        retry_s=_RETRY_S,
        max_retry_s=_RETRY_S,
        idle_probe_s=settings.idle_probe_s,
        max_unread_events=settings.max_unread_events,
    )


def check(model: str, settings: VllmSettings) -> None:
    """Check what types cannot say.

    Raises:
        ConfigError: an argument or a variable that is ours to set, or a directory that is none of a model.
    """
    for argument in settings.arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name in _OURS:
            raise ConfigError(f"{model}: arguments: {name} follows from other settings, and cannot be given")
    for name in settings.environment:
        if name in _FIXED or name in ("HOME", "VLLM_CACHE_ROOT") or "=" in name:
            raise ConfigError(f"{model}: environment: {name} is set already, and cannot be given")
    if not (Path(settings.directory) / "config.json").is_file():
        raise ConfigError(
            f"{model}: {settings.directory} is no directory of a model: it has no config.json; "
            "vLLM reads what Hugging Face's libraries write, not the artifact's own files"
        )


def command(settings: VllmSettings, model: str, interpreter: Path, socket: Path) -> list[str]:
    """Return the command that starts it.

    It listens on a socket in a directory of ours, which nobody else can reach. Defaults of the model for sampling
    (``generation_config.json``) are not used: a request that names no ``top_k`` means none.
    """
    words = [
        str(interpreter), "-m", _MODULE,
        "--model", str(Path(settings.directory).absolute()),
        "--served-model-name", model,
        "--uds", str(socket),
        "--dtype", settings.dtype,
        "--max-num-seqs", str(settings.max_sequences),
        "--tensor-parallel-size", str(settings.tensor_parallel),
        "--pipeline-parallel-size", str(settings.pipeline_parallel),
        "--generation-config", "vllm",
        "--shutdown-timeout", str(round(settings.exit_s)),
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if settings.data_parallel > 1:
        words += ["--data-parallel-size", str(settings.data_parallel)]
    if settings.context_tokens:
        words += ["--max-model-len", str(settings.context_tokens)]
    if settings.kv_cache_bytes:
        words += ["--kv-cache-memory-bytes", str(settings.kv_cache_bytes)]
    if settings.enforce_eager:
        words.append("--enforce-eager")
    return [*words, *settings.arguments]


def environment(settings: VllmSettings, inherited: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return all that it gets: a home of its own, no network, no reports of its use, and no secrets of ours."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(_NOT_PASSED_ON)}
    return {**kept, **_FIXED, "HOME": str(home), "VLLM_CACHE_ROOT": str(home / "cache"), **settings.environment}
