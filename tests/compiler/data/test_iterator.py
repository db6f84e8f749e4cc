"""A user's own iterator: rows in, arrays out; what goes wrong in it is told with its file and line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.data import Dataset, iterator
from compiler.recipe.data_section import LimitsSection, SplitsSection
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

Load = Callable[..., Dataset]
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
GOOD = """
def rows():
    for n in range(50):
        yield {"x": [n, n / 2], "site": "ab"[n % 2]}, n % 3
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], None]:
    def to_file(text: str) -> None:
        (tmp_path / "rows.py").write_text(text)

    return to_file


def test_lists_of_numbers_become_the_models_arrays(write: Callable[[str], None], load: Load) -> None:
    write(GOOD)
    loaded = load([X], source="rows.py:rows", group_by="site")
    assert [split.rows for split in loaded.by_use().values()] == [10, 10, 20, 10]
    for split in loaded.by_use().values():
        x = split.inputs["x"]
        assert x.dtype == np.float32
        np.testing.assert_array_equal(split.labels, x[:, 0].astype(np.int64) % 3)
        assert split.groups is not None
        assert split.groups.tolist() == ["ab"[int(value) % 2] for value in x[:, 0]]


def test_a_function_with_a_parameter_gives_one_split_at_a_time(write: Callable[[str], None], load: Load) -> None:
    write(
        "SIZES = {'fit': 10, 'warm': 5, 'certify': 7, 'test': 6}\n"
        "def rows(split):\n"
        "    for n in range(SIZES[split]):\n"
        "        yield {'pixels': [n, len(split)], 'label': n % 3}\n"
    )
    settings: dict[str, Any] = {"inputs": {"x": "pixels"}, "labels": "label", "repeats": "natural"}
    loaded = load([X], source="rows.py:rows", splits=SplitsSection(tune="warm"), **settings)
    assert [split.rows for split in loaded.by_use().values()] == [10, 5, 7, 6]
    with pytest.raises(InvalidInput, match=r"rows.py:rows: rows.py:3 in rows: KeyError: 'cold'"):
        load([X], source="rows.py:rows", splits=SplitsSection(tune="cold"), **settings)


def test_a_module_is_found_beside_the_recipe(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "penstock_test_rows_beside.py").write_text(GOOD)
    before = list(sys.path)
    assert load([X], source="penstock_test_rows_beside:rows").test.rows == 10
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "penstock_test_rows_beside")


def test_a_file_may_import_its_neighbours(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "penstock_test_neighbour.py").write_text(GOOD)
    (folder / "rows.py").write_text("from penstock_test_neighbour import rows\n")
    assert load([X], source="code/rows.py:rows").test.rows == 10
    monkeypatch.delitem(sys.modules, "penstock_test_neighbour")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def row(): pass", "rows.py has no function 'rows'; did you mean 'row'"),
        ("rows = 3", "has no function 'rows'; known: "),
        ("def rows(:", "rows.py:1: SyntaxError: "),
        (
            "import penstock_no_such_module",
            "rows.py:1 in <module>: ModuleNotFoundError: No module named 'penstock_no_s",
        ),
        ("def rows():\n    return 3", "TypeError: 'int' object is not iterable"),
        ("def rows():\n    return []", r"rows.py:rows\(\): gave no rows"),
        ("def rows():\n    yield 1 / 0", "rows.py:2 in rows: ZeroDivisionError: division by zero"),
        ("import json\ndef rows():\n    yield json.loads('{')", "rows.py:3 in rows: JSONDecodeError"),
        ("def rows():\n    raise SystemExit(2)\n    yield", "rows.py:2 in rows: SystemExit: 2"),
        ("def rows():\n    yield [1, 2]", "row 0 is list; expected a dict of inputs, or \\(dict, label\\)"),
        ("def rows():\n    yield {'z': [1, 2]}, 0", "row 0 has no 'x'; known: z \\(data.inputs renames\\)"),
        (
            "def rows():\n    yield {'x': [1, 2]}",
            "row 0 has no label; yield \\(inputs, label\\), or put it among the in",
        ),
        ("def rows():\n    yield {'x': [1, 2, 3]}, 0", r"\(\): 'x': 3 values a row, but input 'x' takes \[2\]"),
        (
            "def rows():\n    yield {'x': [1, 2]}, 0\n    yield {'x': [1]}, 0",
            r"'x': row 1 has shape \[1\], but row 0 has \[2\]; rows must have one size, so pad them",
        ),
        ("def rows():\n    yield {'x': [1, 2]}, 0\n    yield {'x': ['a', 'b']}, 0", "row 1 holds .'a' 'b'. .text."),
        ("def rows():\n    yield {'x': ['1', 'a']}, 0", "holds text or objects, but the model takes FP32"),
        ("def rows():\n    yield {'x': [1, 'a']}, 0", r"row 0, 'x', column 0: 1 \(int\); expected numbers alone"),
        ("def rows():\n    yield {'x': [1, None]}, 0", r"row 0, 'x', column 1: None \(NoneType\); expected numbers al"),
        ("def rows():\n    yield {'x': None}, 0", "row 0, 'x': NoneType of object; expected numbers or text"),
        ("def rows():\n    yield {'x': [[1], [1, 2]]}, 0", "row 0, 'x': no array can be made of it"),
        ("def rows():\n    yield {'x': [1, float('nan')]}, 0", "'x': NaN or infinite values in 1 rows, first row 0"),
        ("def rows():\n    yield {'x': [1, 1e300]}, 0", r"'x': row 0 holds 1e\+300, which FP32 cannot hold"),
        ("def rows():\n    yield {'x': [1, 2]}, 0.5", "labels: float64 .*, expected one integer class"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    write: Callable[[str], None], load: Load, program: str, message: str
) -> None:
    write(program)
    with pytest.raises(InvalidInput, match=message) as caught:
        load([X], source="rows.py:rows")
    assert "\n" not in caught.value.message


