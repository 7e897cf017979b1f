"""Snapshots on disk: one file each, whole or not at all, gone with the run."""

import copy
import gc
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from gns import Snapshot, SnapshotError


def test_a_file_is_replaced_at_every_snapshot_and_goes_with_it(tmp_path):
    model = nn.Linear(100, 100)
    optimizer = torch.optim.Adam(model.parameters())
    snapshot = Snapshot(model, optimizer, tmp_path / "a" / "b")
    sizes = []
    for _ in range(3):
        model(torch.randn(2, 100)).sum().backward()
        optimizer.step()
        snapshot.take(1)
        (file,) = (tmp_path / "a" / "b").iterdir()
        sizes.append(file.stat().st_size)
    scalars = 3 * sum(p.numel() for p in model.parameters())
    assert sizes[0] == sizes[1] == sizes[2] and 4 * scalars < sizes[0] < 4 * scalars + 10_000
    del snapshot
    gc.collect()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_two_snapshots_in_one_folder_do_not_meet(tmp_path):
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    kept = [copy.deepcopy(model.state_dict()) for model in models]
    snapshots = [Snapshot(model, torch.optim.SGD(model.parameters(), lr=1.0), tmp_path) for model in models]
    for snapshot in snapshots:
        snapshot.take(0)
    for model, snapshot, before in zip(models, snapshots, kept, strict=True):
        nn.init.zeros_(model.weight)
        snapshot.restore()
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_a_part_of_a_larger_tensor_does_not_bring_all_of_it_to_the_file(tmp_path):
    model = nn.Linear(10, 1)
    model.weight = nn.Parameter(torch.zeros(1_000_000)[:10].reshape(1, 10))
    snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=1.0), tmp_path)
    snapshot.take(0)
    assert next(tmp_path.iterdir()).stat().st_size < 10_000


def test_no_file_is_left_when_a_process_ends(tmp_path):
    script = """
import sys
from torch import nn, optim
from gns import Snapshot
model = nn.Linear(2, 2)
snapshot = Snapshot(model, optim.SGD(model.parameters(), lr=1.0), sys.argv[1])
snapshot.take(0)
import os
assert len(os.listdir(sys.argv[1])) == 1
raise RuntimeError("the training failed")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "the training failed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    model = nn.Linear(2, 2)
    with pytest.raises(SnapshotError, match=r"No snapshot can be kept in .*file.*folder=None"):
        Snapshot(model, torch.optim.SGD(model.parameters(), lr=1.0), tmp_path / "file")


def test_a_snapshot_that_cannot_be_written_says_so_and_leaves_the_last_one(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=1.0), tmp_path)
    snapshot.take(3)
    before = copy.deepcopy(dict(model.state_dict()))
    nn.init.zeros_(model.weight)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SnapshotError, match=r"No space left on device.*Make room"):
        snapshot.take(4)
    assert snapshot.steps == 3 and len(list(tmp_path.iterdir())) == 1
    snapshot.restore()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut short", "another file"])
def test_a_file_that_somebody_damaged_is_named(tmp_path, damage):
    model = nn.Linear(20, 20)
    snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=1.0), tmp_path)
    snapshot.take(3)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes({"emptied": b"", "cut short": content[: len(content) // 2], "another file": b"x" * 99}[damage])
    with pytest.raises(SnapshotError, match="cannot be read") as raised:
        snapshot.restore()
    assert file.name in str(raised.value)
