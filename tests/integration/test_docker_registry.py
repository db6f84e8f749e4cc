"""Beside Debian's docker-registry: no list of referrers, namespaces, and tokens of a service that signs them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.policy.model_state import Release
from edge_agent.settings import FetchSettings
from edge_agent.updates import fetch
from edge_agent.updates.fetch import Fetcher
from edge_agent.updates.store import Store
from examples.digits.processes import penstock
from penstock.artifact import manifests
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Descriptor, Index
from penstock.artifact.references import referrers_tag
from penstock.errors import ArtifactError, PermissionDenied, Unauthenticated
from penstock.registry import referrers, transfer
from penstock.registry.client import RegistryClient
from penstock.signing import ed25519, trust
from tests.distribution import TokenService, docker_registry, token_service
from tests.integration.test_readme import run_script
from tests.pages import DOCS
from tests.penstock.signed import make_layout, trusting
from tests.project.readme import blocks, script


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as url:
        yield url


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TokenService]]:
    with (
        token_service(TokenService(public=("acme/open/digits",))) as service,
        docker_registry(tmp_path_factory.mktemp("guarded"), service) as url,
    ):
        yield url, service


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_layout(tmp_path / "layout")


KINDS = sorted([manifests.CERTIFICATE, manifests.LOCK, manifests.SIGNATURE])


def kinds(found: Layout) -> list[str]:
    return sorted(referrer.kind for referrer in found.referrers())


def pulled(client: RegistryClient, reference: str, to: Path) -> Layout:
    transfer.pull(client, reference, to)
    return Layout(to)


# -- no list of referrers ------------------------------------------------------------------------------------------


def test_certificates_and_signatures_come_back_from_a_registry_without_a_list(
    plain: str, layout: Layout, tmp_path: Path
) -> None:
    trust.sign(layout.root, ed25519.generate())
    with RegistryClient(plain) as client:
        transfer.push(client, layout, "whole/digits:v1")
        copy = pulled(client, "whole/digits:v1", tmp_path / "copy")
        seen = transfer.overview(client, "whole/digits:v1")
    assert kinds(copy) == kinds(layout) == KINDS
    assert copy.verify() == []
    assert [one.kind for one in seen.referrers] == [one.kind for one in layout.referrers()]


def test_what_is_attached_later_joins_what_was_there(plain: str, layout: Layout, tmp_path: Path) -> None:
    with RegistryClient(plain) as client:
        transfer.push(client, layout, "later/digits:v1")
        theirs = _push_referrer(client, "later/digits", layout, b"somebody else's")
        referrers.ensure_listed(client, "later/digits", layout.digest, [theirs])
        trust.sign(layout.root, ed25519.generate())
        transfer.push(client, layout, "later/digits:v1")
        transfer.push(client, layout, "later/digits:v1")
        found = referrers.find(client, "later/digits", layout.digest)
        assert [one.artifact_type for one in found] == [
            manifests.CERTIFICATE, manifests.LOCK, manifests.REPORT, manifests.SIGNATURE,
        ]  # fmt: skip
        assert referrers.find(client, "later/digits", layout.digest, manifests.SIGNATURE) == found[3:]


def test_what_the_tag_names_and_is_no_referrer_is_none(plain: str, layout: Layout, tmp_path: Path) -> None:
    other = make_layout(tmp_path / "other", scale=2.0)
    with RegistryClient(plain) as client:
        transfer.push(client, layout, "lies/digits:v1")
        transfer.push(client, other, "lies/digits:v2")
        true = referrers.find(client, "lies/digits", layout.digest)
        foreign = referrers.find(client, "lies/digits", other.digest)
        lie = msgspec.structs.replace(foreign[0], artifact_type=manifests.CERTIFICATE)
        variant = _entry(layout.artifact().variants[0].digest, artifact_type=manifests.SIGNATURE)
        relabelled = msgspec.structs.replace(true[0], artifact_type=manifests.SIGNATURE)
        _write_tag(client, "lies/digits", layout.digest, [lie, variant, relabelled])
        assert referrers.find(client, "lies/digits", layout.digest) == true[:1]
        assert referrers.find(client, "lies/digits", layout.digest, manifests.SIGNATURE) == []
        assert kinds(pulled(client, "lies/digits:v1", tmp_path / "copy")) == [manifests.CERTIFICATE]


def test_a_tag_that_is_used_for_something_else_is_an_error_and_no_loss(plain: str, layout: Layout) -> None:
    with RegistryClient(plain) as client:
        transfer.push(client, layout, "taken/digits:v1")
        manifest = layout.artifact().variants[0].digest
        tag = referrers_tag(layout.digest)
        client.push_manifest("taken/digits", tag, layout.blobs.read(manifest), manifests.MANIFEST)
        with pytest.raises(ArtifactError, match="should list what refers to the artifact"):
            transfer.push(client, layout, "taken/digits:v2")
        assert "v2" not in client.tags("taken/digits")


async def test_an_agent_finds_signatures_and_its_certificate_there(plain: str, tmp_path: Path) -> None:
    key = ed25519.generate()
    layout = make_layout(tmp_path / "layout")
    trust.sign(layout.root, key)
    with RegistryClient(f"{plain}/fleet") as client:
        await asyncio.to_thread(transfer.push, client, layout)
    store = Store(tmp_path / "device", trust=trusting(tmp_path / "trust", key))
    settings = FetchSettings()
    fetcher = Fetcher(
        fetch.connector(f"{plain}/fleet", settings), store, settings, ["any"], needs_signatures=True
    )  # fmt: skip
    [(certificate, _)] = layout.certificates()
    slot = await fetcher.pull(
        "digits", Release(version="v1", artifact_digest=layout.digest, certificate_digest=certificate), lambda _: None
    )
    fetcher.close()
    assert (slot.certificate_digest, slot.note) == (certificate, "")
    assert len(slot.signature_digests) == 1


# -- namespaces ----------------------------------------------------------------------------------------------------


def test_a_namespace_in_the_url_and_one_in_the_reference_are_the_same_place(
    plain: str, layout: Layout, tmp_path: Path
) -> None:
    with RegistryClient(f"{plain}/acme/vision") as client:
        assert transfer.push(client, layout).model == "digits"
        assert client.repositories() == ["digits"]
    nothing = penstock("artifact", "list", "--registry", f"{plain}/nobody").stdout
    assert nothing == f"nothing at {plain}/nobody yet; push an artifact with 'penstock artifact push'\n"
    with RegistryClient(plain) as client:
        assert pulled(client, "acme/vision/digits:v1", tmp_path / "copy").artifact().model == "digits"
        assert "digits" not in client.repositories()


def test_a_repository_that_ends_with_another_name_is_refused(plain: str, layout: Layout) -> None:
    with RegistryClient(plain) as client, pytest.raises(ArtifactError, match="end with that, as in acme/digits"):
        transfer.push(client, layout, "acme/letters:v1")


def test_a_registry_below_a_path_is_found_there(plain: str, layout: Layout, tmp_path: Path) -> None:
    with docker_registry(tmp_path, prefix="/below/") as url, RegistryClient(f"{url}/below") as client:
        transfer.push(client, layout)
        assert client.repositories() == ["digits"]
        with RegistryClient(f"{url}/below/v2/acme") as named:
            transfer.push(named, layout)
        assert client.repositories() == ["acme/digits", "digits"]


# -- tokens --------------------------------------------------------------------------------------------------------


def test_a_user_pushes_and_anybody_pulls_what_is_public(
    tokens: tuple[str, TokenService], layout: Layout, tmp_path: Path
) -> None:
    url, service = tokens
    service.asked.clear()
    with RegistryClient(f"{url}/acme/open", user="acme", token="s3cret") as client:
        transfer.push(client, layout)
    scopes = [sorted(query["scope"][0].rpartition(":")[2].split(",")) for query, _ in service.asked]
    assert scopes == [["pull"], ["pull", "push"]]  # each once
    with RegistryClient(f"{url}/acme/open", token="a token of something else") as client:
        assert kinds(pulled(client, "digits:v1", tmp_path / "copy")) == kinds(layout)
        with pytest.raises((Unauthenticated, PermissionDenied), match="--user"):
            transfer.push(client, layout)
    assert all(credential == "" for _, credential in service.asked[2:])


def test_commands_do_what_their_help_says(
    tokens: tuple[str, TokenService], layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_REGISTRY", f"{tokens[0]}/acme/commands")
    monkeypatch.setenv("PENSTOCK_REGISTRY_USER", "acme")
    monkeypatch.setenv("PENSTOCK_REGISTRY_TOKEN", "s3cret")
    penstock("artifact", "push", layout.root)
    penstock("artifact", "push", layout.root, "digits:canary")
    listed = json.loads(penstock("artifact", "list", "digits", "-o", "json").stdout)
    assert sorted(row["tag"] for row in listed) == ["canary", "v1"]  # and not the tag that lists referrers
    before = os.umask(0o027)
    penstock("artifact", "pull", "digits:canary", tmp_path / "copy")
    os.umask(before)
    assert kinds(Layout(tmp_path / "copy")) == kinds(layout)
    pulled_files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in pulled_files} == {0o640}, "others in the group may read them"
    missing = penstock("artifact", "pull", "digits:v9", tmp_path / "none", check=False)
    assert missing.returncode == 1
    assert f"digits:v9: {tokens[0]}/acme/commands answered 404" in missing.stderr
    assert not (tmp_path / "none").exists()
    refused = penstock("artifact", "list", "digits", "--token", "wrong", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)


def test_what_the_page_says_about_registries_of_others_is_typed(
    tokens: tuple[str, TokenService], layout: Layout, tmp_path: Path
) -> None:
    page = (DOCS / "how-to" / "copy-and-export-artifacts.md").read_text(encoding="utf-8")
    for written, here in (
        ("https://ghcr.io/acme ", f"{tokens[0]}/acme/page "),
        ("acme/digits:v1 copy/", "acme/page/digits:v1 copy/"),
        ("https://ghcr.io\n", f"{tokens[0]}\n"),
        ("PENSTOCK_REGISTRY_TOKEN=...", "PENSTOCK_REGISTRY_TOKEN=s3cret"),
    ):
        assert written in page
        page = page.replace(written, here)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "digits").symlink_to(layout.root)
    done = run_script(script(blocks(page)), tmp_path, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout
    assert "canary" in done.stdout
    assert kinds(Layout(tmp_path / "copy")) == kinds(layout)


async def test_an_agent_has_a_credential_of_its_own_for_a_registry(
    tokens: tuple[str, TokenService], layout: Layout, tmp_path: Path
) -> None:
    with RegistryClient(f"{tokens[0]}/acme/own", user="acme", token="s3cret") as client:
        await asyncio.to_thread(transfer.push, client, layout)
    settings = FetchSettings()
    connect = fetch.connector(f"{tokens[0]}/acme/own", settings, user="acme", token="s3cret")
    fetcher = Fetcher(connect, Store(tmp_path / "device"), settings, ["any"])
    release = Release(version="v1", artifact_digest=layout.digest, certificate_digest=layout.certificates()[0][0])
    assert (await fetcher.pull("digits", release, lambda _: None)).note == ""
    fetcher.close()


def test_a_token_that_the_registry_finds_over_is_renewed(tokens: tuple[str, TokenService], layout: Layout) -> None:
    url, service = tokens
    with RegistryClient(f"{url}/acme/late", user="acme", token="s3cret") as client:
        transfer.push(client, layout)
    service.asked.clear()
    service.ended = 1
    with RegistryClient(f"{url}/acme/late", user="acme", token="s3cret") as client:
        with pytest.raises(Unauthenticated):  # a token that is new and refused: no reason to ask again and again
            client.tags("digits")
        assert "v1" in client.tags("digits")
    assert len(service.asked) == 2


def test_a_wrong_password_is_told_with_what_to_do(tokens: tuple[str, TokenService]) -> None:
    url, service = tokens
    with (
        RegistryClient(f"{url}/acme", user="acme", token="wrong") as client,
        pytest.raises(Unauthenticated, match=r"wrong user or password; give --token .* registry_token"),
    ):
        client.tags("digits")
    assert "wrong" not in repr(service.asked[-1][0])


def _entry(digest: str, **changes: str) -> Descriptor:
    return Descriptor(media_type=manifests.MANIFEST, digest=digest, size=1, **changes)


def _write_tag(client: RegistryClient, name: str, digest: str, entries: list[Descriptor]) -> None:
    data = msgspec.json.encode(Index(schema_version=2, media_type=manifests.INDEX, manifests=entries))
    client.push_manifest(name, referrers_tag(digest), data, manifests.INDEX)


def _push_referrer(client: RegistryClient, name: str, layout: Layout, content: bytes) -> Descriptor:
    """Attach something to the artifact in the registry that the layout does not have."""
    path = layout.root / "theirs"
    path.write_bytes(content)
    client.push_blob(name, digest_of(content), path)
    config = Descriptor(media_type=manifests.EMPTY_CONFIG, digest=digest_of(b"{}"), size=2)
    manifest = {
        "schemaVersion": 2, "mediaType": manifests.MANIFEST, "artifactType": manifests.REPORT,
        "config": msgspec.to_builtins(config), "layers": [{"mediaType": manifests.REPORT,
        "digest": digest_of(content), "size": len(content)}],
        "subject": {"mediaType": manifests.INDEX, "digest": layout.digest, "size": 1},
    }  # fmt: skip
    data = json.dumps(manifest).encode()
    client.push_manifest(name, digest_of(data), data, manifests.MANIFEST)
    return msgspec.structs.replace(_entry(digest_of(data), artifact_type=manifests.REPORT), size=len(data))
