"""A core with PostgreSQL: what goes on while the database is away, what is refused, and what is there afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from cloud_core.app import Core
from cloud_core.state import Database
from penstock.errors import DatabaseAway, Internal, Unavailable
from penstock.sdk.aio import AsyncClient
from tests.cloud_core.rig import core_settings, onnx_layout, push_to, start_core
from tests.postgresql import postgresql

ROWS = {"x": np.ones((2, 4), np.float32)}


async def test_inference_goes_on_while_the_database_is_away_and_pushes_wait_until_it_is_back(tmp_path: Path) -> None:
    with postgresql() as server:
        url = server.new_database("penstock")
        core = await start_core(tmp_path, database=url)
        try:
            target = f"http://127.0.0.1:{core.http_port}"
            async with AsyncClient(target) as client:
                before = await client.infer("mlp", ROWS)
                server.stop()
                after = await client.infer("mlp", ROWS)
                assert np.array_equal(after.outputs["logits"], before.outputs["logits"])
                second = onnx_layout(tmp_path, "v2", seed=2)
                with pytest.raises(Unavailable, match=r"postgresql://penstock@127.0.0.1:\d+/penstock: .*try again"):
                    await push_to(core, second)
                assert core.plane.is_ready
                server.start()
                await push_to(core, second)
                assert (await client.infer("mlp", ROWS, version="v2")).version == "v2"
        finally:
            assert await core.stop()
        assert not (tmp_path / "core" / "core.db").exists()
        again = await Core.start(core_settings(tmp_path / "core", database=url))
        assert [one.version for one in again.plane.controller.index()] == ["v1", "v2"]
        await again.stop()


async def test_a_core_whose_database_is_away_does_not_start_and_says_why(tmp_path: Path) -> None:
    settings = core_settings(tmp_path / "core", database="postgresql://penstock:s3cret@127.0.0.1:1/penstock")
    with pytest.raises(DatabaseAway, match="see that PostgreSQL runs there") as caught:
        await Core.start(settings)
    assert "s3cret" not in caught.value.message


async def test_a_core_that_lost_its_database_to_another_ends(tmp_path: Path) -> None:
    with postgresql() as server:
        url = server.new_database("lost")
        core = await Core.start(core_settings(tmp_path / "core", database=url, cluster={"standby_s": 1.0}))
        others = "datname = 'lost' AND pid <> pg_backend_pid()"
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        second = Database.connect(url)
        try:
            with pytest.raises(Internal, match="task 'place' died: InUse"):
                await core.serve(asyncio.Event())
        finally:
            await core.stop()
            second.close()
