"""Whatever is admitted, cancelled, verified and stepped in any order, each request gets the tokens it gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.errors import QueueFull
from penstock.generation.values import GenerationRequest, Options, SampledToken, Sampling
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.slots import SlotEngine, load
from tests.penstock.runtime.generation.references import MODELS, references

SLOTS, CHUNK, NEW = 3, 32, 12
ROWS = references("edge-fp32")
CHOICES = Options(ids=((300, 301), (300,), (7, 8, 9), (512,), tuple(range(20, 60))), end_ids=(1, 2))
NOISE = 2e-3  # of the log-probability of forty tokens
DRAWN = Sampling(temperature=0.6, top_p=0.9, seed=11)


@cache
def _engine(slots: int) -> SlotEngine:
    return load(MODELS / "edge-fp32", GenerationOptions(slots=slots, chunk_tokens=CHUNK))


@cache
def _alone(row: int, *, is_drawn: bool) -> Sequence[int]:
    """Return the tokens of a request that has an engine to itself; of greedy ones, up to the first near tie."""
    if not is_drawn:
        return ROWS[row].new[: min(ROWS[row].sure, NEW)]
    engine = _engine(1)
    engine._forget()
    engine.admit(_request("alone", row, is_drawn=is_drawn))
    said: list[int] = []
    while engine.running:
        said += [token.token for token in engine.step()]
    return said


@cache
def _scores(row: int) -> Sequence[float]:
    """Return what a request with options is told when it has an engine to itself."""
    engine = _engine(1)
    engine._forget()
    engine.admit(_choosing("alone", row))
    while engine.running:
        said = engine.step()
    return said[-1].options


def _choosing(name: str, row: int) -> GenerationRequest:
    return GenerationRequest(
        id=name, prompt_ids=ROWS[row].ids, max_new_tokens=CHOICES.longest, options=CHOICES
    )  # fmt: skip


def _request(name: str, row: int, *, is_drawn: bool) -> GenerationRequest:
    sampling = DRAWN if is_drawn else Sampling()
    return GenerationRequest(
        id=name, prompt_ids=ROWS[row].ids, max_new_tokens=NEW, ignore_end=True, sampling=sampling
    )  # fmt: skip


class Company(RuleBasedStateMachine):
    """``running``: row of the references, how it is drawn, and the tokens so far, by the request's id; ``choosing``:
    the row of those that choose among options."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = _engine(SLOTS)
        self.engine._forget()
        self.running: dict[str, tuple[int, bool, list[int]]] = {}
        self.choosing: dict[str, int] = {}
        self.count = 0

    @initialize()
    def begin(self) -> None:
        assert self.engine.running == 0

    @rule(row=st.integers(0, len(ROWS) - 1), is_drawn=st.booleans())
    def admit(self, row: int, is_drawn: bool) -> None:
        self.count += 1
        request = _request(f"r{self.count}", row, is_drawn=is_drawn)
        if len(self.running) + len(self.choosing) == SLOTS:
            with pytest.raises(QueueFull):
                self.engine.admit(request)
            return
        self.engine.admit(request)
        self.running[request.id] = (row, is_drawn, [])

    @precondition(lambda self: len(self.running) + len(self.choosing) < SLOTS)
    @rule(row=st.integers(0, len(ROWS) - 1))
    def choose(self, row: int) -> None:
        self.count += 1
        request = _choosing(f"c{self.count}", row)
        self.engine.admit(request)
        self.choosing[request.id] = row

    @precondition(lambda self: self.running or self.choosing)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({**self.running, **self.choosing})))
        assert self.engine.cancel(name)
        self.running.pop(name, None)
        self.choosing.pop(name, None)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._hear(self.engine.step())

    @precondition(lambda self: any(said for _, _, said in self.running.values()))
    @rule(data=st.data(), length=st.integers(0, 4), wrong_at=st.integers(0, 5))
    def verify(self, data: st.DataObject, length: int, wrong_at: int) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, (_, _, said) in self.running.items() if said)))
        row, is_drawn, said = self.running[name]
        draft = list(_alone(row, is_drawn=is_drawn)[len(said) : len(said) + length])
        if wrong_at < len(draft):
            draft[wrong_at] = (draft[wrong_at] + 1) % 1024
        self._hear(self.engine.verify(name, draft))

    @invariant()
    def as_many_run_as_were_admitted_and_have_not_ended(self) -> None:
        assert self.engine.running == len(self.running) + len(self.choosing)

    def _hear(self, tokens: Sequence[SampledToken]) -> None:
        for token in tokens:
            if token.request in self.choosing:
                if token.finish is not None:
                    assert token.options == pytest.approx(_scores(self.choosing.pop(token.request)), abs=NOISE)
                continue
            row, is_drawn, said = self.running[token.request]
            said.append(token.token)
            expected = _alone(row, is_drawn=is_drawn)
            assert said[: len(expected)] == list(expected[: len(said)])
            assert token.cached_tokens < len(ROWS[row].ids)
            if token.finish is not None:
                assert len(said) == NEW
                del self.running[token.request]


TestCompany = Company.TestCase
TestCompany.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
