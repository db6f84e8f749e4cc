"""A built language model, asked through the engine that serves it, or in a toolchain: likelihoods, answers and speed.

Owns which of the two is asked: the serving engine (``compiler.generation.serving_engine``) wherever it can run the
model here, since what is certified has to be what is served; else the toolchain, with the files that go to and come
from ``compiler/runners/genai_score.py``, whose docstring defines each quantity. What the figures mean is
``compiler.generation.compare``.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.generation import serving_engine
from compiler.generation.serving_engine import Answer, Asked
from compiler.recipe.generation_section import Generate
from penstock import toolchain
from penstock.artifact.blobs import disk_errors
from penstock.errors import CompileError, ConfigError, InvalidInput
from penstock.process import machine

RUNNER = Path(__file__).parents[1] / "runners" / "genai_score.py"
CONFIG_FILE = "genai_config.json"

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[float, str], None]

SPEED_CHILD = "compiler.generation.speed_child"
_TURNS, _TURN_TOKENS = 40, 32
_LEAST_TURNS, _TURNS_BUDGET_S = 8, 10.0  # fewer have no interval at 99%
_LONGEST_WINDOW = 1024
_MAX_NEW_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A built model that can be asked.

    Attributes:
        directory: what ``compiler.passes.genai`` wrote.
        toolchain: whose engine runs it where the one that serves it is not installed.
        timeout_s: of one call.
        in_toolchain: whether it is asked there in any case, to compare the two.
    """

    directory: Path
    toolchain: str = "optimum"
    timeout_s: float = 7200.0
    in_toolchain: bool = False

    @property
    def engine(self) -> str:
        """Name the engine that is asked, with its version; a toolchain by its own name.

        Raises:
            CompileError: not a directory for onnxruntime-genai.
        """
        return serving_engine.engine_of(self.directory) if self.is_served else f"toolchain {self.toolchain}"

    @property
    def is_served(self) -> bool:
        """Say whether the engine that serves it is asked.

        Raises:
            CompileError: not a directory for onnxruntime-genai.
        """
        return not self.in_toolchain and serving_engine.engine_of(self.directory) != ""

    @property
    def context_length(self) -> int:
        """Read from its configuration how many tokens prompt and answer may have together.

        Raises:
            CompileError: not a directory for onnxruntime-genai.
        """
        try:
            config = json.loads((self.directory / CONFIG_FILE).read_text(encoding="utf-8"))
            return int(config["model"]["context_length"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompileError(
                f"{self.directory} is not a model for onnxruntime-genai: {CONFIG_FILE}: {error}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Likelihoods:
    """How likely a model finds the tokens of some texts: one entry a scored token [T].

    Attributes:
        tokens: the tokens themselves.
        log_likelihood: natural logarithm of the probability of each.
        top1: the likeliest token in its place.
        text: number of the text that it belongs to.
    """

    tokens: Integers
    log_likelihood: Floats
    top1: Integers
    text: Integers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What a model answered: one entry a prompt.

    Attributes:
        texts: the answers.
        prompt_ids: the prompts' tokens.
        token_ids: the answers' tokens.
        probabilities: of each token of an answer.
        margins: by which each token leads the next likely one, in probability.
    """

    texts: tuple[str, ...]
    prompt_ids: tuple[Integers, ...]
    token_ids: tuple[Integers, ...]
    probabilities: tuple[Floats, ...]
    margins: tuple[Floats, ...]


class Speed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast a model answers on this machine, one prompt at a time.

    Attributes:
        first_token_ms: least, for a prompt of ``prompt_tokens``.
        tokens_per_s: most, after the first.
        load_bytes: by how much the process grew when the model was loaded.
        peak_bytes: of the whole process.
    """

    prompt_tokens: int
    new_tokens: int
    first_token_ms: float
    tokens_per_s: float
    load_s: float
    load_bytes: int
    peak_bytes: int
    engine: str


def likelihoods(
    model: BuiltModel,
    texts: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Likelihoods:
    """Compute log-probabilities of the tokens of ``texts``, by sliding windows where they are longer than ``window``.

    Args:
        window: tokens; by default the model's context, 1024 at most.
        stride: tokens from 1 to window - 1; by default half a window.

    Raises:
        ConfigError: window or stride do not fit the model. InvalidInput: no text has two tokens. CompileError,
        MissingToolchain: from the toolchain.
    """
    if not texts:
        raise InvalidInput("texts: none given; perplexity needs some", field="data.source")
    context = model.context_length
    window = min(context, _LONGEST_WINDOW) if window is None else window
    if not 2 <= window <= context:
        raise ConfigError(f"window: {window} tokens; expected 2 to the model's context, {context}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride < window:
        raise ConfigError(f"stride: {stride} tokens; expected 1 to window - 1, {window - 1}")
    if model.is_served:
        with _loaded(model) as asked:
            arrays = asked.likelihoods(texts, window=window, stride=stride, progress=progress or _unwatched)
    else:
        with _scratch() as scratch:
            lines = _lines(scratch / "texts.jsonl", texts)
            task = {"kind": "likelihood", "texts": lines, "window": window, "stride": stride}
            arrays = _asked(model, task, scratch, progress)
    if not np.isfinite(arrays["log_likelihood"]).all():
        raise CompileError(f"{model.directory.name}: its logits hold NaN or infinite values for some tokens")
    return Likelihoods(**arrays)


def answers(
    model: BuiltModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    settings: Generate,
    *,
    progress: Progress | None = None,
) -> Answers:
    """Ask for the model's answers: to texts that its own tokenizer splits, or to token ids.

    Raises:
        ConfigError: settings out of range. CompileError: a prompt that is too long for the model (named by its number).
        MissingToolchain: from the toolchain.
    """
    if not prompts:
        raise InvalidInput("prompts: none given", field="data.source")
    if not 1 <= settings.max_new_tokens <= _MAX_NEW_TOKENS:
        raise ConfigError(f"max_new_tokens: {settings.max_new_tokens}; expected 1 to {_MAX_NEW_TOKENS}")
    if any(not stop for stop in settings.stop):
        raise ConfigError("stop: an empty string ends every answer before it begins")
    if model.is_served:
        with _loaded(model) as asked:
            return _columns(asked.answers(prompts, settings, progress=progress or _unwatched))
    with _scratch() as scratch:
        lines = prompts if isinstance(prompts[0], str) else [[int(token) for token in row] for row in prompts]
        task = {"kind": "generate", "prompts": _lines(scratch / "prompts.jsonl", lines)} | msgspec.to_builtins(settings)
        arrays = _asked(model, task, scratch, progress)
    offsets = arrays["offsets"]
    return Answers(
        texts=tuple(part.tobytes().decode("utf-8") for part in _cut(arrays["texts"], arrays["text_offsets"])),
        prompt_ids=_cut(arrays["prompt_ids"], arrays["prompt_offsets"]),
        token_ids=_cut(arrays["token_ids"], offsets),
        probabilities=_cut(arrays["probabilities"], offsets),
        margins=_cut(arrays["margins"], offsets),
    )


def speed(
    model: BuiltModel,
    *,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    rounds: int = 50,
    progress: Progress | None = None,
) -> Speed:
    """Measure first-token latency, tokens a second and memory; prompt and answer shrink to fit a small context.

    Raises:
        CompileError, MissingToolchain: from the toolchain.
    """
    prompt_tokens, new_tokens = _fitting(model, prompt_tokens, new_tokens)
    work = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    if model.is_served:
        job = {"model": model.directory.absolute(), "memory_bytes": machine.first_run_bytes(), **work}
        result = toolchain.call_here(SPEED_CHILD, job, progress=progress, timeout_s=model.timeout_s)
        facts, engine = result, model.engine
    else:
        result = _call(model, {"kind": "speed", **work}, progress)
        facts, engine = result["tasks"][0], result["engine"]
    return Speed(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        first_token_ms=1e3 * facts["first_token_s"],
        tokens_per_s=facts["tokens_per_s"],
        load_s=result["load_s"],
        load_bytes=result["load_bytes"],
        peak_bytes=result["peak_bytes"],
        engine=engine,
    )


def in_turns(model: BuiltModel, against: BuiltModel, *, progress: Progress | None = None) -> tuple[Floats, Floats]:
    """Time two models in one process, a round each in turns; both are in memory at once.

    Returns:
        seconds a token [R] of the model, and of the other one in the same rounds.

    Raises:
        CompileError, MissingToolchain: from the toolchain.
    """
    prompt_tokens, new_tokens = _fitting(model, _TURN_TOKENS, _TURN_TOKENS)
    if model.is_served and against.is_served:
        return _turns(model, against, prompt_tokens, new_tokens, progress or _unwatched)
    task = {
        "kind": "turns",
        "against": str(against.directory.absolute()),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "rounds": _TURNS,
    }
    facts = _call(model, task, progress)["tasks"][0]
    return np.array(facts["seconds"]), np.array(facts["against"])


def _turns(
    model: BuiltModel, against: BuiltModel, prompt_tokens: int, new_tokens: int, progress: Progress
) -> tuple[Floats, Floats]:
    """Time both in this process, every second round the other way round; the first round allocates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with _loaded(model) as ours, _loaded(against) as theirs:
        for one in (ours, theirs):
            one.round(prompt_tokens, new_tokens, 0)
        ends_at = time.perf_counter() + _TURNS_BUDGET_S
        for done in range(1, _TURNS + 1):
            if done > _LEAST_TURNS and time.perf_counter() > ends_at:
                break
            progress(done / _TURNS, "turns")
            both = ((ours, seconds[0]), (theirs, seconds[1]))
            for one, timed in both if done % 2 else reversed(both):
                timed.append(one.round(prompt_tokens, new_tokens, done)[1])
    return np.array(seconds[0]), np.array(seconds[1])


def _loaded(model: BuiltModel) -> Asked:
    return Asked(model.directory, timeout_s=model.timeout_s)


def _columns(said: Sequence[Answer]) -> Answers:
    return Answers(
        texts=tuple(one.text for one in said),
        prompt_ids=tuple(np.array(one.prompt_ids, np.int64) for one in said),
        token_ids=tuple(np.array(one.token_ids, np.int64) for one in said),
        probabilities=tuple(np.array(one.probabilities, np.float64) for one in said),
        margins=tuple(np.array(one.margins, np.float64) for one in said),
    )


def _unwatched(share: float, note: str) -> None:
    """Take progress that nobody watches."""


def _fitting(model: BuiltModel, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    half = max(1, model.context_length // 2)
    return min(prompt_tokens, half), max(2, min(new_tokens, half))


@contextmanager
def _scratch() -> Iterator[Path]:
    with disk_errors("making a directory for a toolchain"):
        directory = tempfile.TemporaryDirectory(prefix="penstock-score-")
    with directory as name:
        yield Path(name)


def _asked(model: BuiltModel, task: dict[str, Any], scratch: Path, progress: Progress | None) -> dict[str, Any]:
    out = scratch / "out.npz"
    _call(model, task | {"out": str(out)}, progress)
    with np.load(out, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _call(model: BuiltModel, task: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
    job = {"model": model.directory.absolute(), "tasks": [task]}
    return toolchain.call(model.toolchain, RUNNER, job, progress=progress, timeout_s=model.timeout_s)


def _lines(path: Path, rows: Iterable[Any]) -> str:
    with disk_errors(f"writing {path}"):
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return str(path)


def _cut(flat: NDArray[Any], offsets: Integers) -> tuple[NDArray[Any], ...]:
    return tuple(flat[start:end] for start, end in itertools.pairwise(offsets))
