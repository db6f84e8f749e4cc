"""Continuous batching over plain onnxruntime: requests of different lengths decode in one run, and come and go between
any two steps.

Owns which request has which slot, what lies in each, and how far each request is. What a step computes is planned by
``penstock.runtime.generation.step_plan``, tokens are drawn by ``penstock.generation.sampling``, those that a grammar
allows are known to ``penstock.runtime.generation.grammar``, and the graph is run by
``penstock.runtime.generation.decoder``.

Keys and values of a finished request stay in its slot until another needs it, and a prompt that begins like any slot's
content computes only the rest.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ArtifactError, Internal, InvalidInput
from penstock.generation.sampling import Drawn, log_likelihoods, number_at, sample, sample_greedy_rows
from penstock.generation.values import GenerationRequest, SampledToken, Sampling
from penstock.runtime.generation import EngineFacts, GenerationOptions, Reading, joined
from penstock.runtime.generation.decoder import Decoder
from penstock.runtime.generation.decoder_file import DecoderFile, read, read_config, unsuitable
from penstock.runtime.generation.grammar import Grammars, Matcher
from penstock.runtime.generation.guidance import KINDS, check_end
from penstock.runtime.generation.option_scores import OptionScores
from penstock.runtime.generation.requests import check, check_text, finish_of
from penstock.runtime.generation.step_plan import Content, Unfinished, arrange, place, plan_step

_LIKELIEST = Sampling()
_APPENDS_A_STEP = 4  # runs over options' tokens, that others wait for; each costs nearly as much as one over many


@dataclass(slots=True, kw_only=True)
class _Running:
    """A request that has a slot.

    Attributes:
        seed: of its random numbers.
        cached: tokens of its prompt that were not computed again.
        served: the step in which it was given prompt tokens last, or admitted.
        matcher: the answer's place in its grammar, if it has one.
        scores: of its options, if it has some; then no token is drawn.
        answer: tokens drawn so far; the last one has no keys and values yet.
    """

    request: GenerationRequest
    seed: int
    cached: int
    served: int
    matcher: Matcher | None = None
    scores: OptionScores | None = None
    answer: list[int] = field(default_factory=list)

    @property
    def is_plain(self) -> bool:
        """Say whether its next token is the likeliest, and nothing else is to be told of it."""
        return self.request.sampling.is_plain and not (self.request.top_logprobs or self.request.grammar)


@dataclass(slots=True, kw_only=True)
class _Slot:
    """A place for keys and values.

    Attributes:
        ids: tokens whose keys and values lie there.
        used: the step in which a request had it last; -1 if none had.
    """

    ids: list[int] = field(default_factory=list)
    used: int = -1
    running: _Running | None = None

    def text(self) -> Iterator[int]:
        """Yield the tokens of prompt and answer that have no keys and values yet."""
        assert self.running is not None
        prompt, answer, done = self.running.request.prompt_ids, self.running.answer, len(self.ids)
        yield from prompt[done:]
        yield from answer[max(0, done - len(prompt)) :]

    @property
    def left(self) -> int:
        running = self.running
        assert running is not None
        prompt_tokens = len(running.request.prompt_ids)
        if running.scores is not None:
            return running.scores.left + max(0, prompt_tokens - len(self.ids))
        return prompt_tokens + len(running.answer) - len(self.ids)


class SlotEngine:
    """A decoder with ``options.slots`` slots, behind the port :class:`penstock.runtime.generation.GenerationEngine`."""

    def __init__(self, file: DecoderFile, options: GenerationOptions) -> None:
        """Load the model.

        Raises:
            ArtifactError: as :class:`penstock.runtime.generation.decoder.Decoder`.
        """
        context = min(file.context_tokens, options.context_tokens or file.context_tokens)
        self._decoder = Decoder(file, options, context)
        self._grammars = Grammars(file.path.parent, file.vocabulary, file.end_ids)
        self._chunk_tokens = options.chunk_tokens
        self._slots = [_Slot() for _ in range(options.slots)]
        self._step = 0
        self._is_closed = False
        self.facts = EngineFacts(
            context_tokens=context,
            vocabulary=file.vocabulary,
            slots=options.slots,
            end_ids=file.end_ids,
            kv_bytes_per_token=self._decoder.kv_bytes_per_token,
            grammars=KINDS if self._grammars.are_known else frozenset(),
            scores_options=True,
        )

    @property
    def running(self) -> int:
        return sum(slot.running is not None for slot in self._slots)

    def admit(self, request: GenerationRequest) -> None:
        self._check_open()
        check(request, self.facts, [slot.running.request.id for slot in self._slots if slot.running])
        check_end(request)
        scores = None if request.options is None else OptionScores(request.options)
        matcher = None if request.grammar is None or scores is not None else self._grammars.begin(request.grammar)
        contents = [Content(ids=s.ids, is_free=s.running is None, used=s.used) for s in self._slots]
        placed = place(request.prompt_ids, contents)
        if placed.source is not None:
            self._decoder.copy(placed.source, placed.slot, placed.cached)
        slot = self._slots[placed.slot]
        slot.ids = list(request.prompt_ids[: placed.cached])
        slot.used = self._step
        seed = secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed
        slot.running = _Running(
            request=request, seed=seed, cached=placed.cached, served=self._step, matcher=matcher, scores=scores
        )

    def step(self) -> Sequence[SampledToken]:
        self._check_open()
        waiting = [
            Unfinished(slot=at, tokens=slot.left, served=running.served, is_alone=running.scores is not None)
            for at, slot in enumerate(self._slots)
            if (running := slot.running) is not None
        ]
        plan = plan_step(waiting, self._chunk_tokens)
        self._step += 1
        said: list[SampledToken] = []
        try:
            for chunk in plan.chunks:
                said += self._prefill(chunk.slot, chunk.tokens)
            if plan.decode:
                said += self._decode(plan.decode)
        except Internal:
            self._forget()
            raise
        return said

    def cancel(self, request: str) -> bool:
        slot = self._find(request)
        if slot is None:
            return False
        self._slots[slot].running = None
        return True

    def close(self) -> None:
        self._is_closed = True
        self._forget()
        self._decoder.close()

    def verify(self, request: str, draft: Sequence[int]) -> Sequence[SampledToken]:
        """Compute drafted tokens of one request in one run; return those that it would have drawn itself, and the
        first that it draws otherwise or after them.

        They are what as many steps would have returned, from 1 to one more than were drafted. Others do not advance.

        Raises:
            InvalidInput: no such request, its prompt is not computed yet, or a token is not in the vocabulary.
            Internal: the runtime failed; every request in the engine is lost.
        """
        at = self._decoding(request, draft)
        slot = self._slots[at]
        assert slot.running is not None
        asked = slot.running.request
        draft = list(draft)[: asked.max_new_tokens - len(slot.running.answer) - 1]
        known = len(slot.ids)
        logits = self._looked(at, [slot.running.answer[-1], *draft])
        said: list[SampledToken] = []
        for row, drafted in zip(logits, [*draft, None], strict=True):
            said.append(self._said(slot, _drawn(slot.running, row)))
            if said[-1].finish is not None or said[-1].token != drafted:
                break
        slot.ids = slot.ids[: known + len(said)]  # what came after them is overwritten
        return said

    def score(self, request: str, draft: Sequence[int]) -> Sequence[float]:
        """Return how likely a request's model finds drafted tokens, each after those before it, as natural logarithms.
        Nothing advances.

        Raises:
            InvalidInput: as :meth:`verify`, or the tokens do not fit into the context. Internal: as :meth:`verify`.
        """
        at = self._decoding(request, draft)
        slot = self._slots[at]
        assert slot.running is not None
        known = len(slot.ids)
        if known + 1 + len(draft) > self.facts.context_tokens:
            raise InvalidInput(
                f"draft: {known + 1} tokens and {len(draft)} drafted ones are {known + 1 + len(draft)}, and the "
                f"context is {self.facts.context_tokens} tokens",
                field="draft",
            )
        logits = self._looked(at, [slot.running.answer[-1], *draft])[:-1]
        del slot.ids[known:]
        return log_likelihoods(logits, draft).tolist()  # type: ignore[no-any-return]

    def read(self, ids: Sequence[int]) -> Reading:
        self._check_open()
        check_text(ids, self.facts, self.running)
        at = min(
            (at for at, slot in enumerate(self._slots) if slot.running is None), key=lambda at: self._slots[at].used
        )
        self._slots[at].ids = []  # nothing is taken over: each text is read from its beginning
        parts: list[Reading] = []
        try:
            for begin in range(0, len(ids) - 1, self._chunk_tokens):
                targets = ids[begin + 1 : begin + 1 + self._chunk_tokens]
                logits = self._run_alone(at, ids[begin : begin + len(targets)])
                parts.append(Reading(log_likelihood=log_likelihoods(logits, targets), likeliest=logits.argmax(axis=1)))
        except Internal:
            self._forget()
            raise
        return joined(parts)

    def _prefill(self, at: int, tokens: int) -> Sequence[SampledToken]:
        slot = self._slots[at]
        running = slot.running
        assert running is not None
        running.served = self._step
        if running.scores is not None and running.scores.has_begun:
            return self._score(at, running, running.scores, tokens)
        done = len(slot.ids)
        prompt = running.request.prompt_ids
        logits = self._run_alone(at, prompt[done : done + tokens])
        if len(slot.ids) < len(prompt):
            return ()
        if running.scores is not None:
            running.scores.begin(logits[-1])
            return ()
        return [self._said(slot, _drawn(running, logits[-1]))]

    def _score(self, at: int, running: _Running, scores: OptionScores, tokens: int) -> Sequence[SampledToken]:
        """Compute some tokens of a request's options; return the answer after the last of them."""
        slot, prompt_tokens = self._slots[at], len(running.request.prompt_ids)
        for _ in range(_APPENDS_A_STEP):
            append = scores.next(tokens)
            del slot.ids[prompt_tokens + append.keep :]
            scores.take(self._run_alone(at, append.ids))
            tokens -= len(append.ids)
            if not scores.left:
                del slot.ids[prompt_tokens:]  # the prompt is what others may begin with
                slot.running = None
                return scores.answer(running.request.id, running.cached)
            if tokens <= 0:
                break
        return ()

    def _decode(self, decode: Sequence[int]) -> Sequence[SampledToken]:
        """Compute one token of each of these slots in one run."""
        arranged = arrange(decode, len(self._slots))
        for one, other in arranged.swaps:
            self._swap(one, other)
        slots = self._slots[arranged.first : arranged.first + len(decode)]
        tokens = [next(slot.text()) for slot in slots]
        lengths = [len(slot.ids) + 1 for slot in slots]
        logits = self._decoder.run(arranged.first, np.array(tokens, np.int64)[:, None], lengths)[:, 0]
        for slot, token in zip(slots, tokens, strict=True):
            slot.ids.append(token)
            slot.used = self._step
        rows = [slot.running for slot in slots if slot.running is not None]
        return [self._said(slot, drawn) for slot, drawn in zip(slots, _drawn_rows(rows, logits), strict=True)]

    def _swap(self, one: int, other: int) -> None:
        slots = self._slots
        self._decoder.swap(one, other, max(len(slots[one].ids), len(slots[other].ids)))
        slots[one], slots[other] = slots[other], slots[one]

    def _run_alone(self, at: int, ids: Sequence[int]) -> NDArray[Any]:
        """Compute several tokens of one slot; return the logits of each [tokens, vocabulary]."""
        slot = self._slots[at]
        logits = self._decoder.run(at, np.array(ids, np.int64)[None], (len(slot.ids) + len(ids),))
        slot.ids.extend(ids)
        slot.used = self._step
        alone: NDArray[Any] = logits[0]
        return alone

    def _looked(self, at: int, ids: Sequence[int]) -> NDArray[Any]:
        """Compute tokens as ``_run_alone`` does, however many they are, and keep all their logits."""
        size = self._chunk_tokens
        try:
            parts = [self._run_alone(at, ids[begin : begin + size]).copy() for begin in range(0, len(ids), size)]
        except Internal:
            self._forget()
            raise
        return np.concatenate(parts)

    def _said(self, slot: _Slot, drawn: Drawn) -> SampledToken:
        """Add a token to a slot's answer, and free the slot if it is the last."""
        running = slot.running
        assert running is not None
        running.answer.append(drawn.token)
        finish = finish_of(running.request, self.facts, drawn.token, len(running.answer))
        if running.matcher is not None and running.matcher.has_given_up:
            finish = finish or "length"  # cut off, and not as asked for
        if finish is not None:
            slot.running = None
        return SampledToken(
            request=running.request.id,
            token=drawn.token,
            logprob=drawn.logprob,
            top=drawn.top,
            finish=finish,
            cached_tokens=running.cached,
        )

    def _decoding(self, request: str, draft: Sequence[int]) -> int:
        """Return the slot of a request to which drafted tokens may be added."""
        self._check_open()
        at = self._find(request)
        if at is None:
            raise InvalidInput(f"request: no {request!r} runs here", field="request")
        running = self._slots[at].running
        if running is None or not running.answer:
            raise InvalidInput(f"request: the prompt of {request!r} is not computed yet; step first", field="request")
        if wrong := [token for token in draft if not 0 <= token < self.facts.vocabulary]:
            raise InvalidInput(
                f"draft: token {wrong[0]} is not in the vocabulary, which has ids from 0 to "
                f"{self.facts.vocabulary - 1}; equal tokenizers are needed",
                field="draft",
            )
        return at

    def _find(self, request: str) -> int | None:
        slots = enumerate(self._slots)
        return next((at for at, slot in slots if slot.running and slot.running.request.id == request), None)

    def _forget(self) -> None:
        """Lose every request, and everything that lies in slots."""
        self._slots = [_Slot() for _ in self._slots]

    def _check_open(self) -> None:
        if self._is_closed:
            raise Internal("the engine is closed")


