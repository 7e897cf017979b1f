"""Commands in the documents: what they set is there to be set. None is run, but for those of ``test_documents``."""

import importlib.util
import re
from pathlib import Path

import pytest
from documents import DOCUMENTS, commands, text_of

from agents.controllers import make_controllers
from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.suite import Suite
from agents.reports.kinds import chosen_reports
from agents.runtime.command import plain
from agents.runtime.settings import build, check_choices
from agents.trackers import TrackerConfig
from agents.training.train import TrainConfig
from envs.pool import PoolConfig
from envs.tasks import get_task
from evaluate import _OUTSIDE_PROTOCOL
from gns.tools.command_line import _check_together, _parser
from train_agent import _OUTSIDE_TRAINING, ValidationTasks

COMMANDS = [(name, words) for name in DOCUMENTS for words in commands(text_of(name))]
# Programs of others, which these tests know nothing of.
OTHERS = ("torchrun", "ray")
# What stands on the pages for tasks and controllers that their files add.
NEW = {"breast_cancer_mlp": "digits_mlp", "bold-driver": "hd"}


def of(*programs: str) -> list:
    """Commands that begin with one of these words, without them, as parameters of a test."""
    found = {}
    for name, words in COMMANDS:
        rest = words[1:] if words[0] == "python" else words
        for program in programs:
            start = program.split()
            if rest[: len(start)] == start:
                found.setdefault(" ".join(words), (name, rest[len(start) :]))
    return [pytest.param(rest, id=f"{name}: {line[:60]}") for line, (name, rest) in found.items()]


def test_every_command_is_of_a_kind_that_is_checked(root):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    setup = (root / "setup.cfg").read_text(encoding="utf-8")
    for name, words in COMMANDS:
        program, *rest = words
        if program == "python":
            known = rest[0] in ("train_agent.py", "evaluate.py", "-m") or rest[0].startswith(("examples/", "docs/"))
            assert known, (name, words)
        elif program == "make":
            assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in rest), (name, words)
        elif program == "pytest":
            assert (root / rest[0]).exists(), (name, words)
        elif program == "pip":
            extras = [extra for word in rest for extra in re.findall(r"\[(\w+)\]", word)]
            assert all(f"\n{extra} =\n" in setup for extra in extras), (name, words)
        elif program == "wandb":
            from wandb.cli.cli import cli

            assert rest[0] in cli.commands, (name, words)
        else:
            assert program in (*OTHERS, "train_agent.py", "evaluate.py"), (name, words)


def composed(compose, root_name: str, words: list[str]) -> dict:
    overrides = [word for word in words if word not in ("--cfg", "job")]
    for new, known in NEW.items():
        overrides = [word.replace(new, known) for word in overrides if not word.startswith(f"controller.{new}")]
    check_choices(overrides)
    return plain(compose(root_name, *overrides))


@pytest.mark.parametrize("words", of("train_agent.py"))
def test_settings_of_a_training_compose(words, compose):
    content = composed(compose, "train_agent", words)
    build(TrainConfig, {key: value for key, value in content.items() if key not in _OUTSIDE_TRAINING})
    pool = build(PoolConfig, content["pool"], "pool")
    build(ValidationTasks, content["validation_tasks"], "validation_tasks")
    build(TrackerConfig, content["tracker"], "tracker")
    assert [get_task(name, **changes) for name, changes in (content.get("task") or {}).items()] or pool.size
    assert content["resume"] in ("auto", "never")


@pytest.mark.parametrize("words", of("evaluate.py"))
def test_settings_of_an_evaluation_compose(words, compose):
    content = composed(compose, "evaluate", words)
    build(EvaluationConfig, {key: value for key, value in content.items() if key not in _OUTSIDE_PROTOCOL})
    build(Suite, content["suite"], "suite")
    chosen_reports(content["report"])
    make_controllers({name: about for name, about in content["controller"].items() if "policy" not in about})
    assert [get_task(name, **changes) for name, changes in content["task"].items()]


@pytest.mark.parametrize("words", [words for words in of("-m gns") if len(words.values[0]) > 1])
def test_arguments_of_the_command_line_are_read(words):
    parser = _parser()
    given = parser.parse_args(words)
    if given.command == "plan":
        _check_together(parser, given)


@pytest.mark.parametrize("words", of("-m"))
def test_modules_that_are_run_and_their_options_exist(words):
    spec = importlib.util.find_spec(words[0])
    assert spec is not None and spec.origin
    if words[0].startswith("benchmarks."):
        source = Path(spec.origin).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, option


@pytest.mark.parametrize(
    "words", [[words[1]] for _, words in COMMANDS if words[1:2] and words[1].startswith("examples/")]
)
def test_examples_exist(words, root):
    assert (root / words[0]).is_file()
