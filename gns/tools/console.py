"""Text for people: aligned columns of plain text, or tables of rich where the output is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

Cell = str | int


def print_line(text: str = "") -> None:
    """Print one line, without what could steer a terminal."""
    print(printable(text))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a titled table after an empty line; whole numbers stand to the right, with thousands separated.

    :param title: what the rows are
    :param columns: heading of each column; all empty: a list of names and values, without headings
    :param rows: one value a column
    """
    cells = [[f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row] for row in rows]
    numbers = [bool(rows) and all(isinstance(row[place], int) for row in rows) for place in range(len(columns))]
    if sys.stdout.isatty():
        _print_rich(title, columns, cells, numbers)
    else:
        _print_plain(title, columns, cells, numbers)


def printable(text: str) -> str:
    """Return text with control characters escaped: names and values may come from a file of anyone's making."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _print_plain(title: str, columns: Sequence[str], cells: list[list[str]], numbers: list[bool]) -> None:
    lines = ([list(columns)] if any(columns) else []) + cells
    widths = [max((len(line[place]) for line in lines), default=0) for place in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ]
        print("  " + "  ".join(padded).rstrip())


def _print_rich(title: str, columns: Sequence[str], cells: list[list[str]], numbers: list[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=any(columns), box=box.SIMPLE_HEAD)
    for name, number in zip(columns, numbers, strict=True):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)
