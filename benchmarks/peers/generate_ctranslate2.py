"""Answers requests with CTranslate2, in static batches. Runs in an environment of its own and imports nothing of ours.

Gets one JSON argument: ``directory`` and ``threads``. Then a line of JSON on stdin is a group of requests, a list of
``[prompt ids, new tokens]``, and a line on stdout its answer: ``first_s``, seconds until each has its first token, and
``cpu_s``. A batch goes on until its longest answer has its end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ctranslate2


def main() -> None:
    job = json.loads(sys.argv[1])
    directory = Path(job["directory"])
    tokens = json.loads((directory / "vocabulary.json").read_text())
    generator = ctranslate2.Generator(str(directory), compute_type="int8", intra_threads=job["threads"])
    print("{}", flush=True)
    for line in sys.stdin:
        group = json.loads(line)
        prompts = [[tokens[id] for id in ids] for ids, _ in group]
        longest = max(new for _, new in group)
        first_s: list[float | None] = [None] * len(group)
        began, began_cpu = time.perf_counter(), time.process_time()

        def note(step: object, first_s: list[float | None] = first_s, began: float = began) -> bool:
            if first_s[step.batch_id] is None:
                first_s[step.batch_id] = time.perf_counter() - began
            return False

        found = generator.generate_batch(
            prompts,
            max_length=longest,
            min_length=longest,
            end_token=[],
            include_prompt_in_result=False,
            callback=note,
        )
        assert [len(each.sequences_ids[0]) for each in found] == [longest] * len(group)
        print(json.dumps({"first_s": first_s, "cpu_s": time.process_time() - began_cpu}), flush=True)


if __name__ == "__main__":
    main()
