"""Keys: known by their hash, until they are revoked or expire, also after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_core.policy.admission import Tenant, hashed
from cloud_core.state import Database, Transaction
from cloud_core.tenants.keys import ApiKeys, Wanted, Work
from penstock.errors import Conflict, NotFound

DAY_S = 86_400.0
KNOWN = {"shop": Tenant(name="shop", models=("shop-*",)), "k9": Tenant(name="k9", role="device", device_id="kiosk-9")}


class Clock:
    def __init__(self) -> None:
        self.at = 1000 * DAY_S

    def __call__(self) -> float:
        return self.at


class Acts:
    """Does what it is given in one transaction, as the fleet's record of actions does."""

    def __init__(self, database: Database) -> None:
        self.database, self.done = database, list[tuple[str, str]]()

    async def __call__(self, command: str, subject: str, work: Work) -> None:
        await self.database.run(work)
        self.done.append((command, subject))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keys_of(database: Database, clock: Clock, **more: int) -> ApiKeys:
    return ApiKeys(database, wall_clock=clock, **{"max_keys": 10, **more}, known=KNOWN)


async def test_a_key_is_its_tenant_until_it_is_revoked_also_after_a_restart(database: Database, clock: Clock) -> None:
    acts = Acts(database)
    keys = keys_of(database, clock)
    row, key = await keys.create(Wanted(tenant="shop", role="device", device_id="k7", by="ann"), acts)
    for held in (keys, keys_of(database, clock)):
        tenant = held.tenant_of(hashed(key))
        assert tenant is not None
        assert (tenant.name, tenant.role, tenant.device_id, tenant.models) == ("shop", "device", "k7", ("shop-*",))
        assert held.tenant_of(hashed(key + "x")) is None
    await keys.revoke(row.id, acts)
    for held in (keys, keys_of(database, clock)):
        assert held.tenant_of(hashed(key)) is None
    assert [command for command, _ in acts.done] == ["core key create", "core key revoke"]
    assert all(key not in subject for _, subject in acts.done)
    with pytest.raises(NotFound):
        await keys.revoke(row.id, acts)


async def test_a_key_of_a_tenant_that_is_one_device_reports_for_that_one(database: Database, clock: Clock) -> None:
    keys = keys_of(database, clock)
    for asked, gets in (("", "kiosk-9"), ("kiosk-8", "kiosk-8")):
        _, key = await keys.create(Wanted(tenant="k9", role="device", device_id=asked), Acts(database))
        tenant = keys.tenant_of(hashed(key))
        assert tenant is not None
        assert tenant.device_id == gets


async def test_a_key_ends_on_its_day(database: Database, clock: Clock) -> None:
    keys = keys_of(database, clock)
    _, key = await keys.create(Wanted(tenant="shop", role="client", days=1.0), Acts(database))
    clock.at += DAY_S - 1
    assert keys.tenant_of(hashed(key)) is not None
    clock.at += 1
    assert keys.tenant_of(hashed(key)) is None


async def test_the_key_itself_is_nowhere_on_the_disk(database: Database, clock: Clock, tmp_path: Path) -> None:
    row, key = await keys_of(database, clock).create(Wanted(tenant="shop", role="client", note="n"), Acts(database))
    secret = key.split("_", 2)[2]
    assert len(secret) >= 40
    assert row.id in key
    kept = b"".join(path.read_bytes() for path in (tmp_path / "core").rglob("*") if path.is_file())
    assert row.hash.encode() in kept
    assert secret.encode() not in kept


async def test_when_a_key_was_last_used_is_written_later(database: Database, clock: Clock) -> None:
    keys = keys_of(database, clock)
    _, key = await keys.create(Wanted(tenant="shop", role="client"), Acts(database))
    assert keys.rows()[0].last_used_at is None
    clock.at += 5
    keys.tenant_of(hashed(key))
    assert keys.rows()[0].last_used_at == clock.at
    assert keys_of(database, clock).rows()[0].last_used_at is None
    await keys.flush()
    assert keys_of(database, clock).rows()[0].last_used_at == clock.at


async def test_there_are_no_more_keys_than_may_be(database: Database, clock: Clock) -> None:
    keys = keys_of(database, clock, max_keys=1)
    await keys.create(Wanted(tenant="shop", role="client"), Acts(database))
    with pytest.raises(Conflict, match=r"auth\.max_keys"):
        await keys.create(Wanted(tenant="shop", role="client"), Acts(database))


async def test_what_cannot_be_recorded_is_not_done(database: Database, clock: Clock) -> None:
    async def fails(command: str, subject: str, work: Work) -> None:
        def both(transaction: Transaction) -> None:
            work(transaction)
            raise Conflict("not now")

        await database.run(both)

    keys = keys_of(database, clock)
    with pytest.raises(Conflict):
        await keys.create(Wanted(tenant="shop", role="client"), fails)
    assert keys.rows() == keys_of(database, clock).rows() == ()
