"""Where a user's files are, with a home and without."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.process import directories


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without an entry in passwd; where its temporary files are."""

    def unknown(_: int) -> pwd.struct_passwd:
        raise KeyError("uid not found")

    monkeypatch.setattr(directories.pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_environment_says_where_then_home_then_passwd() -> None:
    assert directories.config_directory({"XDG_CONFIG_HOME": "/a", "HOME": "/b"}) == Path("/a/penstock")
    assert directories.config_directory({"HOME": "/b"}) == Path("/b/.config/penstock")
    assert directories.data_directory({"HOME": "/b", "XDG_DATA_HOME": "here"}) == Path("/b/.local/share/penstock")
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert directories.config_directory({}) == home / ".config" / "penstock"


def test_settings_and_data_need_a_place_that_somebody_names(nobody: Path) -> None:
    with pytest.raises(ConfigError, match="no home directory: set HOME or XDG_CONFIG_HOME"):
        directories.config_directory({})
    with pytest.raises(ConfigError, match="no home directory: set HOME or XDG_DATA_HOME"):
        directories.data_directory({})


def test_a_cache_finds_a_place_of_this_user_alone(nobody: Path) -> None:
    found = directories.cache_directory({})
    assert found == directories.cache_directory({}) == nobody / f"penstock-{os.getuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    assert directories.cache_directory({"XDG_CACHE_HOME": "/c"}) == Path("/c/penstock")


def test_a_cache_in_a_home_that_can_be_written(nobody: Path) -> None:
    assert directories.cache_directory({"HOME": str(nobody / "new")}) == nobody / "new" / ".cache" / "penstock"


def test_a_home_that_cannot_be_written_holds_no_cache(nobody: Path) -> None:
    assert directories.cache_directory({"HOME": "/dev/null"}).parent == nobody


@pytest.mark.parametrize("what", ["link", "file", "open to all"])
def test_what_somebody_else_put_there_is_not_used(nobody: Path, what: str) -> None:
    place = nobody / f"penstock-{os.getuid()}"
    if what == "link":
        (nobody / "theirs").mkdir()
        place.symlink_to(nobody / "theirs")
    elif what == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME to a directory"):
        directories.cache_directory({})


def test_a_tilde_that_stands_for_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no home directory that ~ could stand for"):
        directories.expanded("~nobody-has-this-name/x")
    monkeypatch.setenv("HOME", "/b")
    assert directories.expanded("~/x") == Path("/b/x")
