"""What grades kept answers for the audit of a promise about somebody's opinion: the metric, if this device has it.

Owns that it is the very function that the certificate names (by the digest of its source), that it runs in a thread
that nobody waits for, and that what goes wrong in it is told. An artifact holds no code: whoever runs the device put
the function there, and named it. Without it nothing watches the promise, and this says so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from penstock.artifact.certificates import Certificate, Opinion
from penstock.errors import InvalidInput, PenstockError
from penstock.hosting.generation.text_metric import TextMetric
from penstock.process import telemetry

SETTING = "cascade.metric_of"
LARGEST_HARM = 1.0
_LOG = logging.getLogger(__name__)


class Grader:
    """Grades for one model.

    Attributes:
        problem: why kept answers cannot be graded, so that no audit is made; "" where they can, or need not be.
        unavailable: audits that were drawn, and not made for that.
    """

    def __init__(self, model: str, metric: TextMetric | None = None, *, problem: str = "") -> None:
        self._model, self._metric = model, metric
        self.problem, self.unavailable = problem, 0

    def __repr__(self) -> str:
        return f"Grader({self._metric!r}, problem={self.problem!r})"

    async def harm(self, prompt: str, kept: str, cloud: str, *, timeout_s: float) -> float | None:
        """Say how harmful a kept answer is, from 0 to 1: what it lacks, graded by the cloud's answer.

        An answer that the metric fails on is as harmful as can be: leaving it out would let only those count that it
        likes. A metric that gives no answer in time is never asked again, since a thread cannot be ended.

        Returns:
            None where nothing grades it.
        """
        metric = self._metric
        if metric is None or self.problem:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                grade = await _in_thread(lambda: metric.grade(prompt, kept, cloud, where="a kept answer"))
        except PenstockError as error:
            telemetry.log(_LOG, logging.WARNING, "metric failed; the answer counts as harm", model=self._model,
                          why=error.message)  # fmt: skip
            return LARGEST_HARM
        except TimeoutError:
            self._give_up(f"{metric.opinion.metric} gave no grade within {timeout_s:g} s and is asked no more")
            return None
        return 1 - grade

    def _give_up(self, why: str) -> None:
        self.problem = _unwatched(why)
        telemetry.log(_LOG, logging.ERROR, "promise is not watched", model=self._model, why=self.problem)


def grader_for(model: str, certificate: Certificate | None, named: str, *, base: Path | None = None) -> Grader:
    """Find what grades a model's kept answers; imports the function, which may take its time.

    Args:
        named: the function that this device has for it, ``module:function`` or ``file.py:function``; "" for none.
        base: what paths are relative to; None for the working directory.
    """
    opinion = None if certificate is None else certificate.opinion
    if opinion is None:
        return Grader(model)
    metric, problem = _found(opinion, model, named, base or Path())
    if problem:
        problem = _unwatched(problem)
        telemetry.log(_LOG, logging.WARNING, "promise is not watched", model=model, why=problem)
    return Grader(model, metric, problem=problem)


def _found(opinion: Opinion, model: str, named: str, base: Path) -> tuple[TextMetric | None, str]:
    if not named:
        return None, f"the promise is about what {opinion.words()} says, and {SETTING} names no such function here"
    try:
        metric = TextMetric.load(named, base, setting=SETTING)
    except InvalidInput as error:
        return None, error.message
    have = metric.opinion
    if (have.function, have.digest) != (opinion.function, opinion.digest):
        return None, (
            f"{SETTING} names {named} with source {have.digest} for {model!r}, and the certificate is about "
            f"{opinion.metric} with source {opinion.digest}; copy the file that was compiled with"
        )
    return metric, ""


def _unwatched(why: str) -> str:
    return f"nothing on this device watches the promise: {why}"


async def _in_thread(call: Callable[[], float]) -> float:
    """Wait for a call in a thread of its own; one that never ends keeps nobody from stopping."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[float] = loop.create_future()

    def settle(result: float | BaseException) -> None:
        if done.done():  # nobody waits any more
            return
        if isinstance(result, BaseException):
            done.set_exception(result)
        else:
            done.set_result(result)

    def run() -> None:
        result: float | BaseException
        try:
            result = call()
        except BaseException as error:
            result = error  # raised where it is waited for
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:  # the loop was closed meanwhile
            return

    threading.Thread(target=run, name="metric", daemon=True).start()
    return await done
