"""What is installed: an sdist that makes the wheel, and a wheel that runs what the README shows."""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from documents import python_blocks, text_of
from test_imports import imported, modules

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("gns", "envs", "agents", "configs")
FILES = (
    *("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("Makefile", "constraints.txt", "train_agent.py", "evaluate.py"),
)
CORE = {"torch", "torch_geometric", "numpy", "huggingface_hub", "safetensors"}
OPTIONAL = {"matplotlib", "networkx", "rich", "transformers", "pytorch_lightning"}


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist of a copy of the tree, so that no file of a build is left in the tree."""
    tree, made = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    for name in (*ROOMS, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    run("-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(made)!r})", cwd=tree)
    return next(made.glob("gns_scheduler-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel that is made from the sdist, and so from nothing that it lacks."""
    folder, made = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run("-c", f"from setuptools.build_meta import build_wheel; build_wheel({str(made)!r})", cwd=next(folder.iterdir()))
    return next(made.glob("gns_scheduler-*-py3-none-any.whl"))


def test_a_wheel_has_all_that_runs_and_no_test(wheel, sdist):
    names = set(zipfile.ZipFile(wheel).namelist())
    pretrained = {f"gns/pretrained/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    assert names >= {"gns/py.typed", "gns/schedules/calibrated.json", "configs/train_agent.yaml", *pretrained}
    for room in ROOMS:
        own = (path for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        assert {path.relative_to(ROOT).as_posix() for path in own} <= names
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {*ROOMS, "train_agent.py", "evaluate.py"}
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "constraints.txt", "LICENSE"} <= held and not any(n.startswith("tests") for n in held)


def test_what_the_readme_shows_runs_from_the_wheel(wheel, tmp_path):
    target = tmp_path / "installed"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target)
    run(*install, wheel, cwd=tmp_path)
    block = next(block for block in python_blocks(text_of("README.md")) if "GNSScheduler" in block)
    (tmp_path / "readme.py").write_text(f"{block}\nimport gns\nprint(gns.__file__)\n", encoding="utf-8")
    printed = run(tmp_path / "readme.py", cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert printed[-2].startswith("learning rate at the end") and printed[-1] == str(target / "gns" / "__init__.py")


def test_what_is_needed_is_what_gns_imports_and_the_rest_are_extras():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    needed = settings["options"]["install_requires"].split()
    assert {name.partition(">=")[0].replace("-", "_") for name in needed} == CORE
    found = {name.partition(".")[0] for name, path in modules("gns").items() for name in imported(path.read_text())}
    assert found - {"gns"} - set(sys.stdlib_module_names) == CORE | OPTIONAL
    extras = settings["options.extras_require"]
    assert {"plots", "train", "text", "tracking", "cluster", "all"} <= set(extras)
    assert all(">=" in line or line.startswith("gns-scheduler[") for extra in extras.values() for line in extra.split())
