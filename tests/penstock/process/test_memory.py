from __future__ import annotations

import threading

from penstock.process.memory import Trimmer
from tests.waiting import wait_until


def test_all_that_ask_before_it_trims_share_one_trim() -> None:
    trims: list[int] = []
    go = threading.Event()

    def trim() -> None:
        trims.append(1)
        go.wait()

    trimmer = Trimmer(trim, after_s=0.01)
    trimmer.ask()
    wait_until("the first trim", lambda: trims)
    for _ in range(3):
        trimmer.ask()  # what is freed while one trims is another one's
    wait_until("the second trim", lambda: len(trims) == 2)
    go.set()
    assert len(trims) == 2
