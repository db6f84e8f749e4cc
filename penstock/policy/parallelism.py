"""How many threads a run of a model gets, and how many instances of it fill the machine. Plain functions of values.

One request alone gets as many threads as make it faster; instances fill what is left. Measured is one row: what a lone
caller waits for.
"""

from __future__ import annotations

WORTH_SHARING_S = 0.001
"""A shorter run gains less from more threads than handing its parts to them costs."""

MAX_INSTANCES = 8
"""Each instance has the weights in memory again. Models for which one thread is enough are short: eight of them answer
faster than a Python process can ask."""

_GAIN = 0.85  # of the time before: with less to gain, the threads do more for other requests


def thread_counts(cpus: int) -> list[int]:
    """List the numbers of threads to try after 1, each only if the one before it was worth it: 2, 4, 8, up to all."""
    counts = []
    threads = 2
    while threads < cpus:
        counts.append(threads)
        threads *= 2
    return [*counts, cpus] if cpus > 1 else []


def is_worth_it(before_s: float, after_s: float) -> bool:
    """Say whether one row, ``before_s`` until now, is so much faster with more threads that they should be spent."""
    return after_s <= _GAIN * before_s


def instances(cpus: int, threads: int) -> int:
    """Say how many instances of ``threads`` each fill ``cpus``, between 1 and ``MAX_INSTANCES``."""
    return max(1, min(cpus // threads, MAX_INSTANCES))
