"""Compile and run chat templates in jinja2's sandbox, set up as transformers sets it up, and within bounds.

The one importer of ``jinja2`` on a device; import it where a template is used, not before. Knows no messages and no
tokens: which template, and what it is given, is ``penstock.generation.chat_template``'s.

A template comes with the model and is as trusted as its weights are, by the model's signature. The sandbox keeps it
from Python's internals, files and processes. The bounds here end templates that loop or grow by mistake, and most that
do so on purpose: steps are counted where a loop or a macro goes round, and sizes where texts are joined, multiplied or
put out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 300_000
"""Rounds of loops and calls of macros, some seconds; a conversation of a thousand messages takes some thousands."""

MAX_CHARACTERS = 8 * 1024**2
"""Of the rendered text, and of every text that a template makes on the way."""

_MAX_INTEGER_BITS = 4096
_WIDE = re.compile(r"\d{5}|\*")


class Malformed(Exception):
    """A text is no template."""


class BoundPassed(Exception):
    """A template did more than any conversation needs."""


class Refused(Exception):
    """A template called ``raise_exception``."""


class _Run:
    """What one rendering has left, and when it takes place."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.steps = MAX_STEPS


_run: ContextVar[_Run] = ContextVar("_run")


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment (``transformers/utils/chat_template_utils.py``) with steps and sizes counted."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def step(self) -> str:
        run = _run.get()
        run.steps -= 1
        if run.steps < 0:
            raise BoundPassed(f"it took more than {MAX_STEPS} steps")
        return ""

    def sized(self, text: Any) -> Any:
        _check_size(len(text))
        return text

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and _is_sequence(left) and _is_sequence(right):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if _is_sequence(sequence) and isinstance(times, int):
                    _check_size(len(sequence) * times)
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise BoundPassed("it pads a text to a width of more than four digits")
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_INTEGER_BITS:
                raise BoundPassed(f"a number has more than {_MAX_INTEGER_BITS} bits")
        return super().call_binop(context, operator, left, right)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise BoundPassed(f"a text has more than {MAX_CHARACTERS} characters")


class _Counting(NodeTransformer):
    """Puts a step into each round of a loop or macro, and a look at the size around ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802, jinja2's names
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("sized"), [node], [], None, None, lineno=node.lineno)

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        found: nodes.Node = node
        return found


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant said, for training; rendering puts its body out."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_whole"), [], [], body).set_lineno(line)

    def _whole(self, caller: Callable[[], str]) -> str:
        return caller()


class _BoundNamespace(Namespace):
    """jinja2's, whose texts have a bound: they live on from one round of a loop to the next."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name!r} cannot be set: it begins with an underscore")
        if _is_sequence(value):
            _check_size(len(value))
        super().__setitem__(name, value)


def _raise_exception(message: Any) -> NoReturn:
    raise Refused(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as transformers does: nothing escaped for HTML, characters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return _run.get().at.strftime(form)


class CompiledTemplate:
    """One template, ready to be run by several threads.

    Raises:
        Malformed: it is none.
    """

    def __init__(self, source: str) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _BoundNamespace,
        }
        try:
            tree = environment.parse(source)
            _Counting().visit(tree)
            tree.set_environment(environment)
            code = environment.compile(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise Malformed(str(error)) from error
        self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))

    def render(self, values: Mapping[str, Any], at: datetime) -> str:
        """Run the template.

        Args:
            at: what ``strftime_now`` tells.

        Raises:
            Refused: the template's own message. BoundPassed: it loops, or grows. Exception: whatever an expression
                of a template can raise.
        """
        before = _run.set(_Run(at))
        try:
            texts, size = [], 0
            for text in self._template.generate(**values):
                size += len(text)
                _check_size(size)
                texts.append(text)
            return "".join(texts)
        finally:
            _run.reset(before)
