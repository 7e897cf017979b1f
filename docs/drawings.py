"""Draws the pictures of architecture.md: ``python docs/drawings.py`` writes them into ``docs/images``."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"
COLOURS = {"yours": "#f4f4f4", "gns": "#dcebf7", "envs": "#e2f2e4", "agents": "#fbeadb"}
WIDTH, HALF, HEIGHT, STEP, SIDE, TOP = 860, 400, 64, 92, 20, 20
SANS, MONO = "font-family='Helvetica, Arial, sans-serif'", "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace'"


@dataclass(frozen=True)
class Box:
    """One station of a way.

    :param row: its place from the top
    :param column: 0: left half, 1: right half, None: the whole width
    :param title: what happens there
    :param paths: files where it does
    :param room: whose it is, which colours it
    :param to: numbers of the boxes that an arrow leads to
    """

    row: int
    column: int | None
    title: str
    paths: Sequence[str]
    room: str
    to: Sequence[int] = ()

    @property
    def left(self) -> int:
        """Left edge."""
        return SIDE + (self.column or 0) * (WIDTH - 2 * SIDE - HALF)

    @property
    def width(self) -> int:
        """Width."""
        return WIDTH - 2 * SIDE if self.column is None else HALF

    @property
    def top(self) -> int:
        """Upper edge."""
        return TOP + self.row * STEP


LOSS_TO_RATE = [
    Box(0, 0, "your training loop: loss.backward(), optimizer.step()", [], "yours", [1]),
    Box(1, 0, "hooks see outputs and optimizer steps", ["gns/scheduler/hooks.py"], "gns", [2]),
    Box(2, 0, "one run: is a decision due?", ["gns/scheduler/scheduler.py", "gns/scheduler/run.py"], "gns", [6]),
    Box(0, 1, "PPO: an action for every environment", ["agents/training/ppo.py"], "agents", [4]),
    Box(1, 1, "the environment: step(action)", ["envs/learning_rate_env.py"], "envs", [5]),
    Box(2, 1, "the training run computes a pending gradient", ["envs/training_run.py"], "envs", [6]),
    Box(3, None, "the guard keeps a good state or takes the run back, the decision core observes and decides",
        ["gns/deciding/guarded_run.py", "gns/deciding/decision.py", "gns/deciding/guard.py"], "gns", [7]),
    Box(4, 0, "sums of every layer's weights and gradients", ["gns/features/sums.py"], "gns", [8]),
    Box(5, 0, "features: a row a layer, and the run's", ["gns/features/schemas.py"], "gns", [10]),
    Box(5, 1, "the layer graph, once, from the first loss", ["gns/graph/layer_graph.py"], "gns", [10]),
    Box(6, None, "the policy's graph network answers with an action in [-1, 1]",
        ["gns/policy/artefact.py", "gns/policy/network.py"], "gns", [11]),
    Box(7, None, "the action changes the level, the profile shapes it, bounds hold it",
        ["gns/deciding/action_modes.py", "gns/deciding/rate_control.py", "gns/schedules/profiles.py"], "gns", [12]),
    Box(8, None, "every parameter group of the optimizer gets its rate, ratios kept; the pending update is made",
        [], "yours"),
]  # fmt: skip
RUN_TO_ROW = [
    Box(0, None, "a configuration names tasks, controllers and the protocol",
        ["evaluate.py", "configs/evaluate.yaml"], "agents", [1, 2]),
    Box(1, 0, "task: data, model, loss, metrics", ["envs/tasks/base.py"], "envs", [3]),
    Box(1, 1, "controller: a method with its settings", ["agents/controllers/base.py"], "agents", [4]),
    Box(2, 0, "training run: one model being trained", ["envs/training_run.py"], "envs", [5]),
    Box(2, 1, "its session writes the rate before every update", ["agents/controllers/base.py"], "agents", [5]),
    Box(3, None, "a job: one run on a worker, its losses and what it cost make a row",
        ["agents/evaluation/sweep.py", "agents/runtime/lanes.py"], "agents", [6, 7]),
    Box(4, 0, "rows are kept: no run is made twice", ["agents/evaluation/results_cache.py"], "agents"),
    Box(4, 1, "protocol: rates are chosen on the reward split", ["agents/evaluation/protocol.py"], "agents", [8]),
    Box(5, None, "results.csv: a row a run", ["agents/reports/files.py"], "agents", [9]),
    Box(6, None, "compared with the best tuned schedule, over seeds, with intervals",
        ["agents/evaluation/comparison.py", "agents/evaluation/statistics.py"], "agents", [10, 11]),
    Box(7, 0, "a row of table.md, and of the HTML report", ["agents/reports/html_report.py"], "agents"),
    Box(7, 1, "a row of the W&B report", ["agents/reports/wandb_report.py"], "agents"),
]  # fmt: skip
PICTURES = {"loss_to_rate": LOSS_TO_RATE, "run_to_row": RUN_TO_ROW}


def picture(boxes: Sequence[Box], label: str) -> str:
    """Return a picture as SVG.

    :param boxes: its stations
    :param label: what it shows, for those who hear it read
    """
    height = max(box.top for box in boxes) + HEIGHT + 56
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{label}'>",
        "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path d='M0 0 L10 5 L0 10 z' fill='#444'/></marker></defs>",
        f"<rect width='{WIDTH}' height='{height}' rx='8' fill='#ffffff'/>",
    ]
    for box in boxes:
        parts += [_arrow(box, boxes[number]) for number in box.to]
    parts += [_drawn(box) for box in boxes]
    place = SIDE
    for room in dict.fromkeys(box.room for box in boxes):
        parts.append(
            f"<rect x='{place}' y='{height - 34}' width='16' height='16' rx='3' fill='{COLOURS[room]}' stroke='#888'/>"
            f"<text x='{place + 22}' y='{height - 21}' font-size='13' {SANS}>{room}</text>"
        )
        place += 110
    return "\n".join([*parts, "</svg>", ""])


def _drawn(box: Box) -> str:
    middle, first = box.left + box.width / 2, box.top + (26 if box.paths else 37)
    text = (
        f"<text x='{middle:g}' y='{first}' font-size='15' {SANS} text-anchor='middle'>{html.escape(box.title)}</text>"
    )
    if box.paths:
        text += (
            f"<text x='{middle:g}' y='{box.top + 49}' font-size='12.5' fill='#333' {MONO} text-anchor='middle'>"
            f"{' · '.join(box.paths)}</text>"
        )
    return (
        f"<rect x='{box.left}' y='{box.top}' width='{box.width}' height='{HEIGHT}' rx='6' fill='{COLOURS[box.room]}' "
        f"stroke='#888'/>{text}"
    )


def _arrow(start: Box, end: Box) -> str:
    """A vertical arrow, in the middle of the narrower of two boxes."""
    narrow = end if start.column is None else start
    x = narrow.left + narrow.width / 2
    return (
        f"<line x1='{x:g}' y1='{start.top + HEIGHT}' x2='{x:g}' y2='{end.top}' stroke='#444' stroke-width='1.5' "
        "marker-end='url(#head)'/>"
    )


if __name__ == "__main__":
    for name, boxes in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(picture(boxes, name.replace("_", " ")), encoding="utf-8")
