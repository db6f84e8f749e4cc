"""``python -m benchmarks.planner``: what planning costs a request where thousands wait.

Beside it, what a planner costs that looks at everything each time.

No server and no model: a line of requests is drained batch by batch, while as many come as go. Prints microseconds a
request.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

from penstock.policy.batch_line import BatchLine
from penstock.policy.batching import BatchLimits, Queued, Room
from penstock.policy.fair_shares import FairShares
from tests.penstock.policy.plain_planner import plan_batch

MIXES = {
    "one kind": (1, 1, 1),
    "priorities": (3, 1, 1),
    "keys": (1, 16, 1),
    "priorities and keys": (3, 16, 1),
    "every request a key": (1, 10**6, 1),
    "priorities, keys, tenants": (3, 16, 8),
}
Drain = Callable[[Sequence[Queued], BatchLimits, int], float]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--batches", type=int, default=60, help="to plan for each figure (default 60)")
    options = parser.parse_args()
    print(f"{'microseconds a request':28}{'waiting':>8}{'line':>10}{'plain':>10}")
    for name, (priorities, keys, tenants) in MIXES.items():
        for waiting in (64, 4096):
            limits = BatchLimits(max_rows=32, max_queue_rows=waiting)
            queue = _requests(2 * waiting + 32 * options.batches, priorities, keys, tenants)
            line = _line_s(queue, limits, waiting, options.batches, has_shares=tenants > 1)
            plain = _plain_s(queue, limits, waiting, min(options.batches, 20))
            print(f"{name:28}{waiting:8}{1e6 * line:10.2f}{1e6 * plain:10.2f}")
    return 0


def _requests(n: int, priorities: int, keys: int, tenants: int) -> list[Queued]:
    draw = random.Random(1)
    return [
        Queued(
            rows=1,
            arrived_at=i * 1e-4,
            deadline=1e3 + i * 1e-4 + draw.random(),
            priority=draw.randrange(priorities),
            shape_key=draw.randrange(keys),
            tenant=f"tenant {draw.randrange(tenants)}",
        )
        for i in range(n)
    ]


def _line_s(queue: Sequence[Queued], limits: BatchLimits, waiting: int, batches: int, *, has_shares: bool) -> float:
    line: BatchLine[Queued] = BatchLine(limits, Room(10**9), FairShares() if has_shares else None)
    coming = iter(queue)
    for _ in range(waiting):
        line.add(next(coming))
    began, done = time.process_time(), 0
    for _ in range(batches):
        gone = len(line.take(limits, 1.0, row_s=1e-4).dispatch)
        done += gone
        for _ in range(gone):
            line.add(next(coming))
    return (time.process_time() - began) / done


def _plain_s(queue: Sequence[Queued], limits: BatchLimits, waiting: int, batches: int) -> float:
    line, at = list(queue[:waiting]), waiting
    began, done = time.process_time(), 0
    for _ in range(batches):
        gone = set(plan_batch(line, limits, 1.0).dispatch)
        done += len(gone)
        line = [item for i, item in enumerate(line) if i not in gone]
        line += queue[at : at + len(gone)]
        at += len(gone)
    return (time.process_time() - began) / done


if __name__ == "__main__":
    raise SystemExit(main())
