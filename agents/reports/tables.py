"""Tables of text, for the terminal and in Markdown. Names in them may come from files of anyone's making."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from gns.tools.console import printable


def terminal_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[int] = (0,),
    bold: Collection[int] = (),
) -> Table:
    """Return a rich table.

    :param left: places of the columns of words, which are folded where they are too wide; others stand to the right
    :param bold: numbers of rows that are emphasised, and end a group of rows
    """
    table = Table(title=_text(title), title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for place, heading in enumerate(headings):
        words = place in left
        table.add_column(_text(heading), justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*map(_text, row), style="bold" if number in bold else "", end_section=number in bold)
    return table


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return the lines of a table in Markdown, and an empty one; columns of numbers stand to the right."""
    rule = " | ".join("---" if place in left else "---:" for place in range(len(headings)))
    lines = [" | ".join(printable(cell).replace("|", "/") for cell in row) for row in (headings, *rows)]
    return [f"| {lines[0]} |", f"| {rule} |", *(f"| {line} |" for line in lines[1:]), ""]


def _text(words: str) -> Text:
    return Text("\n".join(map(printable, words.split("\n"))))
