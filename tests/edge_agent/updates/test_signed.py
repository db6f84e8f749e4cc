"""A device with a trust root, variants of several files, and rungs between edge and cloud."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edge_agent import settings
from edge_agent.policy.model_state import ModelState, Release, Slot
from edge_agent.settings import FetchSettings
from edge_agent.updates import fetch
from edge_agent.updates.fetch import Fetcher
from edge_agent.updates.store import Store
from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.errors import ArtifactError, ConfigError, NotFound, SignatureError
from penstock.signing import ed25519, trust
from penstock.signing.ed25519 import SigningKey
from penstock.signing.trust import TrustRoot
from tests.edge_agent.cloud import FakeRegistry
from tests.penstock.signed import DATA, make_layout, new_certificate, trusting

SETTINGS = FetchSettings(reserve_bytes=0, read_timeout_s=5.0)


class Rig:
    def __init__(self, directory: Path, registry: FakeRegistry, key: SigningKey) -> None:
        self.directory, self.registry, self.key = directory, registry, key
        self.layout = registry.layouts[0]
        self.trust: TrustRoot | None = trusting(directory, key)
        self.store = self.device()

    def device(self, rung: str = "edge") -> Store:
        return Store(self.directory / "device", trust=self.trust, rung=rung)

    async def pull(self, rung: str = "edge", store: Store | None = None, release: Release | None = None) -> Slot:
        connect = fetch.connector(self.registry.url, SETTINGS)
        needs = self.trust is not None
        fetcher = Fetcher(connect, store or self.store, SETTINGS, ("any",), rung=rung, needs_signatures=needs)
        return await fetcher.pull("digits", release or release_of(self.layout, rung), lambda _: None)

    @property
    def release(self) -> Release:
        return release_of(self.layout)


def release_of(layout: Layout, rung: manifests.Role = "edge") -> Release:
    newest = layout.certificate_for(layout.artifact().variant(rung).digest)
    assert newest is not None
    return Release(version=layout.tag, artifact_digest=layout.digest, certificate_digest=newest[0])


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    registry = FakeRegistry(layouts=[make_layout(tmp_path / "src", roles=("edge", "site"))])
    async with registry.serve():
        yield Rig(tmp_path, registry, ed25519.generate())


async def test_what_is_unsigned_is_refused_before_anything_heavy_is_fetched(rig: Rig) -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        await rig.pull()
    assert rig.registry.asked_for(rig.layout.artifact().variant("edge").weights.digest) == []
    trust.sign(rig.layout.root, rig.key)  # ... and is taken when it was signed in the meantime
    assert rig.store.load_plan("digits", await rig.pull()).certificate is not None


async def test_a_stranger_s_signature_is_refused(rig: Rig) -> None:
    trust.sign(rig.layout.root, ed25519.generate())
    with pytest.raises(SignatureError, match="does not trust"):
        await rig.pull()


async def test_without_a_trust_root_nobody_asks(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    rig.trust, rig.store = None, Store(rig.directory / "other")
    slot = await rig.pull()
    assert slot.signature_digests == ()
    assert not any(rig.store.blobs.has(one.digest) for one in rig.layout.referrers(manifests.SIGNATURE))


async def test_a_certificate_that_was_not_signed_is_not_used(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    signed = rig.layout.certificate_for(rig.layout.artifact().variant("edge").digest)
    assert signed is not None
    looser = rig.layout.attach_certificate(new_certificate(rig.layout, serial=9, threshold=0.01))
    slot = await rig.pull()
    assert slot.release.certificate_digest == looser.digest  # what was asked for
    assert slot.certificate_digest == ""  # and no other is used in its place
    assert "sign it again" in slot.note
    forged = replace(slot, certificate_digest=looser.digest)
    with pytest.raises((SignatureError, NotFound)):
        rig.store.load_plan("digits", forged)


async def test_every_start_verifies_again_without_a_network(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    slot = await rig.pull()
    rig.store.save(ModelState(model="digits", active=slot, desired=slot.release))
    again = rig.device()
    assert again.states()["digits"].active == slot
    again.collect(again.states().values())
    again.load_plan("digits", slot)
    assert rig.trust is not None
    (rig.trust.directory / "key0.pub").unlink()
    with pytest.raises(SignatureError, match="trusts none"):
        again.load_plan("digits", slot)


async def test_a_slot_from_before_there_was_a_trust_root_is_not_loaded(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    slot = replace(await rig.pull(), signature_digests=())
    with pytest.raises(SignatureError, match="is not signed"):
        rig.store.load_plan("digits", slot)
    release = {"version": "v1", "artifact_digest": slot.release.artifact_digest}
    active = {"release": release, "variant_digest": slot.variant_digest}  # as an older agent wrote it
    written = json.dumps({"model": "digits", "active": active})
    (rig.directory / "device" / "models" / "digits.json").write_text(written)
    known = rig.device().states()["digits"].active
    assert known is not None
    assert known.signature_digests == ()


async def test_rubbish_among_the_signatures_keeps_no_good_one_from_counting(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    rig.layout.attach(manifests.SIGNATURE, b"rubbish", title="signature.json")
    assert rig.store.load_plan("digits", await rig.pull())


# -- several files ---------------------------------------------------------------------------------------------------


async def test_all_files_of_a_variant_are_fetched_and_lie_together(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    slot = await rig.pull()
    plan = rig.store.load_plan("digits", slot)
    assert sorted(path.name for path in plan.files.weights.parent.iterdir()) == ["model.onnx", DATA]
    others = [v for v in rig.layout.artifact().variants if v.digest != slot.variant_digest]
    assert not any(rig.store.blobs.has(one.digest) for variant in others for one in variant.files)


async def test_files_stay_as_long_as_their_variant_is_wanted(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    slot = await rig.pull()
    path = rig.store.load_plan("digits", slot).files.weights
    rig.store.collect([ModelState(model="digits", active=slot)])
    assert path.exists()
    assert rig.store.load_plan("digits", slot)
    assert rig.store.collect([]) > 0
    assert not path.parent.exists()
    assert list(rig.store.blobs.digests()) == []


# -- rungs -----------------------------------------------------------------------------------------------------------


async def test_a_device_of_a_middle_rung_gets_that_variant_and_its_certificate(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    site = rig.device(rung="site")
    slot = await rig.pull("site", site)
    plan = site.load_plan("digits", slot)
    assert plan.variant == rig.layout.artifact().variant("site")
    assert plan.certificate is not None
    assert plan.certificate.edge_digest == plan.variant.digest


async def test_what_was_fetched_for_another_rung_is_not_loaded(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    slot = await rig.pull()
    with pytest.raises(NotFound, match="rung 'site'"):
        rig.device(rung="site").load_plan("digits", slot)


async def test_a_rung_that_the_artifact_lacks_is_named(rig: Rig) -> None:
    trust.sign(rig.layout.root, rig.key)
    with pytest.raises(ArtifactError, match="no van variant"):
        await rig.pull("van", release=release_of(rig.layout))


def test_the_clouds_rung_is_not_an_agents(tmp_path: Path) -> None:
    environment: dict[str, Any] = {"PENSTOCK_AGENT_DATA_DIR": str(tmp_path)}
    assert settings.load(env=environment).rung == "edge"
    with pytest.raises(ConfigError, match="rung: 'cloud'"):
        settings.load(env=environment | {"PENSTOCK_AGENT_RUNG": "cloud"})
