from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.memory import MemoryLimit

LIMIT = MemoryLimit(max_bytes=1000, setting="some.setting")


def test_what_does_not_fit_beside_the_others_is_refused_with_the_setting_and_a_hint() -> None:
    assert LIMIT.refusal(400, held=600) is None
    refused = LIMIT.refusal(401, held=600, retry_after_s=1.5)
    assert refused is not None
    assert refused.retry_after_s == 1.5
    assert refused.reason == "rejected-memory"
    assert "600 bytes are in flight and 401 more do not fit" in refused.message
    assert "some.setting" in refused.message


def test_one_model_or_tenant_leaves_room_for_the_others() -> None:
    for whose in ("held_by_model", "held_by_tenant"):
        assert LIMIT.refusal(200, held=300, **{whose: 300}) is None
        refused = LIMIT.refusal(201, held=300, **{whose: 300})
        assert refused is not None
        assert "what others left free of 1000" in refused.message
        assert LIMIT.refusal(101, held=700, **{whose: 100}) is not None
        assert LIMIT.refusal(300, held=700, **{whose: 0}) is None


def test_a_request_that_could_never_fit_runs_when_nothing_else_does() -> None:
    assert LIMIT.refusal(5000, held=0) is None
    assert LIMIT.refusal(5000, held=1) is not None
    assert LIMIT.refusal(700, held=200, held_by_model=0) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 1500), st.booleans())))
def test_the_limit_is_passed_by_a_lone_request_only(steps: list[tuple[str, int, bool]]) -> None:
    held: dict[str, list[int]] = {"a": [], "b": []}
    for model, asked, leaves in steps:
        if leaves and held[model]:
            held[model].pop()
        total = sum(map(sum, held.values()))
        if LIMIT.refusal(asked, held=total, held_by_model=sum(held[model])) is None:
            held[model].append(asked)
            assert total + asked <= 1000 or total == 0
            assert sum(held[model]) <= 500 or len(held[model]) == 1
