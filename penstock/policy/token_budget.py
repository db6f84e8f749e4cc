"""How many tokens a request may take: what the model has room for, and what its tenant may spend.

Values and plain functions of the time. A request reserves all that it can take before it begins and settles what it
took when it ends, however it ends; what it did not take is given back. Owns no clock and no tokenizer: the caller keeps
the account that it is handed back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from penstock.errors import ConfigError, Conflict, InvalidInput, QuotaExceeded
from penstock.policy.token_bucket import BucketState, TokenBucket

_MINUTE_S, _DAY_S = 60.0, 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    """What one request may ask of a model.

    Attributes:
        context_tokens: most tokens of prompt and answer together.
        max_input_tokens: of a prompt; None for what the context leaves.
        max_output_tokens: of an answer; None for what the context leaves.
    """

    context_tokens: int
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None

    @property
    def longest_prompt(self) -> int:
        """Return the most tokens of a prompt: one of the answer has to fit behind it."""
        room = self.context_tokens - 1
        return room if self.max_input_tokens is None else min(room, self.max_input_tokens)

    def check_bytes(self, size_bytes: int, longest_token_bytes: int) -> None:
        """Refuse a text that cannot fit, before it is tokenized. Never refuses one that would.

        Args:
            size_bytes: of the text in UTF-8.
            longest_token_bytes: no token stands for more; 0 where nobody knows, and nothing is refused.

        Raises:
            InvalidInput: the message has the fewest tokens that it can be, and how many fit.
        """
        fewest = math.ceil(size_bytes / longest_token_bytes) if longest_token_bytes else 0
        if fewest > self.longest_prompt:
            raise InvalidInput(
                f"the prompt has {size_bytes} bytes, which are at least {fewest} tokens; this model reads at most "
                f"{self.longest_prompt}",
                field="prompt",
            )

    def answer_tokens(self, prompt_tokens: int, asked: int | None) -> int:
        """Return how many tokens an answer may have.

        Args:
            asked: by the client; None takes what there is room for.

        Raises:
            InvalidInput: the prompt, the answer or both are too long; the message has both numbers.
        """
        if prompt_tokens > self.longest_prompt:
            raise InvalidInput(
                f"the prompt has {prompt_tokens} tokens; this model reads at most {self.longest_prompt}", field="prompt"
            )
        room = self.context_tokens - prompt_tokens
        most = room if self.max_output_tokens is None else min(room, self.max_output_tokens)
        if asked is None:
            return most
        if asked < 1:
            raise InvalidInput(f"max_tokens is {asked}; ask for at least 1", field="max_tokens")
        if self.max_output_tokens is not None and asked > self.max_output_tokens:
            raise InvalidInput(
                f"max_tokens is {asked}; an answer has at most {self.max_output_tokens}", field="max_tokens"
            )
        if asked > room:
            raise InvalidInput(
                f"the prompt has {prompt_tokens} tokens and max_tokens is {asked}, together "
                f"{prompt_tokens + asked}; this model has room for {self.context_tokens}",
                field="max_tokens",
            )
        return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One time by two clocks.

    Attributes:
        now: on the event loop's clock, for rates.
        at: in seconds since 1970, for days, which begin at midnight UTC.
    """

    now: float
    at: float

    @property
    def day(self) -> int:
        return int(self.at // _DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Tokens that a request may still take, and the day that pays for them."""

    tokens: int
    day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAccount:
    """What one tenant has spent and reserved.

    Attributes:
        bucket: tokens that the rate leaves; None without a rate.
        day: number of the day, since 1970, that ``spent`` is of.
        spent: tokens of requests of that day that have ended.
        open: reservations of requests that have not.
    """

    bucket: BucketState | None
    day: int
    spent: int = 0
    open: Mapping[str, Reservation] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuota:
    """What one tenant may spend; tokens are those of prompts and answers together.

    Attributes:
        per_minute: as a rate; as many may go at once. None has no limit.
        per_day: None has no limit.
    """

    per_minute: int | None = None
    per_day: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("per_minute", self.per_minute), ("per_day", self.per_day)):
            if value is not None and value < 1:
                raise ConfigError(f"tokens {name} is {value}; allow at least 1, or leave it out for no limit")

    def account(self, moment: Moment) -> TokenAccount:
        """Return an account of which nothing was spent."""
        return TokenAccount(bucket=self._bucket.full(moment.now) if self._bucket else None, day=moment.day)

    def resumed(self, account: TokenAccount, *, day: int, spent: int) -> TokenAccount:
        """Return an account with what was spent before its owner was started again. What is of a day before counts no
        more; a clock that stepped back stays in the day that had begun."""
        return replace(account, day=day, spent=max(spent, 0)) if day >= account.day else account

    def reserve(self, account: TokenAccount, request: str, tokens: int, moment: Moment) -> TokenAccount:
        """Set aside all that a request can take: its prompt and its longest answer.

        Args:
            request: names the reservation until it is settled.

        Raises:
            InvalidInput: more than could be reserved at any time. QuotaExceeded: more than is left now; the error says
                what is left, and when there is more. Conflict: the request has a reservation already.
        """
        if tokens < 0 or request in account.open:
            raise Conflict(f"request {request!r} asks for {tokens} tokens; a request reserves once, and not below 0")
        self._check_possible(tokens)
        account = _on_day(account, moment)
        left = self.left_today(account, moment)
        if tokens > left:
            raise QuotaExceeded(
                f"{tokens} tokens asked for (prompt and longest answer), {left} of {self.per_day} a day are left",
                limit=self.per_day or 0,
                remaining=int(left),
                reset_s=(account.day + 1) * _DAY_S - moment.at,
            )
        bucket = account.bucket
        if self._bucket and bucket:
            bucket, wait_s = self._bucket.take(bucket, tokens, moment.now)
            if wait_s > 0:
                remaining = max(0, int(bucket.tokens))
                raise QuotaExceeded(
                    f"{tokens} tokens asked for (prompt and longest answer), {remaining} of {self.per_minute} a minute "
                    "are left",
                    limit=self.per_minute or 0,
                    remaining=remaining,
                    reset_s=wait_s,
                )
        opened = {**account.open, request: Reservation(tokens=tokens, day=account.day)}
        return replace(account, bucket=bucket, open=MappingProxyType(opened))

    def settle(self, account: TokenAccount, request: str, used: int, moment: Moment) -> TokenAccount:
        """Count what a request took and give the rest back, also where its client went away. Settling again, or a
        request that reserved nothing, changes nothing.

        Args:
            used: tokens of the prompt, if it was begun, and of the answer so far; at most what was reserved counts.
        """
        reservation = account.open.get(request)
        if reservation is None:
            return account
        account = _on_day(account, moment)
        used = min(max(used, 0), reservation.tokens)
        bucket = account.bucket
        if self._bucket and bucket:
            refilled, _ = self._bucket.take(bucket, 0, moment.now)
            given_back = refilled.tokens + reservation.tokens - used
            bucket = replace(refilled, tokens=min(self._bucket.burst, given_back))
        rest = {name: one for name, one in account.open.items() if name != request}
        # a request that began yesterday is yesterday's
        spent = account.spent + (used if reservation.day == account.day else 0)
        return replace(account, bucket=bucket, spent=spent, open=MappingProxyType(rest))

    def left_today(self, account: TokenAccount, moment: Moment) -> float:
        """Return the tokens that may still be reserved today; infinite without a quota."""
        if self.per_day is None:
            return math.inf
        account = _on_day(account, moment)
        reserved = sum(one.tokens for one in account.open.values() if one.day == account.day)
        return max(0, self.per_day - account.spent - reserved)

    @property
    def _bucket(self) -> TokenBucket | None:
        if self.per_minute is None:
            return None
        return TokenBucket(rate=self.per_minute / _MINUTE_S, burst=self.per_minute)

    def _check_possible(self, tokens: int) -> None:
        for limit, span in ((self.per_minute, "a minute"), (self.per_day, "a day")):
            if limit is not None and tokens > limit:
                raise InvalidInput(
                    f"{tokens} tokens asked for (prompt and longest answer); this credential has {limit} {span}: "
                    "shorten the prompt, or ask for a shorter answer",
                    field="max_tokens",
                )


def _on_day(account: TokenAccount, moment: Moment) -> TokenAccount:
    """Begin a new day; a clock that steps back stays in the day that has begun."""
    return replace(account, day=moment.day, spent=0) if moment.day > account.day else account
