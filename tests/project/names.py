"""Finds names of code in prose (docstrings, comments) and looks them up in the source, without importing it.

Read are dotted names in backticks that begin with a package of ours, paths of files in backticks, and Sphinx roles
(``:func:``), which may be relative to their module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("penstock", "compiler", "edge_agent", "cloud_core")
_TREES = (*PACKAGES, "tests", "benchmarks", "examples", "scripts", "docs", "proto", "hw_tests")
_DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?:\(\))?`")
_PATH = re.compile(rf"`((?:{'|'.join(_TREES)})/[\w./*-]+)(?:::\w+)?`")
_RELATIVE = re.compile(r"``([a-z_]+\.(?!(?:py|toml|sock|json|md|db)``)\w+)``")
_ROLE = re.compile(r":(?:mod|func|class|meth|attr|data|exc):`~?([\w.]+)`")
_NO_MODULE = re.compile(r"\.(?:toml|json|proto|md|sqlite|commands|v1)$|\.v1\.")


def prose_of(source: str) -> Iterator[str]:
    """Docstrings (also those below an assignment) and comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    yield from re.findall(r"#.*`.*", source)


def missing(text: str, module: Path | None = None) -> Iterator[str]:
    """Names in ``text`` that do not exist; those without a package are looked up in ``module``."""
    for name in _DOTTED.findall(text):
        if not _NO_MODULE.search(name) and not exists(name):
            yield name
    for name in _PATH.findall(text):
        if not any(ROOT.glob(name.rstrip("/."))):
            yield name
    for name in _RELATIVE.findall(text) if module is not None else ():
        sibling, _, rest = name.partition(".")
        if (module.parent / f"{sibling}.py").is_file() and not _is_in(module.parent / f"{sibling}.py", [rest]):
            yield name
    for name in _ROLE.findall(text):
        is_ours = name.partition(".")[0] in PACKAGES
        if not (exists(name) if is_ours else module is not None and _is_in(module, name.split("."))):
            yield name


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or something that a module defines or imports."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module.is_file():
            return _is_in(module, parts[length:])
        if path.is_dir():
            return length == len(parts)
    return False


def _is_in(module: Path, parts: list[str]) -> bool:
    return not parts or _has(_definitions(module), parts) or _of_class(module, parts)


def _of_class(module: Path, parts: list[str]) -> bool:
    """A method that is named without its class, as in the docstring of a sibling."""
    return any(isinstance(node, ast.ClassDef) and _has(_members(node), parts) for node in _parsed(module).body)


def _has(known: dict[str, ast.AST], parts: list[str]) -> bool:
    if parts[0] not in known:
        return False
    node = known[parts[0]]
    if len(parts) == 1:
        return True
    if isinstance(node, ast.ClassDef):
        return _has(_members(node), parts[1:])
    if isinstance(node, ast.ImportFrom):  # ours are followed, other libraries are believed
        imported = {alias.asname or alias.name: alias.name for alias in node.names}[parts[0]]
        return (
            exists(".".join([node.module or "", imported, *parts[1:]]))
            or (node.module or "").split(".")[0] not in PACKAGES
        )
    return isinstance(node, ast.Import)


@cache
def _parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@cache
def _definitions(module: Path) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for node in ast.walk(_parsed(module)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
    for node in _parsed(module).body:
        found |= dict(_named(node))
    return found


def _members(owner: ast.ClassDef) -> dict[str, ast.AST]:
    found = dict(pair for node in owner.body for pair in _named(node))
    for node in ast.walk(owner):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.setdefault(node.attr, node)
    return found


def _named(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, node
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name, node
        case ast.Assign(targets=targets):
            for target in targets:
                yield from ((child.id, node) for child in ast.walk(target) if isinstance(child, ast.Name))
        case ast.If(body=body, orelse=orelse):
            for child in (*body, *orelse):
                yield from _named(child)
