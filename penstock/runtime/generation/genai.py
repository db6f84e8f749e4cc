"""onnxruntime-genai behind the port: one generator a request, which take turns in every step.

For models that slots cannot hold (``penstock.runtime.generation.slots``), and for GPUs. The only module that imports
onnxruntime-genai. Tokens are drawn by ``penstock.generation.sampling`` as in slots, so a seed means the same; only
under a grammar does onnxruntime-genai draw, since no one else sees its mask.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import ArtifactError, Internal, InvalidInput, missing_extra
from penstock.generation.sampling import log_likelihoods, number_at, sample
from penstock.generation.values import GenerationRequest, SampledToken, Sampling
from penstock.runtime.generation import EngineFacts, GenerationOptions, Reading, joined
from penstock.runtime.generation.decoder_file import read_config
from penstock.runtime.generation.guidance import KINDS, check_end, guidance
from penstock.runtime.generation.requests import check, check_text, finish_of
from penstock.runtime.generation.step_plan import Unfinished, plan_step

try:
    import onnxruntime_genai as og
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnxruntime-genai", "genai", "running this language model") from error

og.disable_telemetry_events()

_GREEDY = Sampling()
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


@dataclass(slots=True, kw_only=True)
class _Running:
    """One request.

    Attributes:
        fed: tokens of prompt and answer that went through the model.
        served: the step in which it was given prompt tokens last, or admitted.
    """

    request: GenerationRequest
    seed: int
    generator: Any
    served: int
    fed: int = 0
    answer: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.request.prompt_ids) + len(self.answer) - self.fed


class GenaiEngine:
    """A model of onnxruntime-genai, behind the port :class:`penstock.runtime.generation.GenerationEngine`."""

    def __init__(self, model: Any, facts: EngineFacts, options: GenerationOptions) -> None:
        self.facts = facts
        self._model = model
        self._chunk_tokens = options.chunk_tokens
        self._slots: dict[int, _Running] = {}
        self._step = 0

    @property
    def running(self) -> int:
        return len(self._slots)

    def admit(self, request: GenerationRequest) -> None:
        self._check_open()
        check(request, self.facts, [each.request.id for each in self._slots.values()])
        check_end(request)
        if request.grammar is not None:
            _check_guided(request.sampling)
        seed = secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed
        slot = next(at for at in range(self.facts.slots) if at not in self._slots)
        generator = _generator(self._model, request, seed)
        self._slots[slot] = _Running(request=request, seed=seed, generator=generator, served=self._step)

    def step(self) -> Sequence[SampledToken]:
        self._check_open()
        waiting = [Unfinished(slot=at, tokens=each.left, served=each.served) for at, each in self._slots.items()]
        plan = plan_step(waiting, self._chunk_tokens)
        self._step += 1
        said: list[SampledToken] = []
        try:
            for slot, tokens in (*[(c.slot, c.tokens) for c in plan.chunks], *[(slot, 1) for slot in plan.decode]):
                said += self._compute(slot, tokens)
        except RuntimeError as error:  # the library's only one
            self._slots.clear()
            raise Internal(f"the model failed: {str(error)[:500]}") from error
        except Internal:
            self._slots.clear()
            raise
        return said

    def cancel(self, request: str) -> bool:
        slot = next((at for at, each in self._slots.items() if each.request.id == request), None)
        return slot is not None and self._slots.pop(slot) is not None

    def read(self, ids: Sequence[int]) -> Reading:
        self._check_open()
        check_text(ids, self.facts, self.running)
        parts: list[Reading] = []
        try:
            generator = _generator(self._model, _text(ids), 0)
            for begin in range(0, len(ids) - 1, self._chunk_tokens):
                targets = ids[begin + 1 : begin + 1 + self._chunk_tokens]
                generator.append_tokens(np.array(ids[begin : begin + len(targets)], np.int32))
                logits = np.asarray(generator.get_output("logits"))[0][-len(targets) :, : self.facts.vocabulary]
                parts.append(Reading(log_likelihood=log_likelihoods(logits, targets), likeliest=logits.argmax(axis=1)))
        except RuntimeError as error:  # the library's only one
            raise Internal(f"the model failed: {str(error)[:500]}") from error
        return joined(parts)

    def close(self) -> None:
        self._slots.clear()
        self._model = None

    def _compute(self, slot: int, tokens: int) -> Sequence[SampledToken]:
        """Put tokens of one request through the model; draw the next if these were all."""
        running = self._slots[slot]
        running.served = self._step
        prompt = running.request.prompt_ids
        ids = prompt[running.fed : running.fed + tokens] or running.answer[-1:]
        is_drawn_there = running.request.grammar is not None and running.fed >= len(prompt)
        running.fed += tokens
        if not is_drawn_there:  # what the generator drew itself, it computes when asked for logits
            running.generator.append_tokens(np.array(ids, np.int32))
        if running.left:
            return ()
        said = self._said(running)
        if said.finish is not None:
            del self._slots[slot]
        return [said]

    def _said(self, running: _Running) -> SampledToken:
        request = running.request
        logits = np.asarray(running.generator.get_logits()).reshape(-1)[: self.facts.vocabulary]
        asked = _GREEDY if request.grammar else request.sampling
        number = 0.0 if asked.is_greedy else number_at(running.seed, len(running.answer))
        drawn = sample(
            logits, asked, seen=(request.prompt_ids, running.answer), number=number, top=request.top_logprobs or 0
        )
        token, logprob = drawn.token, drawn.logprob
        if request.grammar is not None:
            likeliest = token
            logits = logits.copy()  # drawing masks the generator's own
            running.generator.generate_next_token()
            token = int(running.generator.get_next_tokens()[0])
            logprob += float(logits[token] - logits[likeliest])
        running.answer.append(token)
        finish = finish_of(request, self.facts, token, len(running.answer))
        return SampledToken(request=request.id, token=token, logprob=logprob, top=drawn.top, finish=finish)

    def _check_open(self) -> None:
        if self._model is None:
            raise Internal("the engine is closed")


def _text(ids: Sequence[int]) -> GenerationRequest:
    """Return a request with room for a text that is read."""
    return GenerationRequest(id="", prompt_ids=tuple(ids[:-1]), max_new_tokens=1)


def load(directory: Path, options: GenerationOptions) -> GenaiEngine:
    """Load what onnxruntime-genai's builder wrote.

    Raises:
        ArtifactError: not a model that this onnxruntime-genai accepts, or its provider is not there or did not start.
    """
    facts = _facts(directory, read_config(directory), options)
    if options.provider not in _DEVICES:
        raise ArtifactError(f"{directory.name}: provider {options.provider}: expected one of {', '.join(_DEVICES)}")
    if options.provider == "cuda" and not og.is_cuda_available():
        raise ArtifactError(
            f"{directory.name}: this onnxruntime-genai has no CUDA; install onnxruntime-genai-cuda instead of it"
        )
    try:
        model = og.Model(_config(directory, options))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{directory.name}: onnxruntime-genai cannot load it: {str(error)[:500]}") from error
    if model.device_type != _DEVICES[options.provider]:
        raise ArtifactError(
            f"{directory.name}: asked for {options.provider}, onnxruntime-genai runs it on {model.device_type}, where "
            "it was neither measured nor certified"
        )
    return GenaiEngine(model, facts, options)


def _config(directory: Path, options: GenerationOptions) -> Any:
    config = og.Config(str(directory))
    if options.provider != "cpu":
        config.clear_providers()
        config.append_provider(options.provider)
    session = {"intra_op_num_threads": options.threads, "session.intra_op.allow_spinning": "0"}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return config


def _facts(directory: Path, config: Mapping[str, Any], options: GenerationOptions) -> EngineFacts:
    """Read what the engine can take; keys and values are counted in float32 for a CPU, in half of it elsewhere."""
    try:
        model, decoder = config["model"], config["model"].get("decoder", {})
        context, ends = int(model["context_length"]), model["eos_token_id"]
        numbers = decoder["num_hidden_layers"] * 2 * decoder["num_key_value_heads"] * decoder["head_size"]
        return EngineFacts(
            context_tokens=min(context, options.context_tokens or context),
            vocabulary=int(model["vocab_size"]),
            slots=options.slots,
            end_ids=frozenset(ends if isinstance(ends, list) else [ends]),
            kv_bytes_per_token=numbers * (4 if options.provider == "cpu" else 2),
            grammars=KINDS,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{directory.name}: genai_config.json has no usable {error}; was it edited?") from error


def _generator(model: Any, request: GenerationRequest, seed: int) -> Any:
    """Make a generator.

    Raises:
        InvalidInput: a grammar that is none. Internal: there is no memory for its keys and values.
    """
    parameters = og.GeneratorParams(model)
    asked = request.sampling
    drawing: dict[str, Any] = {"do_sample": False}
    if request.grammar is not None and not asked.is_greedy:
        drawing = {
            "do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k,
            "random_seed": seed % 2**31,
        }  # fmt: skip
    parameters.set_search_options(
        max_length=len(request.prompt_ids) + request.max_new_tokens,
        repetition_penalty=asked.repetition_penalty,
        **drawing,
    )
    try:
        if request.grammar is not None:
            parameters.set_guidance(*guidance(request.grammar))
        return og.Generator(model, parameters)
    except (RuntimeError, ValueError) as error:
        if request.grammar is None:
            raise Internal(f"no generator for the request: {str(error)[:500]}") from error
        raise InvalidInput(f"grammar: {str(error)[:500]}", field="grammar") from error


def _check_guided(asked: Sampling) -> None:
    """Refuse what cannot be drawn under a grammar, where onnxruntime-genai draws."""
    wrong = {"min_p": asked.min_p, "presence_penalty": asked.presence_penalty}
    wrong |= {"frequency_penalty": asked.frequency_penalty, "logit_bias": len(asked.logit_bias)}
    for name, value in wrong.items():
        if value:
            raise InvalidInput(f"{name}: not with a grammar; leave one of them out", field=name)
