"""Every name of code in a docstring or a comment exists. Pages are ``test_documents.py``'s."""

from __future__ import annotations

import pytest

from tests.project import names
from tests.project.names import PACKAGES, ROOT, missing, prose_of

MODULES = sorted(
    path
    for tree in (*PACKAGES, "benchmarks", "examples", "scripts", "tests", "hw_tests")
    for path in (ROOT / tree).rglob("*.py")
    if "_pb2" not in path.name
)


def test_names_in_docstrings_and_comments_exist() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in MODULES
        for text in prose_of(path.read_text(encoding="utf-8"))
        for name in missing(text, path)
    ]
    assert found == []


@pytest.mark.parametrize(
    "name",
    [
        "penstock", "penstock.registry", "penstock.registry.client", "penstock.registry.client.RegistryClient",
        "penstock.registry.client.RegistryClient.cancel", "penstock.registry.client.RegistryClient.url",
        "penstock.registry.connection.Limits.attempts", "penstock.registry.client.Limits",
        "penstock.errors.ALL", "penstock.rpc.pb", "penstock.cli.main.command",
    ],
)  # fmt: skip
def test_what_exists_is_found(name: str) -> None:
    assert names.exists(name)


@pytest.mark.parametrize(
    "text",
    [
        "see ``penstock.nowhere``", "`penstock.errors.Nothing`", "``penstock.registry.client.RegistryClient.no``",
        "``penstock.errors.NotFound.code.x.y``", "`compiler/nowhere.py`", "as :func:`nothing` does",
        ":class:`penstock.errors.Nothing`", "``errors.Nothing``", "``cloud_core.api.oci.OciApi.nope()``",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_missed(text: str) -> None:
    assert list(missing(text, ROOT / "penstock" / "__init__.py")) != []
