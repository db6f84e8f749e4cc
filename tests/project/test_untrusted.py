"""What runs on servers and devices has no way to run what somebody sent: no unpickler, no evaluation of text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("penstock", "cloud_core", "edge_agent")
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "yaml"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}


def _found(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names if one.name.partition(".")[0] in UNPICKLERS)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNPICKLERS:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in EVALUATORS:
                yield f"{name}()"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield "allow_pickle=True"
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                yield "shell=True"
            case _:
                pass


def test_nothing_that_a_client_sends_can_be_unpickled_or_evaluated() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 200
    found = {}
    for path in files:
        names = set(_found(ast.parse(path.read_text(encoding="utf-8"))))
        if names:
            found[str(path.relative_to(ROOT))] = names
    assert found == {}


def test_what_would_be_found_is_found() -> None:
    text = "import pickle\nfrom yaml import load\nnp.load(f, allow_pickle=True)\neval(x)\nrun('x', shell=True)\n"
    assert set(_found(ast.parse(text))) == {"pickle", "yaml", "allow_pickle=True", "eval()", "shell=True"}
