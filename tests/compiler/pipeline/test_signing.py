"""``penstock compile --key`` and ``penstock certify --key`` sign what they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.cli.main import command
from penstock.errors import InvalidInput
from penstock.signing import trust
from penstock.signing.trust import TrustRoot


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PENSTOCK_TRUST_ROOT", raising=False)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    assert call("keys", "generate", "release").exit_code == 0
    keys = tmp_path / "config" / "penstock" / "keys"
    assert call("keys", "trust", keys / "release.pub").exit_code == 0
    return call


@pytest.mark.usefixtures("warm")
def test_what_is_compiled_and_certified_anew_is_signed(
    workspace: Path, run: Callable[..., Result], tmp_path: Path
) -> None:
    out = workspace / "out"
    compiled = run("compile", workspace / "recipe.toml", "-o", out, "--key", "release")
    assert compiled.exit_code == 0, compiled.output
    layout, root = Layout(out), TrustRoot(tmp_path / "config" / "penstock" / "trust")
    covered = root.check(layout.artifact(), trust.signatures_of(layout))
    assert {one.kind for one in layout.referrers() if one.digest in covered} >= {
        manifests.CERTIFICATE,
        manifests.EVIDENCE,
        manifests.LOCK,
    }
    first = trust.signatures_of(layout)
    assert run("compile", workspace / "recipe.toml", "-o", out, "--key", "release").exit_code == 0
    assert trust.signatures_of(Layout(out)) == first  # same artifact, same key, same bytes

    with np.load(workspace / "data.npz") as data:
        np.savez(workspace / "new.npz", x=data["x_test"], y=data["y_test"])
        np.savez(workspace / "newer.npz", x=data["x_fit"], y=data["y_fit"])
    unsigned = run("certify", out, "--data", workspace / "new.npz")
    assert "penstock artifact sign" in unsigned.output, unsigned.output
    newest = layout.certificates()[-1][0]
    assert newest not in root.check(layout.artifact(), trust.signatures_of(layout))
    assert run("certify", out, "--data", workspace / "newer.npz", "--key", "release").exit_code == 0
    covered = root.check(layout.artifact(), trust.signatures_of(layout))
    assert {digest for digest, _ in layout.certificates()} <= covered


def test_a_wrong_key_is_found_out_before_any_work(workspace: Path, run: Callable[..., Result]) -> None:
    result = run("compile", workspace / "recipe.toml", "-o", workspace / "out", "--key", "nobody")
    assert isinstance(result.exception, InvalidInput)
    assert not (workspace / "out").exists()
