import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from gns.graph.layer_graph import NODE_TYPES, layer_graph
from gns.tools.drawing import TYPE_COLOURS

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.skip = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.inside(x)
        return self.head((h + self.skip(h)).mean((2, 3)))


def test_each_type_of_node_has_a_colour():
    assert tuple(TYPE_COLOURS) == NODE_TYPES and len(set(TYPE_COLOURS.values())) == len(NODE_TYPES)


@pytest.mark.parametrize("level,nodes", [("layer", 4), ("block", 4)])
def test_a_picture_names_every_node_and_saves(level, nodes, tmp_path):
    model = Residual()
    graph = layer_graph(model, model(torch.randn(2, 1, 6, 6)))
    axis = graph.plot(level=level)
    names = set(graph.names if level == "layer" else graph.block_names)
    assert {text.get_text() for text in axis.texts} == names and len(names) == nodes
    assert f"{nodes} {level}s" in axis.get_title()
    axis.figure.savefig(tmp_path / "graph.png", dpi=60)
    image = plt.imread(tmp_path / "graph.png")
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10
    plt.close(axis.figure)


def test_a_graph_without_edges_can_be_drawn_on_given_axes():
    model = nn.Linear(3, 2)
    _, axis = plt.subplots()
    assert layer_graph(model, model(torch.randn(1, 3))).plot(axis) is axis
    plt.close(axis.figure)
