"""What the scheduler's document and example show runs as it stands."""

import re
import runpy
import sys

import matplotlib
import pytest
import torch
from scheduler_loop import lively_policy

matplotlib.use("Agg")


def test_the_code_of_the_document_runs(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lively_policy().save_pretrained("outputs/demo/policy")
    text = (root / "docs" / "scheduler.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/scheduler.md", "exec"), {"__name__": "document"})
    assert float(capsys.readouterr().out) > 0 and (tmp_path / "run.png").stat().st_size > 0


def run_example(root, monkeypatch, capsys, *arguments: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["plain_pytorch.py", *arguments])
    capsys.readouterr()
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(root / "examples" / "plain_pytorch.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_the_example_runs_and_prints_every_decision(root, tmp_path, monkeypatch, capsys):
    lively_policy().save_pretrained(tmp_path / "policy")
    lines = run_example(root, monkeypatch, capsys, str(tmp_path / "policy"))
    assert [line.split()[1] for line in lines[:-1]] == ["0", "60", "120", "180", "240"]
    assert re.fullmatch(r"accuracy [01]\.\d{3}", lines[-1])


def test_the_example_needs_no_argument_for_the_prior_decides_then(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = run_example(root, monkeypatch, capsys)
    assert len(lines) == 1 + 20
    assert float(lines[-1].removeprefix("accuracy ")) > 0.9


def code_of(root, section: str) -> str:
    text = (root / "docs" / "integrations.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"^```python\n(.*?)^```", text.partition(f"## {section}\n")[2].partition("\n## ")[0], re.MULTILINE | re.DOTALL
    )
    return block


@pytest.mark.parametrize("section", ["PyTorch Lightning", "Accelerate", "PEFT"])
def test_the_code_for_a_framework_runs(section, root, tmp_path, monkeypatch, capsys):
    from accelerate.state import AcceleratorState, GradientState

    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(code_of(root, section), "docs/integrations.md", "exec"), names := {"__name__": "document"})
    printed = float(capsys.readouterr().out.splitlines()[-1])
    if section == "PEFT":
        assert printed == 9 and len(names["scheduler"].history) == 20
    else:
        assert 1e-5 < printed <= 1.0
    assert list(tmp_path.iterdir()) == []
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
