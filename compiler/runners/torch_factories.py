"""A recipe author's own function that makes a torch module: found, and called. No runner itself."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from protocol import InputError, short


def made_by(described: dict[str, Any], base: str) -> Any:
    """Call the factory; return what it makes.

    Args:
        described: ``module`` or else ``file``, ``factory`` (the function in it), and ``named`` (what people call it).
        base: the recipe's directory; what lies there can be imported.

    Raises:
        InputError: there is no such function, or it fails.
    """
    named, factory = described["named"], described["factory"]
    module = _imported(described, base)
    function = getattr(module, factory, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise InputError(f"{named}: there is no function {factory!r}; it has {', '.join(known) or 'none'}")
    try:
        return function()
    except Exception as error:
        raise InputError(f"{named}: the factory, called without arguments, fails: {short(error)}") from error


def _imported(described: dict[str, Any], base: str) -> Any:
    sys.path.insert(0, base)
    try:
        if described["module"]:
            return importlib.import_module(described["module"])
        file = Path(described["file"])
        sys.path.insert(0, str(file.parent))
        spec = importlib.util.spec_from_file_location(f"penstock_factory_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ImportError as error:
        raise InputError(
            f"{described['named']}: {error}; a factory may import what is beside it, and what toolchain torch has"
        ) from error
    except Exception as error:
        raise InputError(f"{described['named']}: importing it fails: {short(error)}") from error
    return module
