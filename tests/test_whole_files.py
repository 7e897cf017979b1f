"""What is written beside its place and renamed is there whole or not at all."""

import ast
import errno
import os
from pathlib import Path

import pytest

from gns.whole_files import synchronise, written_whole

ROOT = Path(__file__).resolve().parent.parent


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(beside: Path, kind: str, text: str) -> None:
    if kind == "folder":
        beside.mkdir()
        beside = beside / "part"
    beside.write_text(text)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_there_stays_until_the_new_is_whole(tmp_path, kind):
    path = tmp_path / "it"
    with written_whole(path) as beside:
        write(beside, kind, "first")
        assert not path.exists() and beside.parent == tmp_path
    before = contents(tmp_path)
    assert list(before.values()) == ["first"]
    with pytest.raises(KeyboardInterrupt), written_whole(path) as beside:
        write(beside, kind, "half of")
        raise KeyboardInterrupt
    assert contents(tmp_path) == before and len(list(tmp_path.iterdir())) == 1
    with written_whole(path) as beside:
        write(beside, kind, "second")
        assert before.items() <= contents(tmp_path).items()
    assert list(contents(tmp_path).values()) == ["second"] and len(list(tmp_path.iterdir())) == 1


def test_a_folder_keeps_what_else_lies_in_it(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it/notes").write_text("mine")
    with written_whole(tmp_path / "it") as beside:
        write(beside, "folder", "new")
    assert contents(tmp_path) == {"it/notes": "mine", "it/part": "new"}


def test_what_cannot_be_renamed_is_removed_and_the_cause_is_told(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"), written_whole(tmp_path / "it") as beside:
        beside.write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_synchronise_is_none_that_fails(tmp_path, monkeypatch):
    for number, tolerated in ((errno.EINVAL, True), (errno.ENOTSUP, True), (errno.ENOSPC, False)):

        def fail(handle, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        if tolerated:
            synchronise(tmp_path)
        else:
            with pytest.raises(OSError, match="No space"):
                synchronise(tmp_path)


def test_files_are_renamed_into_their_place_here_alone():
    renames = [
        path.relative_to(ROOT).as_posix()
        for room in ("gns", "envs", "agents")
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if ast.unparse(node) in ("os.replace", "os.rename", "shutil.move")
    ]
    assert set(renames) == {"gns/whole_files.py"}
