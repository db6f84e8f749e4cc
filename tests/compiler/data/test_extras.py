"""A library behind the extra is only imported for its own kind of source; without it, the extra is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
_LOAD = """
import sys
from pathlib import Path
sys.modules[{library!r}] = None
from pathlib import Path
from compiler import data
from compiler.data import loading
from compiler.recipe.data_section import TokenizerSection
from penstock.errors import MissingExtra
from penstock.wire.tensors import TensorSpec
Path("t.csv").write_text("text\\nhello\\n")
spec = TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 8))
section = data.DataSection(source={source!r}, labels="", {settings})
try:
    loading.load(section, Path(), [spec], classes=None)
except MissingExtra as error:
    print(error.message)
"""


@pytest.mark.parametrize(
    ("library", "source", "settings", "message"),
    [
        ("pyarrow", "t.parquet", "", "reading parquet files needs pyarrow"),
        ("PIL", "folder", "", "reading images needs Pillow"),
        ("tokenizers", "t.csv", "text='text', tokenizer=TokenizerSection(file='t.json')", "turning text into tokens"),
    ],
)
def test_without_the_library_the_extra_is_named(
    library: str, source: str, settings: str, message: str, tmp_path: object
) -> None:
    code = _LOAD.format(library=library, source=source, settings=settings)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=str(tmp_path),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.startswith(message)
    assert done.stdout.endswith("which is not installed: pip install 'penstock[data]'\n")


def test_importing_the_package_loads_none_of_them() -> None:
    code = (
        "import compiler.data, sys; print({'pyarrow', 'PIL', 'tokenizers', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
