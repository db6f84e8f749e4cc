"""Every log line goes through ``penstock.process.telemetry.log``: the event is a constant, its facts are fields."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    path
    for package in ("penstock", "compiler", "edge_agent", "cloud_core")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path != ROOT / "penstock/process/telemetry.py" and "runners" not in path.parts
]
_METHODS = {"debug", "info", "warning", "warn", "error", "exception", "critical", "log"}


def complaints(source: str) -> Iterator[str]:
    """Lines that log in another way."""
    tree = ast.parse(source)
    loggers = {"logging"} | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_get_logger(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(attr=method, value=ast.Name(id=name)) if name in loggers and method in _METHODS:
                yield f"{node.lineno}: {name}.{method}"
            case ast.Attribute(attr=method, value=ast.Call() as made) if _is_get_logger(made) and method in _METHODS:
                yield f"{node.lineno}: getLogger().{method}"
            case ast.Name(id="log") | ast.Attribute(attr="log", value=ast.Name(id="telemetry")):
                yield from (f"{node.lineno}: {problem}" for problem in _problems(node))


def _is_get_logger(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")


def _problems(call: ast.Call) -> Iterator[str]:
    event = call.args[2] if len(call.args) > 2 else None
    if not isinstance(event, ast.Constant) or not isinstance(event.value, str):
        yield "the event is no constant; what varies goes into fields"
    elif set(event.value) & set("%{}\n") or event.value != event.value.strip():
        yield f"{event.value!r} is no plain event"


def test_modules_log_in_the_one_way() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in MODULES for line in complaints(path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        '_log.info("ready")',
        'logging.warning("x")',
        'logging.getLogger("a").error("x")',
        'log(_log, logging.INFO, f"rollout {name}")',
        "log(_log, logging.INFO, event)",
        'log(_log, logging.INFO, "rollout %s")',
        'telemetry.log(_log, logging.INFO, text + "x")',
    ],
)
def test_another_way_is_found(line: str) -> None:
    assert list(complaints(f"import logging\n_log = logging.getLogger(__name__)\n{line}\n")) != []


def test_the_one_way_is_not_complained_about() -> None:
    source = '_log = logging.getLogger(__name__)\nlog(_log, logging.INFO, "ready", http=address)\nmath.log(2)\n'
    assert list(complaints(source)) == []
