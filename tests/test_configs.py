"""Every YAML file under configs composes, builds, and says what the code says."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from agents.controllers import ScheduleController, make_controller, make_controllers, policy_name
from agents.evaluation.protocol import EvaluationConfig
from agents.runtime.command import plain
from agents.runtime.settings import CONFIG_FOLDER, build
from agents.training.train import TrainConfig
from envs.tasks import get_task, known_tasks
from evaluate import _OUTSIDE_PROTOCOL
from gns import GNSPolicy, Schedule
from gns.errors import InvalidSettingError
from gns.schedules.profiles import PROFILES
from train_agent import _OUTSIDE_TRAINING


def training(config) -> TrainConfig:
    return build(TrainConfig, {key: value for key, value in plain(config).items() if key not in _OUTSIDE_TRAINING})


@pytest.mark.parametrize("name", known_tasks())
def test_each_registered_task_has_a_config_with_all_of_its_settings(name, compose):
    content = plain(compose("train_agent", f"task=[{name}]"))["task"]
    assert list(content) == [name]
    assert set(content[name]) == set(get_task(name).settings())
    assert get_task(name, **content[name]) == get_task(name)


def test_configs_of_tasks_repeat_none_of_their_settings():
    files = {path.stem: OmegaConf.load(path) for path in (CONFIG_FOLDER / "task").glob("*.yaml")}
    assert sorted(files) == known_tasks()
    assert all(content == {"defaults": [f"registered/{name}@_here_"]} for name, content in files.items())


def test_every_setting_of_a_task_can_be_given_on_the_command_line(compose):
    changes = ["batch_size=8", "accumulation=2", "budget=7", "optimizer=sgd", "clip_norm=1.5", "precision=bfloat16"]
    changes += ["evaluation_batch_size=50", "learning_rates.adam=[1e-3,1e-2]", "model.hidden=[5]"]
    content = plain(compose("evaluate", "task=[digits_mlp]", *(f"task.digits_mlp.{change}" for change in changes)))
    changed, own = get_task("digits_mlp", **content["task"]["digits_mlp"]).settings(), get_task("digits_mlp").settings()
    assert [name for name in own if changed[name] == own[name]] == ["epochs"]
    assert changed["model"]["hidden"] == [5] and changed["learning_rates"]["adam"] == (1e-3, 1e-2)


def test_of_budget_and_epochs_the_one_that_is_given_counts(compose):
    for overrides, expected in (
        ((), (None, 3)),
        (("task.glue_cola.budget=40",), (40, None)),
        (("task.glue_cola.epochs=5",), (None, 5)),
        (("task.glue_cola.budget=40", "task.glue_cola.epochs=null"), (40, None)),
    ):
        content = plain(compose("train_agent", "task=[glue_cola]", *overrides))["task"]
        task = get_task("glue_cola", **content["glue_cola"])
        assert (task.budget, task.epochs) == expected
    with pytest.raises(InvalidSettingError, match="budget 40 and epochs 5; expected one"):
        get_task("glue_cola", budget=40, epochs=5)


def test_several_tasks_can_be_picked(compose):
    content = plain(compose("train_agent", "task=[digits_mlp,mnist1d_mlp]", "task.mnist1d_mlp.budget=77"))["task"]
    assert list(content) == ["digits_mlp", "mnist1d_mlp"]
    assert get_task("mnist1d_mlp", **content["mnist1d_mlp"]).budget == 77


@pytest.mark.parametrize("name", PROFILES)
def test_each_schedule_has_a_config_and_builds(name, compose):
    content = plain(compose("evaluate", f"controller=[{name}]"))["controller"]
    assert list(content) == [name] and content[name]["profile"] == name
    known = [field.name for field in dataclasses.fields(Schedule)]
    assert 0.0 < Schedule(**{key: value for key, value in content[name].items() if key in known})(0.0) <= 1.0
    controller = make_controller(name, content[name])
    assert controller.name == name and controller.tuned


def test_settings_of_a_schedule_can_be_overridden(compose):
    pick = ["controller=[delayed-linear,rex]", "controller.delayed-linear.settings.delay=0.25"]
    content = plain(compose("evaluate", *pick, "+controller.rex.sampling=10-10"))["controller"]
    assert content["delayed-linear"]["settings"] == {"delay": 0.25}
    assert content["rex"]["sampling"] == "10-10"


@pytest.mark.parametrize("env,agent", [("default", "gns"), ("gns-paper", "gns-paper"), ("srls", "srls")])
def test_environment_and_agent_configs_build(env, agent, compose):
    settings = training(compose("train_agent", f"env={env}", f"agent={agent}"))
    assert settings.env.decision.features == settings.agent.network.features


def test_the_paper_configuration_is_the_published_one(compose):
    settings = training(compose("train_agent", "env=gns-paper", "agent=gns-paper"))
    env, agent = settings.env, settings.agent
    assert (env.decision.mode, env.decision.interval(300), env.reward_probability) == ("gns-paper", 10, 0.2)
    assert not env.guard.enabled and env.reward == "squared-metric"
    assert (agent.clip_range, agent.n_epochs, agent.gamma, agent.gae_lambda, agent.ent_coef) == (
        0.2,
        20,
        0.99,
        0.95,
        0.01,
    )
    assert agent.network.action_scale == 0.1 and not agent.learn_std
    assert agent.log_std == pytest.approx(-2.995732, abs=1e-6)  # ln 0.05


def test_features_of_environment_and_network_must_agree(compose):
    with pytest.raises(InvalidSettingError, match="one schema"):
        training(compose("train_agent", "env=gns-paper"))


def test_the_evaluation_config_builds(compose):
    content = plain(compose("evaluate", "policy=somewhere"))
    settings = build(EvaluationConfig, {k: v for k, v in content.items() if k not in _OUTSIDE_PROTOCOL})
    task = get_task("digits_mlp")
    rates = settings.rates_of(ScheduleController("rex", "rex"), task, "adam")
    assert len(rates) == 8 and rates[0] == pytest.approx(1e-4) and rates[1] / rates[0] == pytest.approx(3.0)
    assert content["controller"]["policy"]["policy"] == "somewhere"


def names(config) -> list[str]:
    return [controller.name for controller in make_controllers(plain(config)["controller"])]


def test_each_of_several_policies_becomes_a_controller_named_after_its_run(compose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/policy", "b/policy", "other/a/policy", "rex/policy", "loose"):
        GNSPolicy().save_pretrained(folder)
    pick = "controller=[rex,policy,cosine]"
    assert names(compose("evaluate", pick, "policy=a/policy")) == ["rex", "policy", "cosine"]
    several = "policy=[a/policy,b/policy/,other/a/policy,a/policy,rex/policy,loose,./b/policy/../policy]"
    assert names(compose("evaluate", pick, several)) == [
        "rex",
        "a",
        "b",
        "a_2",
        "a_3",
        "rex_2",
        "loose",
        "b_2",
        "cosine",
    ]
    assert names(compose("evaluate", pick, "policy=[a/policy]")) == ["rex", "a", "cosine"]
    by_name = "policy={first: a/policy, cosine: b/policy, 3: loose}"
    assert names(compose("evaluate", pick, by_name)) == ["rex", "first", "cosine_2", "3", "cosine"]
    assert names(compose("evaluate", "controller=[rex,cosine]", several)) == ["rex", "cosine"]
    more = ["+controller.policy_1.kind=policy", "+controller.policy_1.policy=loose"]
    assert names(compose("evaluate", "controller=[policy]", "policy=[a/policy,b/policy]", *more)) == [
        "a",
        "b",
        "policy_1",
    ]


def test_a_hub_id_names_its_policy_by_its_repository():
    assert policy_name("user/gns-x") == "gns-x" and policy_name("user/policy") == "policy"
