"""Code in the documents runs as it stands, and what they name exists."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from documents import DOCUMENTS, PAGES, commands, files, python_blocks, text_of

from gns import GNSPolicy

matplotlib.use("Agg")
# Pages whose blocks other tests run, in more detail.
ELSEWHERE = {
    "docs/scheduler.md": ["test_scheduler_documents.py"],
    "docs/integrations.md": ["test_scheduler_documents.py", "test_hf_trainer_documents.py"],
    "docs/cluster.md": ["test_ray.py"],
}
WITH_CODE = [name for name in DOCUMENTS if python_blocks(text_of(name))]
WITH_FILES = [name for name in DOCUMENTS if files(text_of(name))]


@pytest.mark.parametrize("name", [name for name in WITH_CODE if name not in ELSEWHERE])
def test_python_blocks_run(name, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    GNSPolicy().save_pretrained("outputs/demo/policy")
    names = {"__name__": "document"}
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(text_of(name)):
            exec(compile(block, name, "exec"), names)
    if name == "docs/method.md":
        assert capsys.readouterr().out == "[2, 2, 2]\n('0', '2') [[0], [1]]\n"


def test_every_other_page_with_code_is_run_by_the_tests_that_say_so(root):
    assert set(ELSEWHERE) <= set(WITH_CODE)
    for name, tests in ELSEWHERE.items():
        for test in tests:
            source = (root / "tests" / test).read_text(encoding="utf-8")
            assert re.search(rf'"{name.rpartition("/")[2]}"', source) and "compile(" in source, (name, test)
    assert len(python_blocks(text_of("docs/scheduler.md"))) == len(python_blocks(text_of("docs/cluster.md"))) == 1
    sections = re.split(r"^## ", text_of("docs/integrations.md"), flags=re.MULTILINE)
    assert [section.partition("\n")[0] for section in sections if python_blocks(section)] == [
        "Hugging Face Trainer",
        "PyTorch Lightning",
        "Accelerate",
        "PEFT",
    ]


def test_files_that_pages_have_written_work_with_their_commands(root, tmp_path):
    """In a copy of the project to which they are added; they name a task and a controller, which are evaluated."""
    for part in ("gns", "envs", "agents", "configs"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "evaluate.py", tmp_path)
    for page in WITH_FILES:
        for path, content in files(text_of(page)):
            with (tmp_path / path).open("a", encoding="utf-8") as file:
                file.write(content)
    of_pages = {
        page: next(words for words in commands(text_of(page)) if words[:2] == ["python", "evaluate.py"])
        for page in WITH_FILES
    }
    call = "try:\n    runpy.run_path('evaluate.py', run_name='__main__')\n"
    call += "except SystemExit as end:\n    assert not end.code"
    calls = [f"sys.argv = {words[1:]!r}\n{call}" for words in of_pages.values()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(["import runpy, sys", *calls])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for page, words in of_pages.items():
        (new,) = (Path(path).stem for path, _ in files(text_of(page)) if path.endswith(".yaml"))
        table = (tmp_path / "outputs" / words[2].removeprefix("name=") / "table.md").read_text(encoding="utf-8")
        (title,) = re.findall(r"prints a table \*\*(.+?)\*\*", text_of(page))
        assert title in table and new in table, page


def test_pages_with_files_are_those_that_add_something():
    assert WITH_FILES == ["docs/add_a_baseline.md", "docs/add_a_task.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_pictures_exist(name, root):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text_of(name)):
        assert ((root / name).parent / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_files_named_on_a_page_exist(name, root):
    new = {path for path, _ in files(text_of(name))}
    pattern = r"`((?:gns|envs|agents|configs|tests|benchmarks|examples)/[\w/-]+(?:\.py|\.yaml|\.md|/))`"
    for path in re.findall(pattern, text_of(name)):
        assert path in new or (root / path.replace("NAME", "digits_mlp")).exists(), path


def test_the_map_of_papers_names_what_is_in_the_modules():
    rows = re.findall(r"`((?:gns|envs|agents)/[\w/]+)\.py`(?: \(([^)]+)\))?", text_of("docs/papers.md"))
    assert len(rows) > 40
    for path, names in rows:
        module = importlib.import_module(path.replace("/", "."))
        for name in re.findall(r"`([\w.]+)`", names):
            found = module
            for part in name.split("."):
                assert hasattr(found, part), (path, name)
                found = getattr(found, part)
            assert getattr(found, "__module__", module.__name__) == module.__name__, (path, name)


def test_the_readme_lists_every_task_optimizer_schedule_and_controller(root):
    from envs.tasks import known_tasks
    from envs.training_run import OPTIMIZERS
    from gns.schedules.profiles import PROFILES

    text = (root / "README.md").read_text(encoding="utf-8")
    built_in = [name for name in known_tasks() if not name.startswith("test_")]
    for name in (*built_in, *OPTIMIZERS, *PROFILES):
        assert f"`{name}`" in text, name
    controllers = (root / "docs" / "controllers.md").read_text(encoding="utf-8")
    for path in (root / "configs" / "controller").glob("*.yaml"):
        assert f"`{path.stem}`" in controllers, path.stem
