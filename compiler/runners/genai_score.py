"""Toolchain program: what a language model for onnxruntime-genai says of texts and prompts, and how fast.

Job: ``model`` (a directory with genai_config.json) and ``tasks``, done in order, each with a ``kind``:

``likelihood``: the log-probability of every token of some texts but each text's first, given the tokens before it.
    ``texts`` (a .jsonl file of strings), ``window``, ``stride``, ``out``. Texts longer than ``window`` tokens are read
    by sliding windows: the first window scores its tokens 1 to window - 1; each next one begins ``stride`` tokens later
    and scores only the tokens that no window before it has scored, so that each token is scored exactly once and, past
    the first window, has at least window - stride tokens of context. Perplexity is exp(-mean log-probability). Nothing
    is put in front of a text that the model's own tokenizer does not put there. Writes ``tokens`` int64 [T] (the scored
    ones), ``log_likelihood`` float64 [T], ``top1`` int64 [T] (the likeliest token in each place), ``text`` int64 [T]
    (which text).
``generate``: answers to prompts, one at a time. ``prompts`` (.jsonl of strings, or of lists of token ids),
    ``max_new_tokens``, ``stop`` (strings), ``sampling`` (null is greedy; else temperature, top_k, top_p, seed),
    ``out``. Writes ``token_ids`` int64, ``probabilities`` float64 (of the chosen token, softmax of the raw logits
    whatever the sampling), ``margins`` float64 (largest minus second largest probability), each flat over all answers,
    with ``offsets`` int64 [N + 1]; ``prompt_ids`` and ``prompt_offsets``; ``texts`` uint8, the answers in UTF-8 without
    what stopped them, with ``text_offsets``. Tokens include the one that ended the answer: stopping is part of it.
``speed``: ``prompt_tokens``, ``new_tokens``, ``rounds`` (at most; fewer when a slow model has taken its time). Least
    seconds to the first token, and most tokens a second after it, at batch 1: whatever else the machine does can only
    slow a round.
``turns``: the same work by this model and another one, ``against`` (a directory; it may be this one again), one round
    each in turns and every second round the other way round. Seconds a token after the first, by round.

The engine is not thread-safe: everything runs on the main thread. Only calls that onnxruntime-genai 0.15 and 0.18 share
are used (Generator; not Engine, which was replaced between them). 0.15 dies of SIGFPE when it decodes no tokens.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from protocol import InputError, progress, serve

_MAX_LOGITS = 32 * 1024 * 1024  # elements held at once: 128 MiB in float32, whatever the window and the vocabulary
_KIB = 1024 if sys.platform != "darwin" else 1
_SPEED_SEED = 0
_SPEED_ROUNDS, _SPEED_BUDGET_S = 3, 5.0  # at least, whatever they take; no further round is begun after that long
_TURNS, _TURNS_BUDGET_S = 8, 10.0  # fewer have no interval at 99%


class Scored:
    """One loaded model."""

    def __init__(self, directory: Path) -> None:
        before, began = _resident_bytes(), time.perf_counter()
        config = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.context, self.vocabulary = int(config["context_length"]), int(config["vocab_size"])
        self.model = og.Model(str(directory))
        self.tokenizer = og.Tokenizer(self.model)
        self.end_tokens = frozenset(int(token) for token in self.tokenizer.eos_token_ids)
        self.load_s, self.load_bytes = time.perf_counter() - began, _resident_bytes() - before

    def generator(self, length: int, **search: Any) -> Any:
        """Make a generator for at most ``length`` tokens in all."""
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=length, **({"do_sample": False} | search))
        return og.Generator(self.model, params)

    def logits(self, generator: Any, tokens: np.ndarray) -> np.ndarray:
        """Append tokens; return float64 [len(tokens), vocabulary]."""
        generator.append_tokens(tokens.astype(np.int32))
        found = generator.get_output("logits")
        if found.shape[:2] != (1, len(tokens)):
            raise RuntimeError(f"logits are {list(found.shape)} for {len(tokens)} tokens: not one row for each")
        return found[0].astype(np.float64)

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(np.asarray(tokens, dtype=np.int32))) if tokens else ""


def score(job: dict[str, Any]) -> dict[str, Any]:
    """Load once, then do every task."""
    progress(0.0, "loading")
    scored = Scored(Path(job["model"]))
    tasks = job["tasks"]
    results = []
    for number, task in enumerate(tasks):
        kind = _KINDS[task["kind"]]
        results.append(kind(scored, task, _Part(number, len(tasks), task["kind"])))
    return {
        "tasks": results,
        "load_s": scored.load_s,
        "load_bytes": scored.load_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        "engine": f"onnxruntime-genai {og.__version__}",
    }


class _Part:
    """Progress of one task among several, said no more often than people can read."""

    def __init__(self, number: int, of: int, note: str) -> None:
        self._number, self._of, self._note, self._said_at = number, of, note, 0.0

    def __call__(self, share: float) -> None:
        if time.monotonic() - self._said_at > 0.2:
            self._said_at = time.monotonic()
            progress((self._number + share) / self._of, self._note)


def _likelihood(scored: Scored, task: dict[str, Any], part: _Part) -> dict[str, Any]:
    window, stride = int(task["window"]), int(task["stride"])
    if window > scored.context:
        raise InputError(f"window: {window} tokens, but the model's context is {scored.context}")
    columns: dict[str, list[np.ndarray]] = {"tokens": [], "log_likelihood": [], "top1": [], "text": []}
    texts = _read_lines(task["texts"])
    for row, text in enumerate(texts):
        part(row / len(texts))
        tokens = np.asarray(scored.tokenizer.encode(text), dtype=np.int64) if text else np.zeros(0, np.int64)
        for begin, first, end in windows(len(tokens), window, stride):
            found, likeliest = _of_window(scored, tokens[begin:end], first - begin)
            columns["tokens"].append(tokens[first:end])
            columns["log_likelihood"].append(found)
            columns["top1"].append(likeliest)
            columns["text"].append(np.full(end - first, row))
    if not columns["tokens"]:
        raise InputError("texts: none has two tokens or more; there is nothing to predict")
    kinds = {"log_likelihood": np.float64}
    arrays = {name: np.concatenate(parts).astype(kinds.get(name, np.int64)) for name, parts in columns.items()}
    np.savez(task["out"], **arrays)
    return {"tokens": len(arrays["tokens"])}


def windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (begin, first scored, end) of each window over ``length`` tokens; see this module's ``likelihood``."""
    found, first, begin = [], 1, 0
    while first < length:
        end = min(begin + window, length)
        found.append((begin, first, end))
        first, begin = end, begin + stride
    return found