def load(directory: Path, options: GenerationOptions) -> SlotEngine:
    """Load what onnxruntime-genai's builder wrote.

    Raises:
        ArtifactError: no model, or one that slots cannot run; the message has the reason.
    """
    config = read_config(directory)
    reason = unsuitable(config, options.provider)
    if reason is not None:
        raise ArtifactError(f"{directory.name}: slots cannot run it: {reason}; onnxruntime-genai may")
    return SlotEngine(read(directory, config), options)


def _drawn(running: _Running, logits: NDArray[Any]) -> Drawn:
    """Draw a request's next token. What is told of it is the raw model's, also where a grammar allows few tokens."""
    asked, matcher = running.request, running.matcher
    number = 0.0 if asked.sampling.is_greedy else number_at(running.seed, len(running.answer))
    seen, top = (asked.prompt_ids, running.answer), asked.top_logprobs or 0
    if matcher is None:
        return sample(logits, asked.sampling, seen=seen, number=number, top=top)
    token = sample(matcher.masked(logits), asked.sampling, seen=seen, number=number).token
    matcher.take(token)
    raw = sample(logits, _LIKELIEST, seen=seen, number=0.0, top=top)
    return Drawn(token=token, logprob=raw.logprob + float(logits[token] - logits[raw.token]), top=raw.top)


def _drawn_rows(rows: Sequence[_Running], logits: NDArray[Any]) -> Sequence[Drawn]:
    """Draw the next token of each row; the likeliest are taken of all rows at once."""
    if not all(running.is_plain for running in rows):
        return [_drawn(running, row) for running, row in zip(rows, logits, strict=True)]
    tokens, logprobs = sample_greedy_rows(logits)
    return [Drawn(token=int(token), logprob=float(value)) for token, value in zip(tokens, logprobs, strict=True)]
