"""The audit of kept answers: what is drawn, what counts, and what happens when the promise does not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np

from edge_agent.policy.cascade import CascadeMode
from edge_agent.settings import CascadeSettings, EscalationSettings, LimitsSettings
from penstock.wire.outcomes import OutcomeCounts
from tests.edge_agent.datapath import (
    CLOUD,
    MODEL,
    OTHER_CLOUD,
    SURE,
    UNSURE,
    Rows,
    certificate,
    data_path,
    load_plan,
    rows,
    running_cloud,
)

EVERY = CascadeSettings(audit_share=1.0)


def disagreeing(x: Rows) -> Rows:
    """The cloud names another class than the device, for every row."""
    return np.asarray(-x, dtype=np.float32)


async def test_kept_rows_that_are_drawn_go_up_in_the_background_and_are_compared(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, cascade=EVERY, random=lambda: 0.5) as path:
        answer = await path.infer(rows(SURE, SURE))
        assert answer.parameters["reason"] == "confident"  # nobody waits for the audit
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(kept=2, audited=2)
        assert cloud.seen_rows == [2]
        assert cloud.calls[0].parameters["priority"].int64_param == 9


async def test_draws_of_several_requests_share_a_call(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target, cascade=EVERY, random=lambda: 0.5) as path:
        for _ in range(5):
            await path.infer(rows(SURE))
        await path.dataplane.auditor.rest()
        assert cloud.seen_rows == [5]


async def test_the_share_decides_who_is_drawn(tmp_path: Path) -> None:
    numbers = iter([0.009, 0.5, 0.011, 0.0, 0.01])
    cascade = CascadeSettings(audit_share=0.01)
    async with (
        running_cloud() as cloud,
        data_path(tmp_path, cloud.target, cascade=cascade, random=lambda: next(numbers)) as path,
    ):
        await path.infer(rows(SURE, SURE, SURE, SURE, SURE))
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(kept=5, audited=2)


async def test_a_drawn_row_that_was_escalated_anyway_counts_without_harm_and_without_a_call(tmp_path: Path) -> None:
    async with (
        running_cloud(answer=disagreeing) as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, random=lambda: 0.5) as path,
    ):
        await path.infer(rows(UNSURE))
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(escalated=1, audited=1)
        assert len(cloud.calls) == 1


async def test_a_drawn_row_that_was_neither_kept_nor_escalated_takes_the_way_of_kept_ones(tmp_path: Path) -> None:
    """Else a budget would leave only kept rows in the evidence, whose harm is a larger share of them."""
    escalation = EscalationSettings(rate_rows_per_s=0.001, burst_rows=1)
    async with (
        running_cloud(answer=disagreeing) as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, escalation=escalation, random=lambda: 0.5) as path,
    ):
        await path.infer(rows(UNSURE, UNSURE))
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(escalated=1, unreachable=1, audited=2, audit_harm=0)


async def test_harm_above_the_promise_ends_keeping_for_this_artifact_and_says_why(tmp_path: Path) -> None:
    async with (
        running_cloud(answer=disagreeing) as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, random=lambda: 0.5) as path,
    ):
        sent = 0
        while path.hosted.mode is CascadeMode.CASCADE:
            await path.infer(rows(SURE))
            await path.dataplane.auditor.rest()
            sent += 1
            assert sent < 10, "six harmful answers in a row refute a promise of 2%"
        counts = path.hosted.counts
        assert counts == OutcomeCounts(kept=sent, audited=sent, audit_harm=sent)
        assert "more harm than was certified" in path.hosted.mode_why
        answer = await path.infer(rows(SURE))
        assert (answer.parameters["served_by"], answer.parameters["reason"]) == ("cloud", "cloud_only")
        await path.dataplane.auditor.rest()
        assert path.hosted.counts.audited == sent  # nothing is kept, so there is nothing left to watch
        assert path.outcomes.drain()[0].counts.audit_harm == sent


async def test_a_crossed_audit_stays_crossed_after_a_restart(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        again = await path.hosting.prepare(
            load_plan(tmp_path, certified=certificate(), digest="sha256:" + "b" * 64, version="v2"),
            counts=OutcomeCounts(kept=20, audited=20, audit_harm=10),
        )
        assert again.mode is CascadeMode.CLOUD_ONLY
        await path.hosting.retire(again)


async def test_an_alarm_belongs_to_artifact_certificate_and_level(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        path.hosted.note_audit(audited=20, harm=10)
        found = path.hosted.audit
        assert found is not None
        assert found.has_alarmed
        same = await path.hosting.prepare(load_plan(tmp_path, certified=certificate()), audits=(found,))
        assert same.mode is CascadeMode.CLOUD_ONLY
        recertified = replace(load_plan(tmp_path, certified=certificate()), certificate_digest="sha256:" + "1" * 64)
        another = await path.hosting.prepare(recertified, audits=(found,))
        assert another.mode is CascadeMode.CASCADE
        for hosted in (same, another):
            await path.hosting.retire(hosted)


async def test_twenty_thousand_good_audits_do_not_hide_a_change(tmp_path: Path) -> None:
    """Added up from the first day, 4,110 audits with a fifth of them harmful would be needed here."""
    async with data_path(tmp_path) as path:
        for _ in range(2_000):
            path.hosted.note_audit(audited=10, harm=0)
        audits = 0
        while path.hosted.mode is CascadeMode.CASCADE:
            path.hosted.note_audit(audited=5, harm=1)
            audits += 5
            assert audits < 150


async def test_harm_within_the_promise_changes_nothing(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        path.hosted.note_audit(audited=1000, harm=20)
        assert path.hosted.mode is CascadeMode.CASCADE


async def test_an_audit_by_another_version_is_not_counted(tmp_path: Path) -> None:
    async with (
        running_cloud(answer=disagreeing, variant=OTHER_CLOUD) as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, random=lambda: 0.5) as path,
    ):
        await path.infer(rows(SURE))
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(kept=1)
        assert path.hosted.mode is CascadeMode.ESCALATE_ALL
        cloud.variant = CLOUD
        await path.infer(rows(UNSURE))
        assert path.hosted.mode is CascadeMode.CASCADE


async def test_an_audit_that_does_not_get_through_is_not_counted(tmp_path: Path) -> None:
    for switches in ({"failure": grpc.StatusCode.UNAVAILABLE}, {"answer": lambda x: x * np.nan}):
        async with (
            running_cloud(**switches) as cloud,
            data_path(tmp_path, cloud.target, cascade=EVERY, random=lambda: 0.5) as path,
        ):
            await path.infer(rows(SURE))
            await path.dataplane.auditor.rest()
            assert len(cloud.calls) == 1
            assert path.hosted.counts == OutcomeCounts(kept=1)


async def test_nothing_is_drawn_while_the_cloud_is_out_of_reach_or_the_queue_is_full(tmp_path: Path) -> None:
    escalation = EscalationSettings(max_queue_rows=2, breaker_open_s=60.0)
    async with (
        running_cloud() as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, escalation=escalation, random=lambda: 0.5) as path,
    ):
        for _ in range(5):
            await path.infer(rows(SURE))  # the auditor had no turn yet
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(kept=5, audited=2)
        cloud.failure = grpc.StatusCode.UNAVAILABLE
        for _ in range(3):
            await path.infer(rows(UNSURE))
        await path.dataplane.auditor.rest()
        calls = len(cloud.calls)
        await path.infer(rows(SURE))
        await path.dataplane.auditor.rest()
        assert len(cloud.calls) == calls


async def test_nothing_is_drawn_while_what_was_drawn_takes_its_share_of_memory(tmp_path: Path) -> None:
    limits = LimitsSettings(max_inflight_bytes=4 * 2 * rows(SURE).nbytes)
    async with (
        running_cloud() as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, limits=limits, random=lambda: 0.5) as path,
    ):
        for _ in range(2):  # what was carried out makes room again
            for _ in range(5):
                await path.infer(rows(SURE))  # the auditor had no turn yet
            await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(kept=10, audited=4)


async def test_an_uncertified_model_is_not_audited(tmp_path: Path) -> None:
    async with (
        running_cloud() as cloud,
        data_path(tmp_path, cloud.target, cascade=EVERY, is_certified=False, random=lambda: 0.5) as path,
    ):
        await path.infer(rows(SURE))
        await path.dataplane.auditor.rest()
        assert path.hosted.counts == OutcomeCounts(escalated=1)
        assert [call.model_name for call in cloud.calls] == [MODEL]
