"""Whole answers that were given before, for requests that are the same in every token and every parameter.

Keeps only what would be answered the same again: greedy requests, and those with a seed. Nothing here is alike or near:
the key is all that a request says, its tenant and the model's version. Bounded in bytes; what was not asked for longest
goes first. Knows no clock and no engine; who asks it decides where an old answer will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from penstock.errors import ConfigError
from penstock.generation.values import GenerationRequest, Sampling, TokenEvent
from penstock.policy.kept_values import KeptValues

_BESIDE_BYTES = 300  # of memory that an entry takes beside its events: key, numbers, its place in the order

_encoder = msgspec.msgpack.Encoder()
_events = msgspec.msgpack.Decoder(tuple[TokenEvent, ...])


def cache_key(request: GenerationRequest, *, model: str, tenant: str = "") -> bytes | None:
    """Return what two requests share when they have the same answer; None where the next answer may be another one.

    Args:
        model: its version by digest: another version answers otherwise.
        tenant: what one tenant asked is no other's to find out, not even by how fast the answer comes.
    """
    sampling = request.sampling
    if sampling.is_greedy:  # what decides among several tokens changes nothing where the likeliest one is taken
        usual = Sampling()
        sampling = msgspec.structs.replace(
            sampling, top_p=usual.top_p, top_k=usual.top_k, min_p=usual.min_p, seed=usual.seed
        )
    elif sampling.seed is None:
        return None
    biases = sorted(sampling.logit_bias.items())  # in whatever order they were sent
    asked = msgspec.structs.replace(request, id="", sampling=msgspec.structs.replace(sampling, logit_bias={}))
    return hashlib.sha256(_encoder.encode((tenant, model, asked, biases))).digest()


class AnswerCache:
    """Answers by key.

    Attributes:
        hits: answers that were found.
        misses: that were not.
    """

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes``: that all answers may take; 0 keeps none.

        Raises:
            ConfigError: less than nothing.
        """
        if max_bytes < 0:
            raise ConfigError(f"max_bytes ({max_bytes}) must not be negative")
        self._answers: KeptValues[bytes] = KeptValues(max_bytes)
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def max_bytes(self) -> int:
        """Return how many bytes it may take."""
        return self._answers.max_bytes

    @property
    def size_bytes(self) -> int:
        """Return how many bytes it takes."""
        return self._answers.size_bytes

    def get(self, key: bytes | None) -> tuple[TokenEvent, ...] | None:
        """Return the events of an answer, of whose prompt nothing had to be computed; None if there is none."""
        kept = None if key is None else self._answers.get(key)
        if kept is None:
            self.misses += 1
            return None
        self.hits += 1
        *before, last = _events.decode(kept)
        if last.usage is None:
            return (*before, last)
        usage = msgspec.structs.replace(last.usage, cached_tokens=last.usage.prompt_tokens)
        return (*before, msgspec.structs.replace(last, usage=usage))

    def put(self, key: bytes | None, events: Sequence[TokenEvent]) -> None:
        """Keep an answer that came to an end of its own; do nothing with any other, or with one that is too large."""
        if key is None or not events or events[-1].finish not in ("stop", "length"):
            return
        content = _encoder.encode(tuple(events))
        self._answers.put(key, content, len(content) + _BESIDE_BYTES)