WORDS = TensorSpec(name="x", datatype="BYTES", shape=(-1, 2))


def test_words_are_taken_as_they_are_whatever_holds_them(write: Callable[[str], None], load: Load) -> None:
    write(
        "import numpy as np\n"
        "def rows():\n"
        "    for n in range(10):\n"
        "        yield {'x': [f'grün {n}', '']}, 0\n"
        "        yield {'x': np.array([f'blau {n}', 'a' * 20])}, 0\n"
        "        yield {'x': np.array([f'rot {n}', '🦕'], object)}, 0\n"
        "        yield {'x': [f'gelb {n}'.encode(), 'x'.encode()]}, 0\n"
    )
    x = np.concatenate([split.inputs["x"] for split in load([WORDS], source="rows.py:rows").by_use().values()])
    assert x.dtype == object
    assert {type(word) for word in x.ravel()} == {str}
    assert {("grün 3", ""), ("blau 0", "a" * 20), ("rot 9", "🦕"), ("gelb 1", "x")} <= set(map(tuple, x.tolist()))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("['a', None]", r"row 1, 'x', column 1: None \(NoneType\); expected numbers alone or text alone"),
        ("['a', float('nan')]", r"row 1, 'x', column 1: nan \(float\)"),
        ("['a', 5]", r"row 1, 'x', column 1: 5 \(int\)"),
        ("[5, 5]", r"row 1 holds \[5 5\] \(int64\), but row 0 \['a' 'b'\] \(text\)"),
        ("None", "row 1, 'x': NoneType of object; expected numbers or text"),
    ],
)
def test_what_is_no_text_is_named_by_row_and_column(
    write: Callable[[str], None], load: Load, second: str, message: str
) -> None:
    write(f"def rows():\n    yield {{'x': ['a', 'b']}}, 0\n    yield {{'x': {second}}}, 0\n")
    with pytest.raises(InvalidInput, match=message):
        load([WORDS], source="rows.py:rows")


def test_modules_and_files_that_are_not_there(load: Load) -> None:
    with pytest.raises(InvalidInput, match=r"nothing.py: no such file"):
        load([X], source="nothing.py:rows")
    message = r"no module 'penstock_nothing.more' in /\S+ or installed; a file: 'path/file.py:function'"
    with pytest.raises(InvalidInput, match=message):
        load([X], source="penstock_nothing.more:rows")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_rows": 20}, "not done after 20 rows: over data.limits.max_rows = 20; give fewer, or raise the limit"),
        ({"max_bytes": 100}, "not done after 6 rows: over data.limits.max_bytes = 100"),
    ],
)
def test_an_endless_iterator_is_stopped(
    write: Callable[[str], None], load: Load, limits: dict[str, int], message: str
) -> None:
    write("import itertools\ndef rows():\n    for n in itertools.count():\n        yield {'x': [n, 1]}, n % 3\n")
    with pytest.raises(InvalidInput, match=message):
        load([X], source="rows.py:rows", limits=LimitsSection(**limits))


def test_a_slow_iterator_is_stopped(write: Callable[[str], None], load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    write(GOOD)
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(iterator.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(InvalidInput, match="not done after 3 rows: over data.limits.max_seconds = 100"):
        load([X], source="rows.py:rows", limits=LimitsSection(max_seconds=100))


def test_interrupting_it_interrupts(write: Callable[[str], None], load: Load) -> None:
    write("def rows():\n    raise KeyboardInterrupt\n    yield")
    with pytest.raises(KeyboardInterrupt):
        load([X], source="rows.py:rows")
