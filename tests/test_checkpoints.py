"""Checkpoints: the newest whole one is found whatever happened, and nothing damaged or foreign is taken for it."""

import errno
import hashlib
import json
import logging
import math
import os
import pickle
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.runtime import checkpoints
from agents.runtime.checkpoints import CheckpointStore
from gns.errors import CheckpointError, CheckpointMismatchError, GNSError, InvalidSettingError

SMALL = {"step": 1, "weights": torch.arange(3.0)}


def same(one, other) -> bool:
    """Whether two states are equal in kinds and to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


# ---------------------------------------------------------------------- there and back


def test_a_state_comes_back_as_it_was(store):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    state = {
        "text": "ü\n",
        "flags": [True, False, None],
        "numbers": (1, -(2**127), 0.1, math.inf, math.nan, -0.0),
        "optimizer": optimizer.state_dict(),
        "generator": torch.get_rng_state(),
        "half": torch.randn(2, 3).to(torch.bfloat16),
        "empty": torch.zeros(0),
        "nested": {"a": [({"b": (torch.tensor(True), [])},)]},
    }
    path = store.save(state, 7)
    found, where = store.newest()
    assert where == path and same(found, state)
    weights = {key: value for key, value in model.state_dict().items()}
    store.save({"model": model.state_dict()}, 8)
    assert same(store.newest()[0], {"model": weights})


def test_kinds_of_containers_and_numbers_become_plain(store):
    pair = namedtuple("pair", "a b")
    store.save(
        {"o": OrderedDict(a=1), "n": pair(1, 2), "f": np.float64(0.1), "p": torch.nn.Parameter(torch.ones(2))}, 0
    )
    assert same(store.newest()[0], {"o": {"a": 1}, "n": (1, 2), "f": 0.1, "p": torch.ones(2)})


def test_a_part_of_a_tensor_takes_the_room_of_that_part(store):
    path = store.save({"row": torch.zeros(1000, 1000)[0]}, 0)
    assert path.stat().st_size < 20_000 and store.newest()[0]["row"].shape == (1000,)


class Odd:
    pass


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [{"b": Odd()}]}, r"state\['a'\]\[0\]\['b'\] is a Odd"),
        ({"a": np.zeros(3)}, "ndarray.*torch.from_numpy"),
        ({"a": np.int64(3)}, "int64"),
        ({"a": {1, 2}}, "set"),
        ({"a": b"bytes"}, "bytes"),
        ({"a": torch.zeros(2, device="meta")}, "Tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "Tensor"),
        ({"a": 1 << 5000}, "int"),
        ({(1, 2): 0}, r"key of state is \(1, 2\)"),
        ([1], "expected a mapping"),
    ],
)
def test_what_could_not_be_read_back_is_not_saved_and_named(store, state, where):
    store.save(SMALL, 1)
    with pytest.raises(InvalidSettingError, match=where):
        store.save(state, 2)
    assert same(store.newest()[0], SMALL)


def test_a_state_within_itself_is_refused(store):
    state: dict = {}
    state["self"] = state
    with pytest.raises(InvalidSettingError, match="nested deeper"):
        store.save(state, 0)


@pytest.mark.parametrize("step", [-1, 1.0, True, "1", 2**63])
def test_a_step_that_is_no_count_is_refused(store, step):
    with pytest.raises(InvalidSettingError, match="step is"):
        store.save(SMALL, step)


@pytest.mark.parametrize("keep", [0, -1, 1.5, True])
def test_at_least_one_is_kept(tmp_path, keep):
    with pytest.raises(InvalidSettingError, match="keep is"):
        CheckpointStore(tmp_path, keep)


def test_without_a_checkpoint_nothing_is_found(tmp_path):
    assert CheckpointStore(tmp_path / "nowhere").newest() is None
    assert CheckpointStore(tmp_path).newest() is None


# ---------------------------------------------------------------------- which are kept


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_by_the_order_of_saving(tmp_path, keep):
    steps = [10, 20, 30, 5, 15]  # the training went back
    for count, step in enumerate(steps, start=1):
        store = CheckpointStore(tmp_path, keep)
        path = store.save({"step": step}, step)
        assert store.newest() == ({"step": step}, path)
        names = sorted(file.name for file in tmp_path.iterdir())
        assert [name.split("-step-")[1] for name in names] == [
            f"{kept}.checkpoint" for kept in steps[max(0, count - keep) : count]
        ]


def test_leftovers_of_a_save_that_was_cut_off_go_once_the_next_is_safe_and_other_files_stay(store, monkeypatch):
    store.save(SMALL, 1)
    stale = store.folder / ".00000002-step-2.checkpoint.123.tmp"
    stale.write_bytes(b"half of it")
    for name in ("notes.txt", "00000009-step-1.checkpoint.bak", ".hidden"):
        (store.folder / name).write_text("mine")
    monkeypatch.setattr(os, "replace", failing(errno.EIO))
    with pytest.raises(CheckpointError):
        store.save(SMALL, 2)
    assert stale.exists()
    monkeypatch.undo()
    store.save(SMALL, 2)
    assert not stale.exists() and len(list(store.folder.iterdir())) == 2 + 3


# ---------------------------------------------------------------------- crashes


def test_killed_at_any_moment_the_newest_is_whole_and_none_that_was_saved_is_lost(tmp_path, root):
    script = Path(__file__).with_name("checkpoint_crashes.py")
    finished = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout)
    assert len(results) > 80
    assert [row for row in results if not row[3]] == []  # whole
    assert [row for row in results if not row[1] <= row[2] <= row[1] + 1] == []  # that one, or the one in the making


def failing(number: int):
    def fail(*arguments, **settings):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "named"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "full"), (errno.EACCES, "cannot be written")]
)
def test_a_full_disk_or_a_folder_that_cannot_be_written_to_is_named_and_costs_no_checkpoint(
    store, monkeypatch, call, number, named
):
    for step in (1, 2, 3):
        store.save({"step": step}, step)
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(CheckpointError, match=f"{named}.*Earlier checkpoints are as they were") as caught:
        store.save({"step": 4}, 4)
    monkeypatch.undo()
    assert str(store.folder) in str(caught.value) and isinstance(caught.value, GNSError)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before
    assert store.newest()[0] == {"step": 3}
    store.save({"step": 5}, 5)
    assert store.newest()[0] == {"step": 5}


def test_a_disk_that_fills_half_way_costs_no_checkpoint(store, monkeypatch):
    store.save({"step": 1}, 1)
    written, real = [], os.write

    def write(handle, content):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return real(handle, content[: len(content) // 2])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(CheckpointError, match="disk is full"):
        store.save({"step": 2}, 2)
    monkeypatch.undo()
    assert store.newest()[0] == {"step": 1} and len(list(store.folder.iterdir())) == 1


def test_short_writes_are_gone_on_with(store, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:100]))
    store.save(SMALL, 1)
    monkeypatch.undo()
    assert same(store.newest()[0], SMALL)


def test_a_name_that_cannot_be_made_safe_leaves_the_earlier_ones(store, monkeypatch):
    for step in (1, 2, 3):
        store.save({"step": step}, step)
    real = os.fsync

    def fsync(handle):
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="disk is full"):
        store.save({"step": 4}, 4)
    names = [path.name for path in store.folder.iterdir()]
    assert all(any(f"-step-{step}." in name for name in names) for step in (1, 2, 3))


def test_a_limit_on_the_size_of_files_is_named(tmp_path, root):
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from agents.runtime.checkpoints import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1]))\n"
        "store.save({'step': 1}, 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    store.save({'step': 2, 'large': torch.zeros(10_000)}, 2)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, store.newest()[0], len(list(Path(sys.argv[1]).iterdir())))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=120,
    )
    assert finished.stdout == "CheckpointError {'step': 1} 1\n", finished.stderr


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for store in (CheckpointStore(tmp_path / "file"), CheckpointStore(tmp_path / "file" / "folder")):
        with pytest.raises(CheckpointError, match="cannot be written to"):
            store.save(SMALL, 1)
    with pytest.raises(CheckpointError, match="cannot be listed"):
        CheckpointStore(tmp_path / "file").newest()


# ---------------------------------------------------------------------- damage


def test_damaged_ones_are_skipped_with_one_warning_each_that_says_which_and_why(store, caplog):
    paths = [store.save({"step": step}, step) for step in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert store.newest() == ({"step": 1}, paths[0])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert str(paths[2]) in messages[0] and "expected" in messages[0]
    assert str(paths[1]) in messages[1] and "checksum is wrong" in messages[1]


def test_saving_goes_on_past_damaged_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save({"step": 9}, 9).write_bytes(b"")
    assert store.newest() is None
    store.save({"step": 2}, 2)
    assert store.newest()[0] == {"step": 2} and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[CheckpointStore, Path, bytes]:
    store = CheckpointStore(tmp_path_factory.mktemp("damage"))
    path = store.save(SMALL, 1, "mine")
    return store, path, path.read_bytes()


def test_no_truncated_file_is_taken_for_whole(whole):
    store, path, content = whole
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert store.newest("mine") is None, length
    path.write_bytes(content)
    assert same(store.newest("mine")[0], SMALL)


@settings(max_examples=300)
@given(flips=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 7)), min_size=1, max_size=8, unique=True))
def test_no_flipped_bits_are_taken_for_whole(whole, flips):
    store, path, content = whole
    damaged = bytearray(content)
    for place, bit in flips:
        damaged[place % len(content)] ^= 1 << bit
    path.write_bytes(damaged)
    assert (store.newest("mine") is None) == (damaged != content)


def test_every_bit_of_the_header_is_watched(whole):
    store, path, content = whole
    for place in range(100):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert store.newest("mine") is None
    path.write_bytes(content + b"\0")
    assert store.newest("mine") is None


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle", "list"])
def test_a_sealed_file_of_anything_else_is_not_run(store, tmp_path, monkeypatch, caplog, how):
    trace = tmp_path / "was here"
    real = torch.save

    def save(state, buffer):
        if how == "pickle":
            buffer.write(pickle.dumps(Touch(trace)))
        else:
            real({"a": Touch(trace)} if how == "torch" else [1, 2], buffer)

    monkeypatch.setattr(torch, "save", save)
    store.save({}, 1)
    monkeypatch.undo()
    assert store.newest() is None and not trace.exists()
    assert caplog.text.count("is not used") == 1


def test_a_sealed_file_whose_identity_is_no_text_is_skipped(store, caplog):
    store.save({"step": 1}, 1, "mine")
    path = store.save({"step": 2}, 2, "mine")
    content = path.read_bytes()
    body = content[checkpoints._START :].replace(b"mine", b"\xedine", 1)
    path.write_bytes(checkpoints.MAGIC + hashlib.sha256(body).digest() + body)
    assert store.newest("mine")[0] == {"step": 1} and "its identity is no text" in caplog.text


def test_another_format_is_not_read(store, monkeypatch, caplog):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_FORMAT", 2)
    store.save(SMALL, 1)
    monkeypatch.undo()
    assert store.newest() is None and "it has format 2, and this version reads 1" in caplog.text


# ---------------------------------------------------------------------- another configuration


def test_a_checkpoint_of_another_configuration_is_refused_with_ways_to_go_on(store):
    store.save({"step": 1}, 1, "one")
    assert store.newest("one")[0] == {"step": 1}
    for other in ("two", ""):
        with pytest.raises(CheckpointMismatchError, match=r"another configuration \('one'.*another name.*resume=never"):
            store.newest(other)
    store.save({"step": 1}, 1, "two")
    assert store.newest("two")[0] == {"step": 1}


def test_a_damaged_checkpoint_of_another_configuration_does_not_stand_in_the_way(store):
    store.save({"step": 1}, 1, "one")
    path = store.save({"step": 2}, 2, "two")
    path.write_bytes(path.read_bytes()[:-5])
    assert store.newest("one")[0] == {"step": 1}
