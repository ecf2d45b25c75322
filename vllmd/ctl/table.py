"""Rows under headings, for eyes: columns as wide as what stands in them, numbers to the right."""

from collections.abc import Sequence

from vllmd.ctl.output import printable
from vllmd.ctl.width import width

GAP = "  "


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """The lines of a table.

    Args:
        headings: what stands above the columns.
        rows: as many cells each.
        right: the headings of columns that hold numbers.
    """
    lines = [headings, *([" ".join(printable(cell).split()) for cell in row] for row in rows)]
    widths = [max(width(line[at]) for line in lines) for at in range(len(headings))]
    return [GAP.join(_cells(line, widths, [each in right for each in headings])).rstrip() for line in lines]


def _cells(line: Sequence[str], widths: Sequence[int], at_right: Sequence[bool]) -> list[str]:
    spaces = [" " * (wide - width(cell)) for cell, wide in zip(line, widths, strict=True)]
    return [s + cell if is_right else cell + s for cell, s, is_right in zip(line, spaces, at_right, strict=True)]
