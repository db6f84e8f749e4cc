"""A built model, asked through the engine that serves it: what is certified is what is served.

Owns how texts become tokens, tokens become requests, and what engines say becomes figures; the tokenizer, the engine
and what makes text of tokens are those of a device. ``compiler/runners/genai_score.py`` says the same of models that
only onnxruntime-genai runs where it is not installed here, and defines each quantity. Many prompts are in the engine at
once, as many as it has slots where it serves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from compiler.recipe.generation_section import Generate
from penstock.errors import ArtifactError, CompileError, InvalidInput
from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.generation.choices import options_of
from penstock.generation.tokenizer import Tokenizer
from penstock.generation.values import GenerationRequest, SampledToken, Sampling
from penstock.hosting.generation.settings import GenerationSettings
from penstock.runtime import generation
from penstock.runtime.generation import ReadingEngine
from penstock.runtime.generation.decoder_file import CONFIG_FILE, read_config
from penstock.runtime.generation.suited import choose

Progress = Callable[[float, str], None]
Round = tuple[float, float]
"""Seconds to the first token, and for each token after it."""

_LIBRARIES: Mapping[str, str] = {"onnxruntime": "onnxruntime", "onnxruntime-genai": "onnxruntime_genai"}
_SPEED_SEED = 0
_IN_SLOTS = " in slots"
SCORES_NONE = (
    "options are scored by the engine that runs models in slots, on a processor, and this one is run by another; leave "
    "the choices out, or take a model of an architecture that slots hold"
)
_CPU = "cpu"


def engine_of(directory: Path) -> str:
    """Name what serves a built model and is installed here, with its version; "" where nothing is.

    Raises:
        CompileError: not a directory for onnxruntime-genai.
    """
    if provider_of(directory) != _CPU:
        return ""
    try:
        name = choose(directory)
    except ArtifactError as error:
        raise CompileError(f"{directory} is not a model for onnxruntime-genai: {error.message}") from error
    if find_spec(_LIBRARIES[name]) is None:
        return ""
    return f"{name} {version(name)}" + (_IN_SLOTS if name == "onnxruntime" else "")


def scores_options(directory: Path) -> bool:
    """Say whether the engine that serves a built model is here, and scores options as whole answers.

    Raises:
        CompileError: not a directory for onnxruntime-genai.
    """
    return engine_of(directory).endswith(_IN_SLOTS)


def provider_of(directory: Path) -> str:
    """Return the provider that a built model was made for.

    Raises:
        CompileError: not a directory for onnxruntime-genai.
    """
    try:
        decoder = read_config(directory)["model"].get("decoder", {})
    except ArtifactError as error:
        raise CompileError(
            f"{directory} is not a model for onnxruntime-genai: {CONFIG_FILE}: {error.message}"
        ) from error
    listed = decoder.get("session_options", {}).get("provider_options") or [{_CPU: {}}]
    return str(next(iter(listed[0]))).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model answered to one prompt; ``compiler.generation.built_model.Answers`` says what each is."""

    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    margins: tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class _Unfinished:
    """An answer in the making."""

    request: GenerationRequest
    text: AnswerText
    shown: list[str] = field(default_factory=list)
    said: list[SampledToken] = field(default_factory=list)

    def answer(self) -> Answer:
        probabilities = [math.exp(each.logprob) for each in self.said]
        leads = [math.exp(first) - math.exp(second) for (_, first), (_, second) in (each.top for each in self.said)]
        return Answer(
            text="".join(self.shown),
            prompt_ids=self.request.prompt_ids,
            token_ids=tuple(each.token for each in self.said),
            probabilities=tuple(probabilities),
            margins=tuple(leads),
        )


