"""Bad input to a scheduler: a named error that says what to do, before the first update where it can be known."""

import pickle
import shutil

import pytest
import torch
from scheduler_loop import T, lively_policy, make_scheduler, network, two_groups

from gns import GNSPolicy, GNSScheduler, InvalidSettingError, PolicyFormatError
from gns.policy.finding import CONFIG_FILE, WEIGHTS_FILE
from gns.scheduler import policy_source as scheduler_policy


def make(policy=None, **settings):
    model = network()
    settings = {"total_steps": T, **settings}
    return GNSScheduler(two_groups(model, rate=settings.pop("rate", 0.01)), model, policy=policy, **settings)


@pytest.mark.parametrize("steps", [0, -3, 2.5, float("nan"), float("inf"), "100", True])
def test_a_budget_that_is_no_count_is_refused(steps):
    with pytest.raises(InvalidSettingError, match=r"total_steps is .*; expected"):
        make(lively_policy(), total_steps=steps)


def test_arguments_in_the_wrong_order_are_refused():
    model = network()
    with pytest.raises(InvalidSettingError, match=r"optimizer is a Sequential; expected a torch\.optim"):
        GNSScheduler(model, two_groups(model), total_steps=T, policy=lively_policy())
    with pytest.raises(InvalidSettingError, match="model is a list; expected a torch"):
        GNSScheduler(two_groups(model), list(model.parameters()), total_steps=T, policy=lively_policy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_lr": 0.0}, "min_lr is 0.0"),
        ({"max_lr": float("inf")}, "max_lr is inf"),
        ({"min_lr": 0.1, "max_lr": 0.01}, "expected min_lr < max_lr"),
        ({"max_lr": 0.02}, "initial learning rate is 0.03"),
        ({"min_lr": 0.02}, "initial learning rate is 0.01"),
        ({"rate": 0.0}, "initial learning rate is 0.0"),
        ({"rate": torch.tensor(0.0)}, "initial learning rate is 0.0"),
    ],
)
def test_rates_and_bounds_outside_their_domain_are_refused(settings, message):
    if "rate" in settings:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=settings["rate"], foreach=False)
        with pytest.raises(InvalidSettingError, match=message):
            make_scheduler(optimizer, model)
    else:
        with pytest.raises(InvalidSettingError, match=message):
            make(lively_policy(), **settings)


@pytest.mark.parametrize("policy", [3, "", b"folder", {}, torch.nn.Linear(1, 1)])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(InvalidSettingError, match="expected a folder, a Hub id or a GNSPolicy"):
        make(policy)


def test_a_policy_that_needs_validation_is_refused():
    with pytest.raises(PolicyFormatError, match="'srls', which need a pass over held-out data"):
        make(lively_policy(features="srls"))


class Harmful:
    """Would leave a file behind if it were unpickled."""

    def __reduce__(self):
        return open, ("harm", "w")


def test_a_file_in_place_of_a_policy_is_refused_and_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.pkl").write_bytes(pickle.dumps(Harmful()))
    torch.save(Harmful(), tmp_path / "policy.pt")
    for name in ("policy.pkl", "policy.pt"):
        with pytest.raises(PolicyFormatError, match="is a file; expected the folder of a policy"):
            make(tmp_path / name)
    for name in ("policy.pkl", "policy.pt"):
        lively_policy().save_pretrained(folder := tmp_path / f"folder of {name}")
        shutil.copy(tmp_path / name, folder / WEIGHTS_FILE)
        with pytest.raises(PolicyFormatError, match="undamaged"):
            make(folder)
        shutil.copy(tmp_path / name, folder / CONFIG_FILE)
        with pytest.raises(PolicyFormatError, match="not valid JSON"):
            make(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_truncated_or_missing_file_is_refused(name, tmp_path):
    lively_policy().save_pretrained(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PolicyFormatError):
        make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(PolicyFormatError, match=f"has no {name}"):
        make(tmp_path)


def test_a_policy_that_is_nowhere_is_refused():
    with pytest.raises(PolicyFormatError, match="No policy at 'nobody/nothing'"):
        make("nobody/nothing")


def test_a_refused_scheduler_leaves_no_hook_behind():
    model = network()
    optimizer = two_groups(model)
    for settings in ({"total_steps": 0}, {"policy": "nobody/nothing"}, {"max_lr": 0.02}):
        with pytest.raises((InvalidSettingError, PolicyFormatError)):
            GNSScheduler(optimizer, model, **{"total_steps": T, "policy": lively_policy(), **settings})
    assert not model._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_policy_in_memory_is_copied_and_frozen():
    policy = lively_policy()
    policy.train()
    scheduler = make(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert policy.training and not scheduler.policy.training
    assert scheduler_policy.fingerprint(scheduler.policy) == scheduler_policy.fingerprint(lively_policy())
    assert isinstance(scheduler.policy, GNSPolicy)
    assert not any(parameter.requires_grad for parameter in scheduler.policy.parameters())
