"""The policy that comes with the package: small, loaded with no network, and frank about itself."""

import logging

import pytest
import torch
from torch import nn

from gns import GNSPolicy, GNSScheduler
from gns.scheduler import policy_source
from gns.scheduler.policy_source import BUNDLED
from gns.tools.command_line import main


def test_it_is_small_and_loads_from_the_package():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 2**20
    assert {path.name for path in BUNDLED.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    policy = GNSPolicy.from_pretrained(BUNDLED)
    assert not policy.training and policy.config.training["tasks"]


def test_its_card_repeats_what_its_config_says_and_names_its_limits():
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    for key, value in GNSPolicy.from_pretrained(BUNDLED).config.training.items():
        assert f"| {key} | {value} |" in card, key
    for word in ("## Evaluation", "## Limits", "digits_cnn", "seeds", "fine-tun"):
        assert word in card, word


def test_a_scheduler_takes_it_where_none_is_given_and_says_so(caplog):
    torch.manual_seed(0)
    inputs, targets = torch.randn(256, 20), torch.randint(0, 3, (256,))
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    policy_source._tell_of_bundled.cache_clear()  # it is told once a process
    with caplog.at_level(logging.WARNING, "gns"):
        scheduler = GNSScheduler(optimizer, model, total_steps=60)
    assert "bundled policy" in caplog.text and "README.md" in caplog.text
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert max(record.learning_rate for record in scheduler.history) > 1e-4  # it left a rate far too low
    assert len(scheduler.history) == 20


def test_a_plan_without_a_policy_is_the_bundled_ones(capsys):
    assert main(["plan", "torch.nn:Linear", "--args", "[3, 2]", "--input", "3", "--total-steps", "100"]) == 0
    shown = capsys.readouterr().out
    assert "the bundled one" in shown and GNSPolicy.from_pretrained(BUNDLED).config.training["tasks"] in shown


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_it_is_part_of_what_is_installed(name, root):
    import configparser

    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    patterns = settings["options.package_data"]["gns"].split(",")
    assert any((BUNDLED / name) in set((root / "gns").glob(pattern.strip())) for pattern in patterns)
