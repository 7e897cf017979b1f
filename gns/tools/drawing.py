"""A picture of a layer graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gns.errors import needing
from gns.tools.console import printable

if TYPE_CHECKING:
    from gns.graph.layer_graph import LayerGraph

# Okabe and Ito's colours, told apart in every common form of colour blindness; one a node type.
TYPE_COLOURS = {
    "linear": "#0072B2",
    "conv": "#E69F00",
    "norm": "#8C8C8C",
    "embedding": "#009E73",
    "attention": "#CC79A7",
    "recurrent": "#D55E00",
    "other": "#56B4E9",
}

DPI = 120  # of pictures that are written
MAX_PIXELS = 16_000_000  # of one picture
MAX_INCHES = 100.0  # of either side of a picture of a graph
LONGEST_LABEL = 60  # characters of a name beside a node
ARROWS = 1000  # edges beyond these are drawn as plain lines, which takes a fraction of the time


def dpi_within_budget(figure: Any) -> float:
    """Return the dots per inch of a picture: :data:`DPI`, fewer where it would have over :data:`MAX_PIXELS` pixels."""
    width, height = figure.get_size_inches()
    return float(min(DPI, (MAX_PIXELS / (width * height)) ** 0.5, 60_000 / max(width, height)))


def draw_layer_graph(
    graph: LayerGraph,
    axis: Any = None,
    level: str = "layer",
    max_labels: int = 40,
    values: np.ndarray | None = None,
    label: str = "",
) -> Any:
    """Draw a layer graph with networkx and matplotlib, inputs at the top.

    :param graph: the graph
    :param axis: matplotlib axes; new ones by default
    :param level: ``"layer"`` or ``"block"``
    :param max_labels: write names beside the nodes of graphs up to this size
    :param values: a number for each node, (L,) or (B,), that colours it; None: layers have the colour of their type
    :param label: what the numbers are
    :return: the axes
    """
    with needing("plots"):
        import networkx as nx
        from matplotlib import pyplot as plt
        from matplotlib.lines import Line2D

    if level == "block":
        names, edges = list(graph.block_names), graph.block_edges
        count = np.bincount(graph.block_ids)
        depths = np.bincount(graph.block_ids, weights=graph.depths) / count
        sizes = np.bincount(graph.block_ids, weights=np.array(graph.sizes, dtype=float))
        colours = ["#0072B2"] * len(names)
        used: list[str] = []
    else:
        names, edges, depths = list(graph.names), graph.edges, graph.depths
        sizes = np.array(graph.sizes, dtype=float)
        colours = [TYPE_COLOURS[kind] for kind in graph.types]
        used = [kind for kind in TYPE_COLOURS if kind in graph.types]
    labels = [""] * len(names)
    if len(names) <= max_labels:
        labels = [printable(name, LONGEST_LABEL) for name in _without_common_prefix(names)]
    rows, row_sizes = np.unique(depths, return_counts=True)
    if axis is None:
        # Each node has its label to its right: room for the longest one beside every node of the widest row.
        width = 1.5 + row_sizes.max() * (0.4 + 0.062 * max(len(name) for name in labels))
        size = min(max(4.0, width), MAX_INCHES), min(max(3.0, 0.45 * len(rows)), MAX_INCHES)
        _, axis = plt.subplots(figsize=size, layout="constrained")
    drawing = nx.DiGraph()
    drawing.add_nodes_from(range(len(names)))
    drawing.add_edges_from((int(a), int(b)) for a, b in edges.T)
    positions = _positions(depths)
    radius = 60 + 90 * (np.log10(np.maximum(sizes, 1)) / max(np.log10(max(sizes.max(), 10)), 1))
    shades: dict[str, Any] = {"node_color": colours} if values is None else {"node_color": values, "cmap": "viridis"}
    nodes = nx.draw_networkx_nodes(drawing, positions, ax=axis, node_size=radius, edgecolors="black", **shades)
    arrows = {"arrowsize": 9, "node_size": radius, "connectionstyle": "arc3,rad=0.12"}
    few = drawing.number_of_edges() <= ARROWS
    nx.draw_networkx_edges(drawing, positions, ax=axis, width=0.8, arrows=few, **(arrows if few else {}))
    for number, name in enumerate(labels):
        axis.annotate(
            name, positions[number], (8, 0), textcoords="offset points", va="center", fontsize=7, parse_math=False
        )
    if values is not None:
        axis.figure.colorbar(nodes, ax=axis, shrink=0.7).set_label(label, fontsize=8)
    elif used:
        handles = [Line2D([], [], marker="o", linestyle="", color=TYPE_COLOURS[kind], label=kind) for kind in used]
        axis.legend(handles=handles, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles))
    axis.set_title(f"layer graph: {len(names)} {level}s, {edges.shape[1]} edges", fontsize=9)
    places = [x for x, _ in positions.values()]
    axis.set_xlim(min(places) - 0.2, max(places) + 1.0)
    axis.set_ylim(-1.0 - 1.5 / max(len(rows) - 1, 1), 0.5 / max(len(rows) - 1, 1))
    axis.set_axis_off()
    return axis


def _without_common_prefix(names: list[str]) -> list[str]:
    """Drop the leading modules that all names share."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [".".join(p[shared:]) for p in parts]


def _positions(depths: np.ndarray) -> dict[int, tuple[float, float]]:
    """Depth downwards; nodes of one depth side by side."""
    positions = {}
    for depth in np.unique(depths):
        row = np.flatnonzero(depths == depth)
        for place, node in enumerate(row):
            positions[int(node)] = (float(place - (len(row) - 1) / 2), float(-depth))
    return positions
