"""Answers that are no classes: the device scores, keeps and audits them as they were certified."""

from __future__ import annotations

from pathlib import Path

from edge_agent.settings import CascadeSettings
from penstock.policy.decoding import Decoding
from penstock.wire.outcomes import OutcomeCounts
from tests.edge_agent.datapath import certificate, data_path, load_plan, rows, running_cloud, variant_spec

ALL, ONE, UNSURE = [9.0, 9.0, 9.0], [9.0, -9.0, -9.0], [0.1, 9.0, 9.0]
EVERY = CascadeSettings(audit_share=1.0)


async def test_sets_of_labels_are_kept_by_their_least_sure_and_audited_as_sets(tmp_path: Path) -> None:
    """The cloud's logits are 100 higher: it finds all three labels, as the first row does and the second does not."""
    certified = certificate(score="part_min", threshold=0.9)
    async with running_cloud() as cloud:
        plan = load_plan(tmp_path, certified=certified, spec=variant_spec(decoding=Decoding(form="labels")))
        async with data_path(tmp_path, cloud.target, plan=plan, cascade=EVERY, random=lambda: 0.5) as path:
            answer = await path.infer(rows(ALL, UNSURE))
            assert answer.parameters["served_by"] == "mixed"
            await path.infer(rows(ALL))
            await path.dataplane.auditor.rest()
            assert path.hosted.counts == OutcomeCounts(kept=2, escalated=1, audited=3)
            await path.infer(rows(ONE))
            await path.dataplane.auditor.rest()
            assert path.hosted.counts == OutcomeCounts(kept=3, escalated=1, audited=4, audit_harm=1)
