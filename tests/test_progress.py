import io
import re

from rich.console import Console

from agents.runtime.progress import ProgressBar


def shown(terminal: bool, updates: int) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with ProgressBar("working", "runs", console, every=0.0) as bar:
        for done in range(1, updates + 1):
            bar.update(done, updates, f"number {done}")
    return out.getvalue()


def test_without_a_terminal_plain_lines_appear():
    lines = shown(terminal=False, updates=3).splitlines()
    assert len(lines) == 3 and all(line.startswith("working: ") for line in lines)
    assert re.search(r"3/3 runs, .*, 0 s left; number 3", lines[-1])


def test_on_a_terminal_a_live_bar_appears():
    text = shown(terminal=True, updates=3)
    assert "3/3" in text and "number 3" in text and "\x1b[" in text
