"""Do several agents report under one device id? A data directory that was copied is two devices with one name.

An agent names its data directory (the *instance*; a copy that it can tell for one gets a new name) and its process (the
*run*). A restart is one voice that ends and another that begins. Two agents are two voices that alternate: only who
speaks again after another has spoken is certain to be alive beside it. Once is not enough, because the last report of a
process that was killed may arrive after the first of the next one; twice is, because an agent waits for each answer.

Decides from values; ``cloud_core.fleet.devices`` keeps them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

_RETURNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """Holds who reports under a device id.

    Attributes:
        run: the process; "" for an agent that names none, of which several cannot be told apart.
        instance: the data directory that it named last.
        first_at: when it was heard first, in seconds, and ``last_at`` when last.
        returns: how often it spoke again after another had spoken.
    """

    run: str
    instance: str
    first_at: float
    last_at: float
    returns: int = 0


def heard(
    voices: tuple[Voice, ...], *, run: str, instance: str, at: float, window_s: float, most: int
) -> tuple[Voice, ...]:
    """Return the voices of a device after a report; who spoke last is the last.

    Args:
        window_s: a voice that was silent for longer is forgotten.
        most: voices that are kept; newcomers beyond are not noted until there is room.
    """
    if len(voices) == 1 and voices[0].run == run:  # of nearly every heartbeat
        return (replace(voices[0], instance=instance, last_at=at, returns=0),)
    kept = [voice for voice in voices if at - voice.last_at <= window_s]
    mine = next((voice for voice in kept if voice.run == run), None)
    if mine is None:
        if len(kept) < most:
            kept.append(Voice(run=run, instance=instance, first_at=at, last_at=at))
    else:
        is_return = kept[-1] is not mine
        kept.remove(mine)
        kept.append(replace(mine, instance=instance, last_at=at, returns=mine.returns + is_return))
    if len(kept) == 1:  # nobody else is left: what it returned from is over
        return (replace(kept[0], returns=0),)
    return tuple(kept)


def live(voices: tuple[Voice, ...], *, at: float, window_s: float) -> tuple[Voice, ...]:
    """Return the agents that report under the id; one, unless it is certain that there are more."""
    recent = tuple(voice for voice in voices if at - voice.last_at <= window_s)
    if not any(voice.returns >= _RETURNS for voice in recent):
        return recent[-1:]
    return tuple(voice for voice in recent if voice.returns or voice is recent[-1])


def must_renew(agents: tuple[Voice, ...], run: str) -> bool:
    """Say whether a live agent has to take a new instance: another one, heard before it, has the same, and has spoken
    since: who has not may be the process that this one follows.
    """
    mine = next((voice for voice in agents if voice.run == run), None)
    if mine is None or not mine.instance:
        return False
    rivals = [v for v in agents if v.instance == mine.instance and (v is mine or v.last_at > mine.first_at)]
    return min(rivals, key=lambda voice: (voice.first_at, voice.run)) is not mine


def agents_by_instance(agents: tuple[Voice, ...]) -> Counter[str]:
    """Count the live agents of each instance."""
    return Counter(voice.instance for voice in agents)


def to_forget(known: dict[str, float], *, newcomer: str, alive: frozenset[str], most: int) -> tuple[str, ...] | None:
    """Say which instances make room for another one; None when all of them are alive.

    Args:
        known: when each of them delivered last.
        alive: those that report now.
    """
    over = len(known.keys() | {newcomer}) - most
    if newcomer in known or over <= 0:
        return ()
    old = sorted((name for name in known if name not in alive), key=lambda name: (known[name], name))
    return tuple(old[:over]) if len(old) >= over else None
