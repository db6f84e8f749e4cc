"""Which waiting generations get a slot of an engine now, which are too late, and which that run are cut off.

A generation holds a slot and memory for its keys and values until it ends, so that memory, and not a number of
requests, is what admission counts. Pure: the caller owns engine, line and clock, and plans before each step. Decides
nothing about what may wait: that is :meth:`SlotLimits.refusal`'s, and the caller keeps to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import ConfigError, InvalidInput, PenstockError, QueueFull
from penstock.policy.batching import DEFAULT_LEVEL, LOWEST_LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """A generation that has no slot yet.

    Attributes:
        id: names it in a plan.
        prompt_tokens: that have to be computed before its first token.
        kv_bytes: memory that its prompt and its longest answer take.
        arrived_at: in seconds on the caller's clock.
        deadline: when its answer is of no use any more, on the same clock.
        priority: 1 highest, larger lower, 0 the default, as in ``penstock.policy.batching``.
    """

    id: str
    prompt_tokens: int
    kv_bytes: int
    arrived_at: float
    deadline: float = math.inf
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """A generation that has a slot.

    Attributes:
        has_begun: its first token is there, so that its prompt holds nobody up any more.
    """

    id: str
    prompt_tokens: int
    kv_bytes: int
    deadline: float = math.inf
    has_begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLimits:
    """What one engine may hold, and what may wait before it.

    Attributes:
        slots: generations that run at the same time.
        max_kv_bytes: of keys and values of those that run.
        max_waiting: generations without a slot.
        max_waiting_kv_bytes: of keys and values that those which wait will take.
        long_prompt_tokens: prompts of more tokens are long. While they are computed they get all slots but one, so that
            a short prompt never waits for more than a running answer.
        ageing_s: seconds of waiting that are worth one level of priority.
        overtaken_s: how long smaller generations may pass one for whose memory there is no room yet. After that nobody
            does, and it gets what the others leave.
        retry_after_s: what those are told who find no room.
    """

    slots: int
    max_kv_bytes: int
    max_waiting: int = 64
    max_waiting_kv_bytes: int = 2**40
    long_prompt_tokens: int = 512
    ageing_s: float = 1.0
    overtaken_s: float = 2.0
    retry_after_s: float = 1.0

    def __post_init__(self) -> None:
        if self.slots < 1 or self.max_waiting < 0 or self.max_kv_bytes < 0:
            raise ConfigError(
                f"slots ({self.slots}) must be at least 1, max_waiting ({self.max_waiting}) and max_kv_bytes "
                f"({self.max_kv_bytes}) must not be negative"
            )

    def refusal(self, kv_bytes: int, *, running: int, waiting: int, waiting_kv_bytes: int) -> PenstockError | None:
        """Refuse one more generation; None lets it wait. What can never run is not let in.

        Args:
            running: generations that hold a slot. As many as there are free slots wait for the next step only, and are
                not what the limits of the line are about.
        """
        if kv_bytes > self.max_kv_bytes:
            return InvalidInput(
                f"prompt and answer may take {kv_bytes} bytes of keys and values, and the engine has "
                f"{self.max_kv_bytes}; ask for fewer tokens",
                field="max_tokens",
            )
        in_line = waiting - (self.slots - running)
        if in_line < 0:
            return None
        if in_line >= self.max_waiting:
            return QueueFull(f"{in_line} generations wait, which is the limit", retry_after_s=self.retry_after_s)
        if waiting and waiting_kv_bytes + kv_bytes > self.max_waiting_kv_bytes:
            return QueueFull(
                f"generations that wait will take {waiting_kv_bytes} bytes of keys and values, and {kv_bytes} more are "
                f"over the limit of {self.max_waiting_kv_bytes}",
                retry_after_s=self.retry_after_s,
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """What to do before the next step.

    Attributes:
        admit: generations that get a slot, in this order.
        expire: generations that wait and are too late; never among ``admit``.
        cut: generations that run and are too late.
    """

    admit: tuple[str, ...]
    expire: tuple[str, ...]
    cut: tuple[str, ...]


def plan_slots(waiting: Sequence[Waits], running: Sequence[Runs], limits: SlotLimits, now: float) -> SlotPlan:
    """Choose who gets a slot: by priority with ageing, then by arrival, while slots and memory are there.

    What was cut counts as gone already. Long prompts leave a slot to short ones, and who does not fit in memory is
    passed for ``overtaken_s`` and by nobody after that, so that neither short nor long ones starve. Where nothing runs
    something is admitted, so that a line never stands still before an idle engine.
    """
    cut = tuple(run.id for run in running if run.deadline <= now)
    expire = tuple(wait.id for wait in waiting if wait.deadline <= now)
    staying = [run for run in running if run.deadline > now]
    free_slots = limits.slots - len(staying)
    free_bytes = limits.max_kv_bytes - sum(run.kv_bytes for run in staying)
    long_slots = max(1, limits.slots - 1) - sum(_is_long(run, limits) and not run.has_begun for run in staying)
    admit: list[str] = []
    for wait in _in_order([wait for wait in waiting if wait.deadline > now], limits):
        if not free_slots:
            break
        if _is_long(wait, limits) and long_slots <= 0:
            continue  # its turn comes when a long one before it has its first token; short ones need the slot till then
        if wait.kv_bytes > free_bytes:
            if now - wait.arrived_at >= limits.overtaken_s:
                break
            continue
        admit.append(wait.id)
        free_slots -= 1
        free_bytes -= wait.kv_bytes
        long_slots -= _is_long(wait, limits)
    return SlotPlan(admit=tuple(admit), expire=expire, cut=cut)


def _is_long(item: Waits | Runs, limits: SlotLimits) -> bool:
    return item.prompt_tokens > limits.long_prompt_tokens


def _in_order(waiting: Sequence[Waits], limits: SlotLimits) -> list[Waits]:
    # arrival shifted by the level: a fixed key, so ageing needs no clock; sorting is stable among equals
    return sorted(waiting, key=lambda wait: wait.arrived_at + _level(wait.priority) * limits.ageing_s)


def _level(priority: int) -> int:
    return DEFAULT_LEVEL if priority == 0 else min(max(priority, 1), LOWEST_LEVEL)
