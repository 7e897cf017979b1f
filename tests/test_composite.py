"""Groups of environments act as one vector of them, in this process and in others."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from plain_loop import small_task

from agents.training.ppo import make_vec_env
from envs import EnvConfig, LearningRateEnv, PadGraph, get_task
from envs.batched.composite import LARGEST_GROUP, CompositeVecEnv, forward_operations, make_vector, pays, plan
from envs.batched.env import BatchedEnv
from envs.batched.model import NotBatchableError
from gns import DecisionConfig

CONFIG = EnvConfig(budgets=(10, 20), decision=DecisionConfig(num_decisions=5), reward_probability=0.5)
SRLS = EnvConfig(budgets=(10, 20), decision=DecisionConfig(num_decisions=5, features="srls"))


def tasks_of(*names: str):
    return [small_task("plain") if name == "plain" else get_task(name) for name in names]


def sizes(groups) -> list[tuple[str, str | None, int, bool]]:
    return [(group.tasks[0].name, group.optimizer, len(group.places), group.together) for group in groups]


def test_every_pair_of_task_and_optimizer_gets_its_share_of_places():
    groups = plan(tasks_of("digits_mlp", "mnist1d_mlp"), CONFIG, 14)
    assert sizes(groups) == [
        ("digits_mlp", "adam", 4, True),
        ("digits_mlp", "sgdm", 4, True),
        ("mnist1d_mlp", "adam", 3, True),
        ("mnist1d_mlp", "sgdm", 3, True),
    ]
    assert sorted(i for group in groups for i in group.places) == list(range(14))


def test_groups_are_bounded_and_a_single_pair_gives_work_to_two_processes():
    one = EnvConfig(optimizers=("adam",), decision=CONFIG.decision)
    assert [size for *_, size, _ in sizes(plan(tasks_of("digits_mlp"), one, 16))] == [8, 8]
    large = [size for *_, size, _ in sizes(plan(tasks_of("digits_mlp"), CONFIG, 150))]
    assert sum(large) == 150 and max(large) <= LARGEST_GROUP


def test_what_cannot_be_trained_together_or_does_not_pay_is_trained_one_by_one():
    noisy = small_task("plain", precision="bfloat16")
    groups = plan([get_task("digits_mlp"), noisy], CONFIG, 8)
    assert [(group.tasks[0].name, group.together) for group in groups] == [
        *[("digits_mlp", True)] * 2,
        *[("test_plain", False)] * 4,
    ]
    assert not pays(get_task("digits_mlp"), SRLS)
    for config, together in ((SRLS, True), (CONFIG, False)):
        groups = plan(tasks_of("digits_mlp"), config, 3, together)
        assert sizes(groups) == [("digits_mlp", None, 1, False)] * 3
    assert [len(group.tasks) for group in plan(tasks_of("digits_mlp", "mnist1d_mlp"), CONFIG, 3)] == [2, 2, 2]


def test_operations_of_a_forward_pass_are_counted():
    assert forward_operations(get_task("digits_mlp")) == 2 * 32 * (64 * 64 + 64 * 32 + 32 * 10)
    wide = small_task("plain", build_model=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 20_000)))
    assert forward_operations(wide) > 4e7 and not pays(wide, CONFIG) and pays(get_task("digits_mlp"), CONFIG)
    elsewhere = EnvConfig(decision=CONFIG.decision, device="cuda")
    assert pays(wide, elsewhere)


def test_runs_whose_coming_update_is_measured_are_trained_alone():
    config = EnvConfig(decision=CONFIG.decision, optimizers=("adam", "nadamw"))
    groups = plan([get_task("digits_mlp")], config, 4)
    assert [(group.optimizer, group.together) for group in groups] == [
        ("adam", True),
        ("nadamw", False),
        ("nadamw", False),
    ]
    with pytest.raises(NotBatchableError, match="coming update of nadamw"):
        BatchedEnv(get_task("digits_mlp"), config, "nadamw", 2)


def roll(venv, seed: int, steps: int = 12) -> list:
    venv.seed(seed)
    actions = np.random.default_rng(seed)
    seen: list = [deepcopy((venv.reset(), venv.reset_infos))]
    for _ in range(steps):
        seen.append(deepcopy(venv.step(actions.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32))))
    return seen


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray | float) else one == other


@pytest.fixture(scope="module")
def seen():
    """What is seen of the same environments in this process, in one worker and in two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for workers in (0, 1, 2):
        venv = make_vector(tasks_of("digits_mlp", "mnist1d_cnn"), CONFIG, 9, workers)
        found[workers] = roll(venv, 4)
        assert venv.get_attr("optimizer") == ["adam"] * 3 + ["sgdm"] * 2 + ["adam"] * 2 + ["sgdm"] * 2
        assert venv.env_is_wrapped(PadGraph) == [True] * 9
        venv.close()
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_change_no_bit(seen, workers):
    assert same(seen[0], seen[workers])


def test_a_composite_gives_each_place_what_its_group_gives(seen):
    config = EnvConfig(**{**vars(CONFIG), "optimizers": ("sgdm",)})
    tasks = tasks_of("digits_mlp", "mnist1d_cnn")
    limits = LearningRateEnv(tasks, CONFIG).graph_limits()
    group = BatchedEnv(tasks[0], config, "sgdm", 2, limits)
    group._seeds = [4 + 3, 4 + 4]
    observation = group.reset()
    whole, infos = seen[0][0]
    assert all(np.array_equal(whole[key][3:5], observation[key]) for key in observation)
    assert infos[3:5] == group.reset_infos
    assert {info["task"] for info in infos[:5]} == {"digits_mlp"} and infos[8]["optimizer"] == "sgdm"


def test_attributes_are_set_and_methods_called_by_place():
    venv = make_vector(tasks_of("digits_mlp"), CONFIG, 4, 0)
    assert isinstance(venv, CompositeVecEnv) and len(venv.groups) == 2
    venv.set_attr("note", 5, [3])
    assert venv.get_attr("note", [2, 3]) == [5, 5] and not hasattr(venv.groups[0], "note")
    assert venv.env_method("close", indices=[0]) == [None]
    venv.set_options([{"budget": 11}, {}, {"budget": 17}, {}])
    venv.reset()
    assert [info["budget"] for info in venv.reset_infos][::2] == [11, 17]


def test_rewards_of_each_pair_are_scaled_together():
    venv = make_vec_env(tasks_of("digits_mlp"), CONFIG, 6, 0, seed=1)
    venv.reset()
    ended = 0
    for _ in range(10):
        _, _, dones, infos = venv.step(np.zeros((6, 1), np.float32))
        assert [("episode_return" in info) for info in infos] == dones.tolist()
        ended += int(dones.sum())
    assert set(venv.moments) == {"digits_mlp/adam", "digits_mlp/sgdm"}
    assert sum(moments[0] for moments in venv.moments.values()) == ended >= 12
