"""Completions of lines by a small and by a larger language model, with what the small one knew while it answered.

The models are those of ``examples/codecomplete``; they answer in the engine that serves them. What the edge's last
layer holds over an answer is read in a second pass over prompt and answer: built graphs give logits alone, so the last
norm's output is made one more output here. Kept below ``out/bench`` while the code that makes it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer  # type: ignore[import-untyped, unused-ignore]

from benchmarks.compiler.case import case_directory
from benchmarks.compiler.cases import once
from examples.tiny_llama import data
from penstock.generation.values import GenerationRequest
from penstock.policy.text_answers import normalised
from penstock.runtime.generation import GenerationOptions, load
from penstock.runtime.generation.decoder_file import DecoderFile, read, read_config

PROMPTS = 4_400
MODELS = Path(__file__).resolve().parents[2] / "examples" / "codecomplete" / "models"
EDGE, CLOUD = "edge-int4", "cloud-int4"
_STOP = "\n"
_SLOTS = 16
_HIDDEN = "hidden_states"

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completions:
    """What was answered to each of N prompts.

    Attributes:
        probabilities: of the edge's tokens, the one that ended the answer among them.
        logits: float32 [N, V] of the edge's token with the least probability.
        features: float32 [N, F], the edge's last hidden states over an answer: their mean, and the last.
        edge: ids of answers, equal where the texts are the same.
        cloud: the same.
        labels: the same, of as many tokens of the line in the file.
    """

    probabilities: tuple[Floats, ...]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    edge: Integers
    cloud: Integers
    labels: Integers


def completions(root: Path, most: int, prompts: int = PROMPTS) -> Completions:
    """Ask both models for at most so many tokens of a line, or read what they said before."""
    models = [MODELS / name / file for name in (EDGE, CLOUD) for file in ("model.onnx", "model.onnx.data")]
    made_of = [Path(__file__), Path(data.__file__), *models]
    kept = case_directory(root, "completions", made_of) / f"{most}-{prompts}.npz"
    once(kept, lambda: np.savez_compressed(kept, allow_pickle=False, **_asked(most, prompts)))
    with np.load(kept) as file:
        found = {name: file[name] for name in file.files}
    probabilities = np.split(found.pop("probabilities"), np.cumsum(found.pop("tokens"))[:-1])
    return Completions(probabilities=tuple(probabilities), **found)


def _asked(most: int, prompts: int) -> dict[str, NDArray[Any]]:
    rows = list(data.completions(prompts, 0))
    edge, cloud = (_answers(MODELS / name, [row["prompt"] for row in rows], most) for name in (EDGE, CLOUD))
    tokenizer = Tokenizer.from_file(str(MODELS / EDGE / "tokenizer.json"))
    right = [tokenizer.decode(tokenizer.encode(f" {row['answer']}{_STOP}").ids[:most]) for row in rows]
    known: dict[str, int] = {}
    ids = [
        np.array([known.setdefault(normalised(text, "whitespace"), len(known)) for text in texts], np.int64)
        for texts in ([one.text for one in edge], [one.text for one in cloud], right)
    ]
    seen = _Seeing(MODELS / EDGE)
    hidden, logits = zip(*(seen.over(one) for one in edge), strict=True)
    return {
        "probabilities": np.concatenate([one.probabilities for one in edge]),
        "tokens": np.array([len(one.tokens) for one in edge], np.int64),
        "logits": np.stack(logits),
        "features": np.stack(hidden),
        **dict(zip(("edge", "cloud", "labels"), ids, strict=True)),
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Answer:
    """An answer: its text, its tokens (the one that ended it among them), and their probabilities."""

    prompt: Sequence[int]
    text: str
    tokens: Sequence[int]
    probabilities: Floats


def _answers(directory: Path, prompts: Sequence[str], most: int) -> list[_Answer]:
    """Let a model complete lines greedily, many at a time."""
    engine = load("onnxruntime", directory, GenerationOptions(slots=_SLOTS))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    asked = [row.ids for row in tokenizer.encode_batch(list(prompts))]
    tokens: list[list[int]] = [[] for _ in asked]
    logprobs: list[list[float]] = [[] for _ in asked]
    waiting = list(range(len(asked)))[::-1]
    while waiting or engine.running:
        while waiting and engine.running < _SLOTS:
            number = waiting.pop()
            engine.admit(GenerationRequest(id=str(number), prompt_ids=tuple(asked[number]), max_new_tokens=most))
        for said in engine.step():
            number = int(said.request)
            tokens[number].append(said.token)
            logprobs[number].append(said.logprob)
            if said.finish is None and _STOP in tokenizer.decode(tokens[number]):
                engine.cancel(said.request)
    engine.close()
    texts = [tokenizer.decode(row).split(_STOP)[0] for row in tokens]
    return [
        _Answer(prompt=prompt, text=text, tokens=row, probabilities=np.exp(np.array(found)))
        for prompt, text, row, found in zip(asked, texts, tokens, logprobs, strict=True)
    ]


class _Seeing:
    """A built model with its last hidden states as an output."""

    def __init__(self, directory: Path) -> None:
        self._file = read(directory, read_config(directory))
        model = onnx.load(str(self._file.path))
        (last,) = (node for node in model.graph.node if self._file.logits_name in node.output)
        (norm,) = (node for node in model.graph.node if last.input[0] in node.output)
        norm.output[0] = last.input[0] = _HIDDEN
        model.graph.output.append(onnx.helper.make_tensor_value_info(_HIDDEN, onnx.TensorProto.FLOAT, None))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def over(self, answer: _Answer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and last of the states from which an answer's tokens were drawn, and the logits of the token with
        the least probability.
        """
        ids = np.array([[*answer.prompt, *answer.tokens[:-1]]], np.int64)
        given = {self._file.ids_name: ids, self._file.mask_name: np.ones_like(ids), **_nothing_past(self._file)}
        hidden, logits = self._session.run([_HIDDEN, self._file.logits_name], given)
        drawn = slice(len(answer.prompt) - 1, None)
        states, weakest = hidden[0, drawn], int(np.argmin(answer.probabilities))
        return np.concatenate([states.mean(axis=0), states[-1]]), logits[0, drawn][weakest]


def _nothing_past(file: DecoderFile) -> dict[str, NDArray[np.float32]]:
    empty = np.zeros((1, file.kv_heads, 0, file.head_size), np.float32)
    return {name % layer: empty for layer in range(file.layers) for name in file.past_names}
