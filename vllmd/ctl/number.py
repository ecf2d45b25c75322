"""Numbers on the command line. click's own types say `FLOAT RANGE` in the help, `x>=1` in errors, and let `nan` in."""

from math import inf, isfinite
from typing import Any

import click


class Number(click.ParamType[float]):
    """A finite number within bounds, which are part of it.

    Args:
        minimum, maximum: the bounds.
        whole: whether it has no decimals.
    """

    def __init__(self, minimum: float = -inf, maximum: float = inf, *, whole: bool = False) -> None:
        self.name = "int" if whole else "float"
        self._minimum, self._maximum = minimum, maximum
        self._kind = int if whole else float

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads it. Raises click.BadParameter if it is none."""
        try:
            number: float | None = self._kind(value)
        except ValueError:
            number = None
        if number is None or (isinstance(number, float) and not isfinite(number)):
            self.fail(f"{value!r} is not a {'whole ' if self.name == 'int' else ''}number", param, ctx)
        if not self._minimum <= number <= self._maximum:
            self.fail(f"{value} is not {self._bounds()}", param, ctx)
        return number

    def _bounds(self) -> str:
        if self._maximum == inf:
            return f"at least {self._minimum:g}"
        return f"between {self._minimum:g} and {self._maximum:g}"
