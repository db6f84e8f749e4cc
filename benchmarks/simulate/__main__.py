"""``python -m benchmarks.simulate``: what tests promise and see, a table a subject (``make simulate``).

A new subject is a module with a function that gives its table, and a row of ``SUBJECTS``. Every table is the same on
each run: seeds are fixed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from benchmarks.simulate import audit, clusters, files, fleet, gates, graded, groups, unreached

SUBJECTS: Mapping[str, Callable[[], str]] = {
    "audit": audit.table,
    "clusters": clusters.table,
    "files": files.table,
    "fleet": fleet.table,
    "gates": gates.table,
    "graded": graded.table,
    "groups": groups.table,
    "unreached": unreached.table,
}
"""By name: a function that runs the simulation and returns its table as Markdown."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; all when left out")
    asked = parser.parse_args().subjects or list(SUBJECTS)
    unknown = [name for name in asked if name not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    for name in asked:
        print(f"## {name}\n\n{SUBJECTS[name]()}\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
