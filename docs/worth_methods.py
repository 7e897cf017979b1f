"""Draws the table of docs/worth.md: ``python docs/worth_methods.py`` writes docs/images/worth_methods.png."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
MOST = 100.0  # tries: a curve of thirteen rates says nothing beyond
OURS = ("finder-learned", "prior", "policy")


def rows() -> list[tuple[str, list[float], list[float]]]:
    """Return methods with tries and their interval, at home and held out, in the order of the table."""
    text = (DOCS / "worth.md").read_text(encoding="utf-8").partition("| one result of |")[2].partition("\n\n")[0]
    found = []
    for line in text.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.findall(r"`([^`]+)`", cells[0])[0] + (" tuned" if "the floor" in cells[0] else "")
        found.append((name, numbers(cells[1]), numbers(cells[4])))
    return found


def numbers(cell: str) -> list[float]:
    """Return the numbers of a cell: tries, low and high."""
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


def draw() -> Figure:
    """Return the figure."""
    table = rows()[::-1]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for axes, part, title in zip(
        figure.subplots(1, 2, sharey=True), (1, 2), ("at home, 8 settings", "held out, 6 settings"), strict=True
    ):
        for place, row in enumerate(table):
            tries, low, high = row[part]
            colour = "tab:red" if row[0] in OURS else "0.45"
            axes.plot([low, high], [place, place], color=colour, alpha=0.4, linewidth=2)
            axes.plot([tries], [place], "o", color=colour)
        axes.set(xscale="log", xlim=(0.09, 1.1 * MOST), title=title, xlabel="tries with cosine (95 %); 100: or more")
        axes.set_yticks(range(len(table)), [row[0] for row in table])
        axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    draw().savefig(DOCS / "images" / "worth_methods.png", dpi=110)
