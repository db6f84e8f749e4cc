"""Python code of a user's: found in its file or its module, beside which other modules can be imported.

Owns how it is named (``module:function`` or ``path/file.py:function``), that what goes wrong in it is told with its own
file and line rather than as a traceback, and by which digest a change of it is noticed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import InvalidInput, PenstockError
from penstock.process.config import nearest

_SHOWN = 300
_MAX_FILES = 200
_OURS = tuple(str(Path(__file__).resolve().parents[2] / name) for name in ("penstock", "compiler", "edge_agent"))


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
    """Import the module in a file, from beside which it can import others; what it raises is the caller's to tell."""
    name = f"_penstock_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with importable(file.parent):
        sys.modules[name] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
    return module


def function_in(source: str, base: Path, *, setting: str) -> Callable[..., Any]:
    """Import the function that ``module:function`` or ``path/file.py:function`` names.

    Args:
        base: what paths are relative to, and where modules are looked for first.
        setting: that names it, for messages.

    Raises:
        InvalidInput: there is none, or importing it failed.
    """
    where, _, name = source.rpartition(":")
    with telling(source, setting=setting):
        if not where.endswith(".py"):
            module = _from_name(where, base, setting)
        elif (base / where).is_file():
            module = module_in(base / where)
        else:
            raise InvalidInput(f"{setting}: {base / where}: no such file", field=setting)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InvalidInput(f"{setting}: {where} has no function {name!r}; {nearest(name, known)}", field=setting)
    return function  # type: ignore[no-any-return]


def digest_of_code(source: str, base: Path, *, setting: str) -> str:
    """Return ``sha256:<hex>`` over the source of a function's module and of the modules beside it that it imports.

    Installed packages do not count, and nothing is run: imports are read from the text.

    Raises:
        InvalidInput: there is no such file, it is no Python, or it imports more than a small program does.
    """
    hasher = hashlib.sha256()
    for digest in sorted(hashlib.sha256(content).digest() for content in _sources(source, base, setting).values()):
        hasher.update(digest)
    return "sha256:" + hasher.hexdigest()


def fresh_function_in(source: str, base: Path, *, setting: str) -> tuple[Callable[..., Any], str]:
    """Import a function from its source as it is now, and return it with the digest of that source.

    A process that runs for long may have imported an earlier source of it or of a module beside it, or a module of that
    name from another place: these are imported again, so that the digest is that of what runs.

    Raises:
        InvalidInput: as :func:`function_in` and :func:`digest_of_code`; or the source changed meanwhile.
    """
    digest = digest_of_code(source, base, setting=setting)
    files = [file.resolve() for file in _sources(source, base, setting)]
    roots = {files[0].parent, base.resolve()}
    names = {_module_name(file, root) for file in files for root in roots if file.is_relative_to(root)}
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if place and (Path(place).resolve() in files or (name in names and not _is_installed(place))):
            del sys.modules[name]
    importlib.invalidate_caches()
    function = function_in(source, base, setting=setting)
    if digest_of_code(source, base, setting=setting) != digest:
        raise InvalidInput(f"{setting}: {source} changed while it was imported; try again", field=setting)
    return function, digest


def _is_installed(place: str) -> bool:
    """Say whether a module is Python's own, a library's or Penstock's: one of that name beside a user's is not used."""
    return "site-packages" in place or place.startswith((sys.base_prefix, *_OURS))


def _module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources(source: str, base: Path, setting: str) -> dict[Path, bytes]:
    """Read a function's file and those beside it that it imports."""
    where = source.rpartition(":")[0]
    first = base / where if where.endswith(".py") else _file_of(where, base, setting)
    directories = (first.parent, base)
    waiting, seen = [first], dict[Path, bytes]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        if len(seen) >= _MAX_FILES:
            raise InvalidInput(f"{setting}: {source} imports more than {_MAX_FILES} files beside it", field=setting)
        try:
            seen[file] = file.read_bytes()
            tree = ast.parse(seen[file], filename=str(file))
        except FileNotFoundError:
            raise InvalidInput(f"{setting}: {file}: no such file", field=setting) from None
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            place = f"{file.name}:{error.lineno}" if isinstance(error, SyntaxError) else str(file)
            raise InvalidInput(f"{setting}: {place}: {_told(error)}", field=setting) from error
        waiting += [found for name in _imported(tree) for found in _beside(name, (file.parent, *directories))]
    return seen


@contextmanager
def telling(source: str, *, setting: str) -> Iterator[None]:
    """Turn whatever the author's code raises into one line, with the place in it that raised.

    Raises:
        InvalidInput: the code raised.
    """
    try:
        yield
    except PenstockError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"{setting}: {source}: {_place(error)}{_told(error)}", field=setting) from error


def _from_name(name: str, base: Path, setting: str) -> ModuleType:
    with importable(base):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise _no_module(name, base, setting) from None
            raise


def _no_module(name: str, base: Path, setting: str) -> InvalidInput:
    return InvalidInput(
        f"{setting}: no module {name!r} in {base.resolve()} or installed; a file: 'path/file.py:function'",
        field=setting,
    )


def _file_of(name: str, base: Path, setting: str) -> Path:
    beside = _beside(name, (base,))
    if beside:
        return beside[-1]
    with importable(base), telling(name, setting=setting):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
    if spec is None or spec.origin is None:
        raise _no_module(name, base, setting)
    return Path(spec.origin)


def _imported(tree: ast.Module) -> Iterator[str]:
    """List the modules that a text may import; a name of ``from a import b`` may be one, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from (prefix + alias.name for alias in node.names)
            if node.module:
                yield node.module


def _beside(name: str, directories: tuple[Path, ...]) -> list[Path]:
    """Find the files of a module, and of the packages around it, in the first of some directories that has it."""
    parts = name.split(".")
    for directory in directories:
        found = []
        for count in range(1, len(parts) + 1):
            place = directory.joinpath(*parts[:count])
            found += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
        if found:
            return found
    return []


def _place(error: BaseException) -> str:
    """Return ``rows.py:12 in numbers: ``, the innermost place that is not in an installed library or in Penstock."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not _is_installed(frame.filename)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: "
    if not frames:
        return ""
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}: "


def _told(error: BaseException) -> str:
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {words}"[:_SHOWN].rstrip(": ")
