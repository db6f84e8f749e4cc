"""The table [distill]: what it may say, and what a student's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.recipe import distill_section
from compiler.recipe.distill_section import Config, DistillSection, Factory, Layers
from penstock.errors import ConfigError


def test_defaults_are_in_range() -> None:
    distill_section.check(DistillSection(student="m:f"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student", ""),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", float("nan")),
        ("lr", -1.0),
        ("temperature", 0.0),
        ("alpha", 1.5),
        ("alpha", -0.5),
        ("defer_weight", 1.0),
        ("quantization_epochs", 0),
        ("patience", -1),
        ("validation", 0.0),
        ("validation", 0.9),
        ("seed", -1),
        ("threads", -1),
        ("max_seconds", 0.0),
        ("checkpoint_s", -1.0),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"r.toml: distill.{name}: .* given, expected"):
        distill_section.check(DistillSection(**{"student": "m:f", name: value}), where="r.toml: ")


def test_flags_win_over_the_table_and_the_rung_names_the_student() -> None:
    found = distill_section.settled({"epochs": 5, "seed": 3}, student="net.py:make", flags={"epochs": 7, "lr": None})
    assert (found.student, found.epochs, found.seed, found.lr) == ("net.py:make", 7, 3, 0.0)
    assert distill_section.settled(found, student="other:f") == found
    assert distill_section.settled(None, student="m:f") == DistillSection(student="m:f")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"epochs": "many"}, "Expected `int`"),
        ({"quantization_aware": True}, "quantization_aware: True: expected one of never, needed, always"),
        ({"defer": "maybe"}, "expected one of none, labels, gatekeeper"),
        ({"epochs": 0}, "1 to 10000"),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill_section.settled(table, student="m:f")


def test_students_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")

    def named(text: str) -> object:
        return distill_section.student_of(DistillSection(student=text), tmp_path)

    assert named("net.py:make") == Factory(named="net.py:make", function="make", file=tmp_path / "net.py")
    assert named("pack.net:make") == Factory(named="pack.net:make", function="make", module="pack.net")
    assert named("bert") == named("bert/config.json") == Config(file=tmp_path / "bert" / "config.json")
    assert named("layers:3") == Layers(keep_every=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net.py", "net.py:make"),
        ("gone.py:make", "no such file"),
        ("gone.json", "there is no"),
        ("layers:1", "K from 2"),
        ("layers:two", "layers:K"),
        ("layers:²", "layers:K"),
        ("bert-base", "module:factory"),
        ("a b:c", "module:factory"),
    ],
)
def test_what_is_no_student_is_told_apart(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill_section.student_of(DistillSection(student=text), tmp_path)


def test_labels_weigh_what_the_table_says_and_only_where_there_are_any() -> None:
    usual, asked, off = (DistillSection(student="m:f", alpha=alpha) for alpha in (-1.0, 0.5, 0.0))
    assert distill_section.label_weight(usual, has_labels=True) == distill_section.DEFAULT_ALPHA
    assert distill_section.label_weight(usual, has_labels=False) == 0
    assert distill_section.label_weight(asked, has_labels=True) == 0.5
    assert distill_section.label_weight(off, has_labels=False) == 0
    with pytest.raises(ConfigError, match="no labels; set alpha = 0"):
        distill_section.label_weight(asked, has_labels=False)


def test_trained_weights_get_smaller_steps(tmp_path: Path) -> None:
    kinds = (Factory(named="m:f", function="f", module="m"), Config(file=tmp_path), Layers(keep_every=2))
    usual = [distill_section.learning_rate(DistillSection(student="m:f"), kind) for kind in kinds]
    assert usual == sorted(usual, reverse=True)
    assert distill_section.learning_rate(DistillSection(student="m:f", lr=0.5), kinds[2]) == 0.5
