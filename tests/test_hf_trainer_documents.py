"""What the document and the examples for transformers' Trainer show runs as it stands."""

import re
import runpy
import sys

import pytest
import torch
from minilm import bert_folder
from scheduler_loop import lively_policy
from trainer_runs import logged


def fresh(monkeypatch, tmp_path, *argv):
    """As in a process of its own, but for the random numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(argv))
    return torch.random.fork_rng(devices=[])


def test_the_code_of_the_document_runs(root, tmp_path, monkeypatch, capsys):
    text = (root / "docs" / "integrations.md").read_text(encoding="utf-8")
    section = text.partition("## Hugging Face Trainer")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names = {"__name__": "document"}
    with fresh(monkeypatch, tmp_path):
        for block in blocks:
            exec(compile(block, "docs/integrations.md", "exec"), names)
    assert [record.update for record in names["scheduler"].history] == list(range(0, 100, 5))
    other = names["trainer"].lr_scheduler
    assert other is not names["scheduler"] and other.last_epoch == other.budget == 100


def test_the_example_on_digits_runs_and_prints_every_decision(root, tmp_path, monkeypatch, capsys):
    lively_policy().save_pretrained(tmp_path / "policy")
    capsys.readouterr()
    example = root / "examples" / "hf_trainer.py"
    with fresh(monkeypatch, tmp_path, "hf_trainer.py", "--policy", str(tmp_path / "policy")):
        runpy.run_path(str(example), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    assert [line.split()[1] for line in lines[:-1]] == ["0", "71", "142", "213", "284"]
    assert re.fullmatch(r"accuracy [01]\.\d{3}", lines[-1])


@pytest.mark.parametrize("encoder", ["MiniLM", "FacebookAI/roberta-base"])
def test_the_example_on_mrpc_fine_tunes_an_encoder_within_its_bound(encoder, root, hub, tmp_path, monkeypatch, capsys):
    model = bert_folder() if encoder == "MiniLM" else encoder
    example = root / "examples" / "mrpc_trainer.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    run = {"output_dir": "run", "model": model, "data": "nyu-mll/glue", "max_steps": "20"}
    run |= {"per_device_train_batch_size": "2", "per_device_eval_batch_size": "55", "learning_rate": "9e-4"}
    run |= {"logging_steps": "1", "use_cpu": "true", "report_to": "none", "save_strategy": "no"}
    argv = [word for name, value in run.items() for word in (f"--{name}", value)]
    with fresh(monkeypatch, tmp_path, "mrpc_trainer.py", *argv):
        names = runpy.run_path(str(example), run_name="__main__")
    assert "eval_accuracy" in capsys.readouterr().out
    scheduler, trainer = names["scheduler"], names["trainer"]
    assert len(scheduler.history) == 20 == trainer.state.global_step
    assert max(logged(trainer, "learning_rate")) <= 1e-3 and len(set(logged(trainer, "learning_rate"))) > 10
    assert len(scheduler.graph.names) > 20
