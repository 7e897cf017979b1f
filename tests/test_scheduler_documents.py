"""What the scheduler's document and example show runs as it stands."""

import re
import runpy
import sys

import matplotlib
import torch
from scheduler_loop import lively_policy

matplotlib.use("Agg")


def test_the_code_of_the_document_runs(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lively_policy().save_pretrained("outputs/demo/policy")
    text = (root / "docs" / "scheduler.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/scheduler.md", "exec"), {"__name__": "document"})
    assert float(capsys.readouterr().out) > 0 and (tmp_path / "rates.png").stat().st_size > 0


def test_the_example_runs_and_prints_every_decision(root, tmp_path, monkeypatch, capsys):
    lively_policy().save_pretrained(tmp_path / "policy")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["plain_pytorch.py", str(tmp_path / "policy")])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(root / "examples" / "plain_pytorch.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["0", "60", "120", "180", "240"]
    assert re.fullmatch(r"accuracy [01]\.\d{3}", lines[-1])


def test_the_code_for_lightning_and_accelerate_runs(root, tmp_path, monkeypatch, capsys):
    from accelerate.state import AcceleratorState, GradientState

    monkeypatch.chdir(tmp_path)
    text = (root / "docs" / "integrations_lightning_accelerate.md").read_text(encoding="utf-8")
    lightning, accelerate = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for block in (lightning, accelerate):
        capsys.readouterr()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            exec(compile(block, "docs/integrations_lightning_accelerate.md", "exec"), {"__name__": "document"})
        assert 1e-5 < float(capsys.readouterr().out.splitlines()[-1]) <= 1.0
    assert list(tmp_path.iterdir()) == []
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