def _of_window(scored: Scored, tokens: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probability and likeliest token for each of ``tokens[first:]``, in chunks of bounded memory."""
    generator = scored.generator(len(tokens))
    chunk = max(1, _MAX_LOGITS // scored.vocabulary)
    found, likeliest = [], []
    for start in range(0, len(tokens) - 1, chunk):
        stop = min(start + chunk, len(tokens) - 1)
        logits = scored.logits(generator, tokens[start:stop])
        used = slice(max(first - 1 - start, 0), None)  # row i predicts token i + 1
        targets, logits = tokens[start + 1 : stop + 1][used], logits[used]
        found.append(logits[np.arange(len(targets)), targets] - _log_sum_exp(logits))
        likeliest.append(logits.argmax(axis=1))
    return np.concatenate(found), np.concatenate(likeliest)


def _generate(scored: Scored, task: dict[str, Any], part: _Part) -> dict[str, Any]:
    prompts = _read_lines(task["prompts"])
    answers = []
    for row, prompt in enumerate(prompts):
        part(row / len(prompts))
        answers.append(_answer(scored, _prompt_ids(scored, prompt, row, task), row, task))
    texts = [answer["text"].encode() for answer in answers]
    flat = {
        name: np.concatenate([np.asarray(answer[name], dtype=dtype) for answer in answers])
        for name, dtype in (("token_ids", np.int64), ("probabilities", np.float64), ("margins", np.float64))
    }
    np.savez(
        task["out"],
        **flat,
        offsets=_offsets([len(answer["token_ids"]) for answer in answers]),
        prompt_ids=np.concatenate([answer["prompt_ids"] for answer in answers]),
        prompt_offsets=_offsets([len(answer["prompt_ids"]) for answer in answers]),
        texts=np.frombuffer(b"".join(texts), dtype=np.uint8),
        text_offsets=_offsets([len(text) for text in texts]),
    )
    ended = [answer["ended"] for answer in answers]
    return {
        "answers": len(answers),
        "tokens": len(flat["token_ids"]),
        "ended": {how: ended.count(how) for how in ("stop", "eos", "length")},
    }


def _prompt_ids(scored: Scored, prompt: str | list[int], row: int, task: dict[str, Any]) -> np.ndarray:
    tokens = np.asarray(scored.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, dtype=np.int64)
    if len(tokens) == 0:
        raise InputError(f"prompt {row} has no tokens; a prompt needs at least one")
    if len(tokens) + task["max_new_tokens"] > scored.context:
        raise InputError(
            f"prompt {row} has {len(tokens)} tokens, and with {task['max_new_tokens']} for the answer that is more "
            f"than the model's context of {scored.context}; shorten it, or allow fewer tokens"
        )
    return tokens


def _answer(scored: Scored, prompt: np.ndarray, row: int, task: dict[str, Any]) -> dict[str, Any]:
    sampling = task.get("sampling")
    search = {"repetition_penalty": 1.0, "min_length": 0}  # the model says what it says, whatever its config prefers
    if sampling:
        search |= {key: sampling[key] for key in ("temperature", "top_k", "top_p")}
        search |= {"do_sample": True, "random_seed": int(sampling["seed"]) + row}
    generator = scored.generator(len(prompt) + task["max_new_tokens"], **search)
    generator.append_tokens(prompt.astype(np.int32))
    ids: list[int] = []
    probabilities: list[float] = []
    margins: list[float] = []
    ended, text = "length", ""
    while len(ids) < task["max_new_tokens"]:
        logits = np.asarray(generator.get_logits(), dtype=np.float64).reshape(1, -1)
        weights = np.exp(logits - _log_sum_exp(logits)[:, None])[0]
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        second, largest = np.partition(weights, -2)[-2:]
        ids.append(token)
        probabilities.append(float(weights[token]))
        margins.append(float(largest - second))
        if token in scored.end_tokens:
            ended, text = "eos", scored.text(ids[:-1])
            break
        text = scored.text(ids)
        if cut := [at for at in (text.find(stop) for stop in task["stop"]) if at >= 0]:
            ended, text = "stop", text[: min(cut)]
            break
        if generator.is_done():
            break
    return {
        "prompt_ids": prompt, "token_ids": ids, "probabilities": probabilities, "margins": margins,
        "text": text, "ended": ended,
    }  # fmt: skip


def _speed(scored: Scored, task: dict[str, Any], part: _Part) -> dict[str, Any]:
    timed = []
    ends_at = time.perf_counter() + _SPEED_BUDGET_S
    for done in range(int(task["rounds"]) + 1):
        if done > _SPEED_ROUNDS and time.perf_counter() > ends_at:
            break
        part(done / (task["rounds"] + 1))
        timed.append(_round(scored, task))
    first_s, token_s = zip(*timed[1:], strict=True)  # the first round allocates
    return {"first_token_s": min(first_s), "tokens_per_s": 1 / min(token_s)}


def _turns(scored: Scored, task: dict[str, Any], part: _Part) -> dict[str, Any]:
    models = {"seconds": scored, "against": Scored(Path(task["against"]))}
    timed: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        _round(model, task)  # the first round allocates
    ends_at = time.perf_counter() + _TURNS_BUDGET_S
    for done in range(int(task["rounds"])):
        if done >= _TURNS and time.perf_counter() > ends_at:
            break
        part(done / task["rounds"])
        for name in models if done % 2 == 0 else reversed(models):
            timed[name].append(_round(models[name], task)[1])
    return timed


def _round(scored: Scored, task: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds to the first token, and for each token after it."""
    prompt_tokens, new_tokens = int(task["prompt_tokens"]), int(task["new_tokens"])
    if prompt_tokens + new_tokens > scored.context:
        raise InputError(f"speed: {prompt_tokens} + {new_tokens} tokens, but the context is {scored.context}")
    prompt = np.random.default_rng(_SPEED_SEED).integers(0, scored.vocabulary, prompt_tokens).astype(np.int32)
    # no end of text before min_length: every round does the same work
    generator = scored.generator(prompt_tokens + new_tokens, min_length=prompt_tokens + new_tokens)
    began = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    return first - began, (time.perf_counter() - first) / (new_tokens - 1)


_KINDS = {"likelihood": _likelihood, "generate": _generate, "speed": _speed, "turns": _turns}


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _read_lines(path: str) -> list[Any]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _resident_bytes() -> int:
    """Return the memory in use now, where the system says it; elsewhere the peak until now."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


if __name__ == "__main__":
    serve(score)
