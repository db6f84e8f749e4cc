"""Score the options of one request: which tokens are to be computed, and how likely each option is as a whole answer.

An option is a whole answer, so its probability is that of its tokens after the prompt times that of an end after them:
without the end, an option that begins another one would always be likelier than that. Nothing is divided by lengths:
renormalised over the options, these are the model's own probabilities of each, given that it says one of them.

Options are computed in the order of their tokens, so that each goes on where the one before it began alike. Plain
functions of values and logits; who runs the graph is ``penstock.runtime.generation.slots``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.generation.values import Options, SampledToken

Path = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Tokens to compute after the prompt and ``keep`` tokens of the option before.

    Attributes:
        ids: at least one.
    """

    keep: int
    ids: Path


class OptionScores:
    """How far the options of one request are."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ends = np.array(sorted(set(options.end_ids)), np.int64)
        self._next: defaultdict[Path, set[int]] = defaultdict(set)
        for ids in options.ids:
            for at, token in enumerate(ids):
                self._next[ids[:at]].add(token)
        self._whole = frozenset(options.ids)
        self._order, self._appends = sorted(options.ids), plan_appends(options)
        self._at = self._done = 0  # of the appends, and of the tokens of the one that is under way
        self._token: dict[Path, float] = {}  # log-probability of each path's last token
        self._end: dict[Path, float] = {}
        self._end_token: dict[Path, tuple[int, float]] = {}
        self.has_begun = False

    @property
    def left(self) -> int:
        """Count the tokens that are not computed yet, the prompt's aside."""
        return sum(len(append.ids) for append in self._appends[self._at :]) - self._done

    def begin(self, logits: NDArray[Any]) -> None:
        """Take what the model finds after the prompt [vocabulary]."""
        self.has_begun = True
        self._look((), logits)

    def next(self, most: int) -> Append:
        """Return what to compute next, of at most so many tokens; there is something left."""
        append = self._appends[self._at]
        return Append(keep=append.keep + self._done, ids=append.ids[self._done : self._done + most])

    def take(self, logits: NDArray[Any]) -> None:
        """Take what the model finds after each token of :meth:`next` [tokens, vocabulary]."""
        append = self._appends[self._at]
        option = self._order[self._at]
        for row in logits:
            self._done += 1
            self._look(option[: append.keep + self._done], row)
        if self._done == len(append.ids):
            self._at, self._done = self._at + 1, 0

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Return the log-probability of each option as a whole answer, in their order; all tokens are computed."""
        return tuple(
            sum(self._token[ids[: at + 1]] for at in range(len(ids))) + self._end[ids] for ids in self._options.ids
        )

    def answer(self, request: str, cached_tokens: int) -> list[SampledToken]:
        """Return the tokens of the likeliest option, and the likeliest of those that end it. Of options that are
        equally likely it is the first by tokens, in whatever order they were given."""
        logprobs = self.logprobs
        _, best = min((-value, ids) for value, ids in zip(logprobs, self._options.ids, strict=True))
        said = [
            SampledToken(request=request, token=token, logprob=self._token[best[: at + 1]], cached_tokens=cached_tokens)
            for at, token in enumerate(best)
        ]
        token, logprob = self._end_token[best]
        last = SampledToken(
            request=request, token=token, logprob=logprob, finish="stop", cached_tokens=cached_tokens, options=logprobs
        )
        return [*said, last]

    def _look(self, path: Path, logits: NDArray[Any]) -> None:
        """Note how likely what may follow a path is."""
        row = logits.astype(np.float64)
        highest = float(row.max())
        everything = highest + float(np.log(np.exp(row - highest).sum()))
        for token in self._next.get(path, ()):
            self._token[(*path, token)] = float(row[token]) - everything
        if path in self._whole:
            ends = row[self._ends] - everything
            likeliest = int(ends.argmax())
            self._end_token[path] = int(self._ends[likeliest]), float(ends[likeliest])
            self._end[path] = float(np.logaddexp.reduce(ends))


def plan_appends(options: Options) -> tuple[Append, ...]:
    """Return what to compute for each option, in the order of their tokens: one that begins like the one before it
    keeps as much of it. No two options are alike."""
    appends: list[Append] = []
    before: Sequence[int] = ()
    for ids in sorted(options.ids):
        keep = next((at for at, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other), len(before))
        appends.append(Append(keep=keep, ids=ids[keep:]))
        before = ids
    return tuple(appends)
