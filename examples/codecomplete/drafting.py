"""Let the small model draft and the large one verify, in this process: how many passes of the large one that saves.

A verified answer is the large model's own, token by token; drafts only decide how many of them one pass gives.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.generation.values import GenerationRequest, SampledToken
from penstock.hosting.generation.text_model import read_files
from penstock.runtime.generation import GenerationOptions, slots
from penstock.runtime.generation.slots import SlotEngine

from .asking import Completion

DRAFT_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """What drafts were worth.

    Attributes:
        answers: the verified ones; a gap is between two passes of the large model, which may give several tokens.
        drafted: tokens that the small model proposed.
        accepted: of them.
        passes: of the large model over all answers, those over prompts included.
    """

    answers: tuple[Completion, ...]
    drafted: int
    accepted: int
    passes: int


def draft(edge: Path, cloud: Path, prompts: Sequence[str], *, stop: tuple[str, ...], max_new_tokens: int) -> Drafted:
    """Answer prompts with the large model's words, drafted by the small one."""
    options = GenerationOptions(slots=1)
    small, large = slots.load(edge, options), slots.load(cloud, options)
    reads = tokenizer.load(read_files(cloud))
    answers: list[Completion] = []
    drafted = accepted = passes = 0
    for number, prompt in enumerate(prompts):
        began, came = time.perf_counter(), list[float]()
        ids = tuple(reads.encode(prompt))
        asked = GenerationRequest(id=str(number), prompt_ids=ids, max_new_tokens=max_new_tokens, stop=stop)
        answer, shown, said = AnswerText(asked, reads.pieces), "", list[int]()
        large.admit(asked)
        new: list[SampledToken] = []
        while not new:
            new = list(large.step())
            passes += 1
        while True:
            came.append(time.perf_counter())
            for one in new:
                event = answer.add(one)
                if event is not None:
                    shown, said = shown + event.text, [*said, one.token]
            if answer.ended:
                break
            room = max_new_tokens - len(said) - 1  # one token of each pass is the large model's own
            proposed = _proposed(small, [*ids, *said], min(DRAFT_TOKENS, room), number) if room else []
            new = list(large.verify(asked.id, proposed))
            passes += 1
            drafted += len(proposed)
            accepted += sum(one.token == guess for one, guess in zip(new, proposed, strict=False))
        large.cancel(asked.id)
        gaps_s = tuple(later - earlier for earlier, later in itertools.pairwise(came))
        answers.append(
            Completion(
                text=shown.strip(),
                first_s=came[0] - began,
                gaps_s=gaps_s,
                tokens=len(said),
                prompt_tokens=len(ids),
                account={"served_by": "cloud"},
            )
        )
    small.close()
    large.close()
    return Drafted(answers=tuple(answers), drafted=drafted, accepted=accepted, passes=passes)


def _proposed(small: SlotEngine, ids: Sequence[int], count: int, number: int) -> list[int]:
    """Return the tokens with which the small model goes on; its slot keeps the beginning from one draft to the next."""
    small.admit(GenerationRequest(id=str(number), prompt_ids=tuple(ids), max_new_tokens=count, ignore_end=True))
    proposed: list[int] = []
    while small.running:
        proposed += [one.token for one in small.step()]
    return proposed
