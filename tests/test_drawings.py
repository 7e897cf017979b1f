"""The pictures of docs/architecture.md are those of their script, and name files that are there."""

import runpy
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def drawings():
    from documents import ROOT

    return SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "drawings.py")))


def test_each_picture_is_as_its_script_draws_it(drawings):
    for name, boxes in drawings.PICTURES.items():
        drawn = drawings.picture(boxes, name.replace("_", " "))
        assert (drawings.IMAGES / f"{name}.svg").read_text(encoding="utf-8") == drawn, "run docs/drawings.py"


def test_each_file_in_a_picture_is_there(drawings, root):
    paths = {path for boxes in drawings.PICTURES.values() for box in boxes for path in box.paths}
    assert len(paths) > 20 and [path for path in sorted(paths) if not (root / path).is_file()] == []
