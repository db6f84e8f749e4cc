"""A function of somebody's that says how good a text is: found, called for one answer, and held to what it promised.

Owns that the compiler and a device ask it in the same way, that what goes wrong in it is told in a sentence, and that
it is known by the digest of its source. What its grades are worth is the certificate's business.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from penstock.artifact.certificates import Opinion
from penstock.errors import InvalidInput
from penstock.process import python_code

_ROUNDING = 1e-9


class TextMetric:
    """A metric ``f(prompt, answer, reference)`` that gives a number from 0 to 1.

    Attributes:
        opinion: how a certificate names it.
    """

    def __init__(self, opinion: Opinion, function: Callable[..., Any], *, setting: str) -> None:
        self.opinion, self._function, self._setting = opinion, function, setting

    def __repr__(self) -> str:
        return f"TextMetric({self.opinion.words()})"

    @classmethod
    def load(cls, name: str, base: Path, *, setting: str) -> TextMetric:
        """Import the function that ``module:function`` or ``path/file.py:function`` names.

        Args:
            base: what paths are relative to, and where modules are looked for first.
            setting: that names it, for messages.

        Raises:
            InvalidInput: there is none, importing it failed, or it does not take a prompt, an answer and a reference.
        """
        function, digest = python_code.fresh_function_in(name, base, setting=setting)
        try:
            inspect.signature(function).bind("", "", "")
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{setting}: {name} cannot be called with three texts, prompt, answer and reference: {error}",
                field=setting,
            ) from error
        return cls(Opinion(metric=name, digest=digest), function, setting=setting)

    def grade(self, prompt: str, answer: str, reference: str, *, where: str) -> float:
        """Say how good an answer is, from 0 to 1.

        Args:
            reference: what it is compared with.
            where: which answer that is, for messages.

        Raises:
            InvalidInput: the function raised, or gave something else.
        """
        name = self.opinion.metric
        with python_code.telling(f"{name}, {where}", setting=self._setting):
            found = self._function(prompt, answer, reference)
        if not isinstance(found, numbers.Real | np.bool_):
            raise InvalidInput(
                f"{self._setting}: {name}, {where}: gave {type(found).__name__}, expected a number from 0 to 1",
                field=self._setting,
            )
        value = float(found)
        if not -_ROUNDING <= value <= 1 + _ROUNDING:  # NaN too
            raise InvalidInput(
                f"{self._setting}: {name}, {where}: gave {value:g}, expected 0 to 1", field=self._setting
            )
        return min(max(value, 0.0), 1.0)
