"""Decides which version the death of a process counts against, over all models of a device.

Each model knows its own open trial (``edge_agent.policy.model_state``). Where several models had one, the death names
nobody: it counts against none, and the next process has them on trial one at a time, so that the next death names its
model. Making them wait for each other is the work of ``edge_agent.updates.turns``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_agent.policy import model_state
from edge_agent.policy.model_state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The states with which a process begins.

    Attributes:
        order: models in the order in which they are on trial, one at a time; empty where they need not take turns.
    """

    states: tuple[ModelState, ...]
    order: tuple[str, ...] = ()


def judge(states: Iterable[ModelState], boot_id: str) -> Judged:
    """Judge the trials that the process before left open.

    Committed versions come first in the order, since they are under suspicion only while they are loaded; then what has
    the most deaths against it: it is the likeliest to be the one, and the others are served the sooner.
    """
    found = tuple(states)
    suspects = {state.model for state in found if model_state.has_died(state, boot_id)}
    judged = tuple(model_state.begin_boot(state, boot_id, counts=len(suspects) == 1) for state in found)
    if not suspects:
        return Judged(states=judged)
    ordered = sorted(judged, key=lambda state: (not state.is_committed, -_deaths(state), state.model))
    return Judged(states=judged, order=tuple(state.model for state in ordered))


def _deaths(state: ModelState) -> int:
    return sum(trial.starts for trial in state.trials)