class Asked:
    """One built model, loaded to be asked; a context manager that gives its memory back."""

    def __init__(self, directory: Path, *, timeout_s: float = math.inf) -> None:
        """Load the model with what a server has by default, and one thread.

        Raises:
            CompileError: not a model, or one that its engine cannot run. MissingExtra: a library is not installed.
        """
        self._name, self._timeout_s = directory.name, timeout_s
        self._ends_at = time.monotonic() + timeout_s
        try:
            self._tokenizer = _tokenizer(directory)
            loaded = generation.load("genai", directory, GenerationSettings().options(_CPU))
        except ArtifactError as error:
            raise CompileError(f"{directory.name}: {error.message}") from error
        self._engine = cast(ReadingEngine, loaded)  # both engines that suit a variant read

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    @property
    def context_tokens(self) -> int:
        return self._engine.facts.context_tokens

    def likelihoods(
        self, texts: Sequence[str], *, window: int, stride: int, progress: Progress
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Read texts by sliding windows; return columns of ``compiler.generation.built_model.Likelihoods``.

        Raises:
            CompileError: no text has two tokens, or it took longer than the limit.
        """
        columns: dict[str, list[Any]] = {"tokens": [], "log_likelihood": [], "top1": [], "text": []}
        for row, text in enumerate(texts):
            progress(row / len(texts), "likelihood")
            tokens = self._tokenizer.encode(text) if text else []
            for begin, first, end in windows(len(tokens), window, stride):
                self._check_time()
                found = self._engine.read(tokens[begin:end])
                new = slice(first - begin - 1, None)  # entry i is of token i + 1
                columns["tokens"].append(tokens[first:end])
                columns["log_likelihood"].append(found.log_likelihood[new])
                columns["top1"].append(found.likeliest[new])
                columns["text"].append(np.full(end - first, row))
        if not columns["tokens"]:
            raise CompileError("texts: none has two tokens or more; there is nothing to predict")
        kinds = {"log_likelihood": np.float64}
        return {name: np.concatenate(parts).astype(kinds.get(name, np.int64)) for name, parts in columns.items()}

    def answers(
        self, prompts: Sequence[str | Sequence[int]], settings: Generate, *, progress: Progress
    ) -> list[Answer]:
        """Answer prompts, as many at once as there are slots, and in the order that they are given in.

        Raises:
            CompileError: a prompt without tokens, or one that is too long, named by its number; or it took longer than
                the limit.
        """
        return [
            each.answer()
            for each in self._finished(
                [self._unfinished(row, prompt, settings) for row, prompt in enumerate(prompts)], progress
            )
        ]

    def chosen(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]], *, stop: tuple[str, ...], progress: Progress
    ) -> list[tuple[str, tuple[float, ...]]]:
        """Let the model choose among the options of each prompt, scored as whole answers, as a server lets it.

        Returns:
            the chosen option as the text of an answer, and the log-probability of each option, for every prompt.

        Raises:
            CompileError: as :meth:`answers`; options that cannot be scored, or an engine that scores none.
        """
        if not self._engine.facts.scores_options:
            raise CompileError(f"{self._name}: {SCORES_NONE}")
        asked = [
            self._choosing(row, prompt, texts, stop)
            for row, (prompt, texts) in enumerate(zip(prompts, options, strict=True))
        ]
        return [("".join(each.shown), each.said[-1].options) for each in self._finished(asked, progress)]

    def _finished(self, everything: Sequence[_Unfinished], progress: Progress) -> Sequence[_Unfinished]:
        """Ask everything, as many at once as there are slots."""
        waiting = list(everything)
        done, running = 0, {each.request.id: each for each in waiting}
        waiting.reverse()
        while waiting or self._engine.running:
            self._check_time()
            while waiting and self._engine.running < self._engine.facts.slots:
                self._engine.admit(waiting.pop().request)
            for sampled in self._engine.step():
                done += self._take(running[sampled.request], sampled)
            progress(done / len(everything), "generate")
        return everything

    def round(self, prompt_tokens: int, new_tokens: int, number: int) -> Round:
        """Time one answer to random tokens; every number has a prompt of its own, of which no slot holds a beginning.

        Raises:
            CompileError: it took longer than the limit.
        """
        self._check_time()
        vocabulary = self._engine.facts.vocabulary
        prompt = np.random.default_rng(_SPEED_SEED + number).integers(0, vocabulary, prompt_tokens)
        prompt[0] = number % vocabulary
        request = GenerationRequest(
            id="round", prompt_ids=tuple(prompt.tolist()), max_new_tokens=new_tokens, ignore_end=True
        )
        began = time.perf_counter()
        self._engine.admit(request)
        while not self._engine.step():
            pass
        first = time.perf_counter()
        while self._engine.running:
            self._engine.step()
        return first - began, (time.perf_counter() - first) / (new_tokens - 1)

    def _choosing(self, row: int, prompt: str, texts: Sequence[str], stop: tuple[str, ...]) -> _Unfinished:
        try:
            options = options_of(texts, self._tokenizer, stop=stop, end_ids=self._engine.facts.end_ids)
        except InvalidInput as error:
            raise CompileError(f"prompt {row}: {error.message}") from error
        request = GenerationRequest(
            id=str(row),
            prompt_ids=self._prompt_ids(row, prompt, options.longest),
            max_new_tokens=options.longest,
            stop=stop,
            options=options,
        )
        return _Unfinished(request=request, text=AnswerText(request, self._tokenizer.pieces))

    def _prompt_ids(self, row: int, prompt: str | Sequence[int], new_tokens: int) -> tuple[int, ...]:
        ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise CompileError(f"prompt {row} has no tokens; a prompt needs at least one")
        if len(ids) + new_tokens > self.context_tokens:
            raise CompileError(
                f"prompt {row} has {len(ids)} tokens, and with {new_tokens} for the answer that is more "
                f"than the model's context of {self.context_tokens}; shorten it, or allow fewer tokens"
            )
        return tuple(ids)

    def _unfinished(self, row: int, prompt: str | Sequence[int], settings: Generate) -> _Unfinished:
        request = GenerationRequest(
            id=str(row),
            prompt_ids=self._prompt_ids(row, prompt, settings.max_new_tokens),
            max_new_tokens=settings.max_new_tokens,
            sampling=_sampling(settings, row),
            stop=settings.stop,
            top_logprobs=2,
        )
        return _Unfinished(request=request, text=AnswerText(request, self._tokenizer.pieces))

    def _take(self, answer: _Unfinished, sampled: SampledToken) -> bool:
        """Add one token to its answer; say whether that ended it."""
        event = answer.text.add(sampled)
        if event is None:
            return False
        answer.said.append(sampled)
        answer.shown.append(event.text)
        if event.finish is not None and sampled.finish is None:
            self._engine.cancel(sampled.request)
        return event.finish is not None

    def _check_time(self) -> None:
        if time.monotonic() > self._ends_at:
            raise CompileError(f"{self._name}: asking it did not finish within {self._timeout_s:g} s and was stopped")


def windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (begin, first scored, end) of each window over ``length`` tokens, as ``compiler/runners/genai_score.py``
    defines them.
    """
    found, first, begin = [], 1, 0
    while first < length:
        end = min(begin + window, length)
        found.append((begin, first, end))
        first, begin = end, begin + stride
    return found


def _sampling(settings: Generate, row: int) -> Sampling:
    drawn = settings.sampling
    if drawn is None:
        return Sampling()
    return Sampling(temperature=drawn.temperature, top_k=drawn.top_k, top_p=drawn.top_p, seed=drawn.seed + row)


def _tokenizer(directory: Path) -> Tokenizer:
    names = [name for name in tokenizer.FILES if (directory / name).is_file()]
    return tokenizer.load({name: (directory / name).read_bytes() for name in names})
