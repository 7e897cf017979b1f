"""Code in the documents runs as it stands, and what they name exists."""

import re

import matplotlib
import pytest

from gns import GNSPolicy

matplotlib.use("Agg")
DOCUMENTS = ["README.md", "docs/method.md", "docs/controllers.md"]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_blocks_run(name, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    GNSPolicy().save_pretrained("outputs/demo/policy")
    found = blocks((root / name).read_text(encoding="utf-8"))
    assert found
    for block in found:
        exec(compile(block, name, "exec"), {"__name__": "document"})
    if name == "docs/method.md":
        assert capsys.readouterr().out == "('0', '2') [[0], [1]]\n"


@pytest.mark.parametrize(
    "name",
    [
        *DOCUMENTS,
        "docs/tasks.md",
        "docs/autolrs.md",
        "docs/command_line.md",
        "docs/scheduler.md",
        "docs/distributed.md",
        "docs/security.md",
        "docs/performance.md",
        "docs/resuming.md",
        "docs/cluster.md",
        "docs/evidence.md",
        "docs/reports.md",
        "docs/integrations.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ],
)
def test_links_and_pictures_exist(name, root):
    text = (root / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
        assert ((root / name).parent / target).exists(), target


def test_the_readme_lists_every_task_optimizer_schedule_and_controller(root):
    from envs.tasks import known_tasks
    from envs.training_run import OPTIMIZERS
    from gns.decision import ACTION_MODES
    from gns.profiles import PROFILES

    text = (root / "README.md").read_text(encoding="utf-8")
    built_in = [name for name in known_tasks() if not name.startswith("test_")]
    for name in (*built_in, *OPTIMIZERS, *PROFILES, *ACTION_MODES):
        assert f"`{name}`" in text, name
    controllers = (root / "docs" / "controllers.md").read_text(encoding="utf-8")
    for path in (root / "configs" / "controller").glob("*.yaml"):
        assert f"`{path.stem}`" in controllers, path.stem
        assert f"`{path.stem}`" in text or path.stem == "policy", path.stem
