"""At which of its levels a device uses a certificate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent import settings
from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.hosting import Hosted, Hosting
from penstock.artifact.certificates import Certificate, Level, RefusedLevel
from penstock.errors import ConfigError
from tests.edge_agent.datapath import certificate, load_plan


def with_levels() -> Certificate:
    """Thresholds 0.9 by default, 0.99 for less harm, 0.6 for more; a fourth level was refused."""
    one = certificate(threshold=0.9)
    values = {name: getattr(one, name) for name in Level.__struct_fields__}
    levels = tuple(
        Level(**values | {"max_harm": max_harm, "threshold": threshold, "audit_max_harm": 1.5 * max_harm})
        for max_harm, threshold in ((0.02, 0.9), (0.005, 0.99), (0.05, 0.6))
    )
    refused = RefusedLevel(max_harm=0.001, delta=0.05, reason="500 certifying examples are too few", needed=2995)
    return msgspec.structs.replace(one, levels=levels, refused=(refused,), audit_max_harm=0.03)


@asynccontextmanager
async def hosted_at(directory: Path, max_harm: float | None) -> AsyncIterator[Hosted]:
    house = Hosting(Outcomes(now=lambda: 0.0), drain_s=0.05, max_harm_of={"toy": max_harm}.get)
    hosted = await house.prepare(load_plan(directory, certified=with_levels()))
    house.activate(hosted)
    yield hosted
    await house.close()


@pytest.mark.parametrize(("max_harm", "threshold"), [(None, 0.9), (0.02, 0.9), (0.005, 0.99), (0.05, 0.6)])
async def test_the_level_asked_for_decides_what_is_kept(
    tmp_path: Path, max_harm: float | None, threshold: float
) -> None:
    async with hosted_at(tmp_path, max_harm) as hosted:
        assert hosted.mode is CascadeMode.CASCADE
        assert hosted.account["threshold"] == threshold
        assert hosted.certificate is not None
        assert hosted.certificate.audit_max_harm == pytest.approx(1.5 * (max_harm or 0.02))
        logits = np.log(np.array([[0.7, 0.2, 0.1], [0.95, 0.04, 0.01], [0.995, 0.004, 0.001]], dtype=np.float32))
        _, decision = hosted.arrays.judge({}, {"logits": logits}, 3)
        assert decision.is_kept == [bool(p >= threshold) for p in (0.7, 0.95, 0.995)]


@pytest.mark.parametrize(
    ("max_harm", "said"),
    [
        (0.03, "max_harm 0.03 is not certified for 'toy'; certified: 0.02, 0.005, 0.05"),
        (0.001, "(500 certifying examples are too few); certified: 0.02, 0.005, 0.05"),
    ],
)
async def test_a_level_that_was_not_certified_is_never_replaced_by_another(
    tmp_path: Path, max_harm: float, said: str
) -> None:
    async with hosted_at(tmp_path, max_harm) as hosted:
        assert hosted.mode is CascadeMode.ESCALATE_ALL
        assert said in hosted.mode_why
        assert hosted.certificate is None
        assert "threshold" not in hosted.account


def load(text: str, directory: Path, env: dict[str, str] | None = None) -> settings.CascadeSettings:
    file = directory / "agent.toml"
    file.write_text(text)
    return settings.load(file=file, env={"HOME": str(directory), **(env or {})}).cascade


def test_levels_are_set_for_all_models_and_for_one(tmp_path: Path) -> None:
    cascade = load("[cascade]\nmax_harm = 0.02\nmax_harm_of = {digits = 0.005}\n", tmp_path)
    assert (cascade.max_harm, cascade.max_harm_of) == (0.02, {"digits": 0.005})
    assert (load("", tmp_path).max_harm, load("", tmp_path).max_harm_of) == (None, {})
    by_environment = load(
        "",
        tmp_path,
        {"PENSTOCK_AGENT_CASCADE__MAX_HARM": "0.01", "PENSTOCK_AGENT_CASCADE__MAX_HARM_OF": '{"digits": 0.05}'},
    )
    assert (by_environment.max_harm, by_environment.max_harm_of) == (0.01, {"digits": 0.05})


@pytest.mark.parametrize("value", ["0", "1.0", "2", '"low"', "{digits = 3.0}"])
def test_a_share_that_is_none_is_refused_with_its_name(tmp_path: Path, value: str) -> None:
    name: Any = "max_harm_of" if value.startswith("{") else "max_harm"
    with pytest.raises(ConfigError, match=f"cascade.{name}"):
        load(f"[cascade]\n{name} = {value}\n", tmp_path)
