"""The recipe's table [generation]: how a language model is asked, and what it is compared on."""

from __future__ import annotations

import msgspec

from penstock.policy.text_answers import Normalisation


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn; answer n of a set is drawn with ``seed + n``."""

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0


class Generate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How answers are made.

    Attributes:
        stop: an answer ends before the first of these strings.
        sampling: None is greedy.
    """

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None


class GenerationSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For ``model.task = "generation"``; ``[data] source`` then names prompts (``compiler.generation.prompts``).

    Attributes:
        texts: what perplexity is measured on, a ``.txt`` or ``.jsonl`` file or an iterator; "" for the prompts of the
            tuning split with their answers.
        max_new_tokens: of an answer.
        stop: an answer ends before the first of these strings.
        normalisation: when two answers count as the same: up to "whitespace", or by their "words".
        choices: the options of which one is the answer. The likeliest is, each scored as a whole answer with its end
            and renormalised over all of them. Prompts may have options of their own instead, in a column ``choices``.
    """

    texts: str = ""
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    normalisation: Normalisation = "whitespace"
    choices: tuple[str, ...] = ()

    @property
    def generate(self) -> Generate:
        """Ask greedily, so that an answer is the same every time."""
        return Generate(max_new_tokens=self.max_new_tokens, stop=self.stop)
