"""An engine that computes nothing: it answers each prompt with itself, and hangs, fails or dies where its script says.

For tests of everything that stands above an engine, in this process or in another, and for measuring what that costs.
Its steps, chunks and refusals are those of a real engine. It looks at no clock; it sleeps only where told to.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from penstock.errors import ArtifactError, Internal
from penstock.generation.values import GenerationRequest, Options, SampledToken
from penstock.runtime.generation import EngineFacts, GenerationOptions
from penstock.runtime.generation.requests import check, finish_of
from penstock.runtime.generation.step_plan import StepPlan, Unfinished, plan_step

SCRIPT_FILE = "script.json"
_EXIT_STATUS = 70


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine says of itself and does.

    A token named by ``fail_on``, ``hang_on`` or ``die_on`` takes effect in the step that computes it, as part of a
    prompt or of an answer.

    Attributes:
        end_id: follows after each answer; None: answers go on until their limit.
        step_s: each step that computes something sleeps so long.
        token_s: and so much longer for each token that it computes.
        fail_on: the step raises Internal.
        hang_on: the step never comes back, until another thread closes the engine.
        die_on: the process exits at once, as if it was killed.
        answers: for prompts that are not answered with themselves; the key has ids with a space between.
    """

    context_tokens: int = 512
    vocabulary: int = 1024
    end_id: int | None = 1
    kv_bytes_per_token: int = 1024
    step_s: float = 0.0
    token_s: float = 0.0
    fail_on: int | None = None
    hang_on: int | None = None
    die_on: int | None = None
    answers: dict[str, tuple[int, ...]] = {}


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """One request: ``computed`` of its prompt and answer went through a step."""

    request: GenerationRequest
    script: tuple[int, ...]
    served: int
    computed: int = 0
    answer: list[int] = field(default_factory=list)

    @property
    def text(self) -> tuple[int, ...]:
        return (*self.request.prompt_ids, *self.answer)


class ScriptedEngine:
    """The port, played from a script; ``steps``, ``tokens`` and ``cancelled`` count what it was made to do."""

    def __init__(self, script: Script, options: GenerationOptions) -> None:
        self._script, self._options = script, options
        self._slots: dict[int, _Sequence] = {}
        self._closed = threading.Event()
        self.steps = self.tokens = self.cancelled = 0
        self.facts = EngineFacts(
            context_tokens=min(script.context_tokens, options.context_tokens or script.context_tokens),
            vocabulary=script.vocabulary,
            slots=options.slots,
            end_ids=frozenset() if script.end_id is None else frozenset({script.end_id}),
            kv_bytes_per_token=script.kv_bytes_per_token,
            scores_options=True,
        )

    @property
    def running(self) -> int:
        return len(self._slots)

    def admit(self, request: GenerationRequest) -> None:
        self._check_open()
        check(request, self.facts, [each.request.id for each in self._slots.values()])
        slot = next(at for at in range(self.facts.slots) if at not in self._slots)
        key = " ".join(map(str, request.prompt_ids))
        script = self._script.answers.get(key, request.prompt_ids)
        self._slots[slot] = _Sequence(request=request, script=script, served=self.steps)

    def step(self) -> Sequence[SampledToken]:
        self._check_open()
        plan = plan_step(
            [Unfinished(slot=s, tokens=len(q.text) - q.computed, served=q.served) for s, q in self._slots.items()],
            self._options.chunk_tokens,
        )
        if not plan.chunks and not plan.decode:
            return ()
        self.steps += 1
        self._act(plan)
        return [token for slot in (*[c.slot for c in plan.chunks], *plan.decode) for token in self._sampled(slot)]

    def cancel(self, request: str) -> bool:
        slot = next((at for at, each in self._slots.items() if each.request.id == request), None)
        if slot is None:
            return False
        del self._slots[slot]
        self.cancelled += 1
        return True

    def close(self) -> None:
        self._slots.clear()
        self._closed.set()

    def _act(self, plan: StepPlan) -> None:
        """Compute, which is to look at each token, to sleep, and to do what the script has for them."""
        looked: set[int] = set()
        tokens = 0
        for slot, count in (*[(c.slot, c.tokens) for c in plan.chunks], *[(slot, 1) for slot in plan.decode]):
            sequence = self._slots[slot]
            looked.update(sequence.text[sequence.computed : sequence.computed + count])
            sequence.computed += count
            sequence.served = self.steps
            tokens += count
        self.tokens += tokens
        if nap_s := self._script.step_s + self._script.token_s * tokens:
            time.sleep(nap_s)
        if self._script.die_on in looked:
            os._exit(_EXIT_STATUS)
        if self._script.hang_on in looked:
            self._closed.wait()
            self._check_open()
        if self._script.fail_on in looked:
            self._slots.clear()
            raise Internal("the script has this step fail; every request in the engine is lost")

    def _sampled(self, slot: int) -> Sequence[SampledToken]:
        """Return the next token of a slot whose text is computed, and let it go after its last."""
        sequence = self._slots[slot]
        if sequence.computed < len(sequence.text):
            return ()
        request, at = sequence.request, len(sequence.answer)
        if request.options is not None:
            del self._slots[slot]
            return _chosen(request.id, request.options, sequence.script)
        ends = at >= len(sequence.script) and self._script.end_id is not None and not request.ignore_end
        token = self._script.end_id if ends else sequence.script[at % len(sequence.script)]
        assert token is not None
        sequence.answer.append(token)
        finish = finish_of(request, self.facts, token, len(sequence.answer))
        if finish is not None:
            del self._slots[slot]
        return [
            SampledToken(
                request=request.id, token=token, logprob=_logprob(0), top=self._top(token, request), finish=finish
            )
        ]

    def _top(self, token: int, request: GenerationRequest) -> tuple[tuple[int, float], ...]:
        count = min(request.top_logprobs or 0, self.facts.vocabulary)
        return tuple(((token + rank) % self.facts.vocabulary, _logprob(rank)) for rank in range(count))

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Internal("the engine is closed")


def load(directory: Path, options: GenerationOptions) -> ScriptedEngine:
    """Load the script in a directory.

    Raises:
        ArtifactError: there is none, or it is none.
    """
    try:
        return ScriptedEngine(msgspec.json.decode((directory / SCRIPT_FILE).read_bytes(), type=Script), options)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{directory.name}/{SCRIPT_FILE}: no script for an engine: {error}") from error


def _chosen(request: str, options: Options, script: tuple[int, ...]) -> Sequence[SampledToken]:
    """Answer with an option: the script's if it is one, then the first by tokens; each next is half as likely."""
    order = sorted(options.ids, key=lambda ids: (ids != script, ids))
    logprobs = tuple(_logprob(order.index(ids)) for ids in options.ids)
    said = [SampledToken(request=request, token=token, logprob=_logprob(0)) for token in order[0]]
    return [*said, SampledToken(request=request, token=min(options.end_ids), logprob=_logprob(0), finish="stop",
                                options=logprobs)]  # fmt: skip


def _logprob(rank: int) -> float:
    """Half of the probability is the first token's, half of the rest the second's, and so on."""
    return -(rank + 1) * math.log(2.0)
