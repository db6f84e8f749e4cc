from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.garbage import KINDS, Kind, Stored, sort_out

KEEP_S: dict[Kind, float] = {"blob": 100.0, "temporary": 100.0, "upload": 50.0}


def stored(name: str, kind: Kind = "blob", *, touched_at: float = 0.0, is_needed: bool = False) -> Stored:
    return Stored(kind=kind, name=name, size_bytes=1, touched_at=touched_at, is_needed=is_needed)


def names(found: tuple[Stored, ...]) -> list[str]:
    return [one.name for one in found]


def test_what_nothing_refers_to_is_garbage_once_a_push_has_had_its_time() -> None:
    found = [stored("needed", is_needed=True), stored("old"), stored("young", touched_at=1.0)]
    plan = sort_out(found, KEEP_S, now=101.0)
    assert names(plan.garbage) == ["old"]
    assert names(plan.young) == ["young"]


def test_each_kind_has_its_own_limit() -> None:
    plan = sort_out([stored("b"), stored("u", "upload"), stored("t", "temporary")], KEEP_S, now=60.0)
    assert names(plan.garbage) == ["u"]
    assert names(plan.young) == ["b", "t"]


def test_a_clock_that_was_set_back_keeps_what_it_finds() -> None:
    assert sort_out([stored("from the future", touched_at=1e9)], KEEP_S, now=0.0).garbage == ()


TIMES = st.floats(0.0, 1000.0)


@given(
    st.lists(st.builds(Stored, kind=st.sampled_from(KINDS), name=st.text(max_size=3), size_bytes=st.just(1),
                       touched_at=TIMES, is_needed=st.booleans())),
    TIMES,
    TIMES,
)  # fmt: skip
def test_needed_things_stay_and_time_alone_makes_garbage(found: list[Stored], now: float, later_s: float) -> None:
    plan = sort_out(found, KEEP_S, now)
    assert sorted(map(id, (*plan.garbage, *plan.young))) == sorted(id(one) for one in found if not one.is_needed)
    assert all(now - one.touched_at > KEEP_S[one.kind] for one in plan.garbage)
    after = sort_out(found, KEEP_S, now + later_s)
    assert {id(one) for one in plan.garbage} <= {id(one) for one in after.garbage}
