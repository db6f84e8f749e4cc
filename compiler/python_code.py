"""Python code of a recipe's author: imported from its file or its module, beside which other modules can be imported.

What it raises is the caller's to explain.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def importable(*directories: Path) -> Iterator[None]:
    """Let modules in these directories be imported meanwhile, as when a program beside them is run."""
    entries = [str(directory.resolve()) for directory in directories]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            if entry in sys.path:
                sys.path.remove(entry)


def module_in(file: Path) -> ModuleType:
    """Import the module in a file, from beside which it can import others."""
    name = f"_penstock_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with importable(file.parent):
        sys.modules[name] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
    return module
