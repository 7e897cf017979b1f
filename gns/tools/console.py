"""Text for people: aligned columns of plain text; tables of rich on a terminal, where rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

Cell = str | int
LONGEST = 2000  # characters of one text that are shown
LISTED = 1000  # rows of one table that are printed


def print_line(text: str = "") -> None:
    """Print one line, without what could steer a terminal."""
    print(printable(text))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a titled table after an empty line; whole numbers stand to the right, with thousands separated.

    :param title: what the rows are
    :param columns: heading of each column; all empty: a list of names and values, without headings
    :param rows: one value a column; the first :data:`LISTED` are printed
    """
    left_out, rows = len(rows) - LISTED, rows[:LISTED]
    cells = [[f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row] for row in rows]
    numbers = [bool(rows) and all(isinstance(row[place], int) for row in rows) for place in range(len(columns))]
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _print_rich(title, columns, cells, numbers)
    else:
        _print_plain(title, columns, cells, numbers)
    if left_out > 0:
        print_line(f"{left_out:,} further rows are left out.")


def printable(text: str, most: int = LONGEST) -> str:
    """Return text that can be shown: control characters are escaped, a long text is cut and its length is given.

    Names and values may come from a file of anyone's making.

    :param most: characters that are shown
    """
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text[:most]
    )
    return escaped if len(text) <= most else f"{escaped}... ({len(text):,} characters)"


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
