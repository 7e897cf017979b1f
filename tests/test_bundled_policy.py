"""What comes with the package: the prior, which decides where no policy is given, and a learned policy."""

import logging

import pytest
import torch
from torch import nn

from gns import GNSPolicy, GNSScheduler, PolicyFormatError
from gns.policy.finding import BUNDLED, PRIOR_FOLDER
from gns.scheduler.policy_source import fingerprint
from gns.tools.command_line import main

FILES = ["config.json", "model.safetensors", "README.md"]


def test_they_are_small_and_load_from_the_package():
    for folder in (BUNDLED, PRIOR_FOLDER):
        assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
        assert {path.name for path in folder.iterdir()} == set(FILES)
    policy = GNSPolicy.from_pretrained(BUNDLED)
    assert not policy.training and policy.config.training["tasks"]


def test_its_card_repeats_what_its_config_says_and_names_its_limits():
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    for key, value in GNSPolicy.from_pretrained(BUNDLED).config.training.items():
        assert f"| {key} | {value} |" in card, key
    for word in ("## Evaluation", "## Limits", "digits_cnn", "seeds", "fine-tun"):
        assert word in card, word


def train(policy: object) -> GNSScheduler:
    """Return the scheduler of a small run from a rate far too low."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(256, 20), torch.randint(0, 3, (256,))
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    scheduler = GNSScheduler(optimizer, model, total_steps=60, policy=policy)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    return scheduler


@pytest.mark.parametrize("policy", [None, BUNDLED], ids=["prior", "learned"])
def test_a_rate_far_too_low_is_left(policy, caplog):
    with caplog.at_level(logging.WARNING, "gns"):
        scheduler = train(policy)
    assert caplog.text == ""
    assert max(record.learning_rate for record in scheduler.history) > 1e-4
    assert len(scheduler.history) == 20


def test_where_no_policy_is_given_the_prior_decides():
    assert fingerprint(train(None).policy) == fingerprint(GNSPolicy.from_pretrained("prior"))


def test_both_go_by_a_name_that_no_folder_takes_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "learned").mkdir()
    for name, folder in (("prior", PRIOR_FOLDER), ("learned", BUNDLED)):
        assert fingerprint(GNSPolicy.from_pretrained(name)) == fingerprint(GNSPolicy.from_pretrained(folder))
    with pytest.raises(PolicyFormatError, match=r"has no config.json"):
        GNSPolicy.from_pretrained("./learned")


def test_a_plan_without_a_policy_is_the_priors(capsys):
    assert main(["plan", "torch.nn:Linear", "--args", "[3, 2]", "--input", "3", "--total-steps", "100"]) == 0
    assert "none given: the prior" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("folder", [BUNDLED, PRIOR_FOLDER])
def test_they_are_part_of_what_is_installed(folder, name, root):
    import configparser

    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    patterns = settings["options.package_data"]["gns"].split(",")
    assert any((folder / name) in set((root / "gns").glob(pattern.strip())) for pattern in patterns)
