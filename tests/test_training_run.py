"""A training run is a plain PyTorch loop: bit for bit, whatever else runs beside it."""

import io
import math

import numpy as np
import pytest
import torch
from plain_loop import plain_run, same_state, small_task
from torch import nn

from envs import EnvConfig, LearningRateEnv, TrainingRun, get_task
from envs.passes import evaluate_split
from gns import DecisionConfig, GuardConfig, InvalidSettingError, UnknownNameError

RATES = {"sgd": 0.1, "sgdm": 0.05, "adam": 1e-3, "adamw": 1e-3}
every_optimizer = pytest.mark.parametrize("optimizer", sorted(RATES))
STILL = np.zeros(1, dtype=np.float32)


def train(run: TrainingRun, updates: int) -> list[float]:
    losses = []
    for _ in range(updates):
        losses.append(run.compute_gradient().item())
        run.apply_update()
    return losses


# ---------------------------------------------------------------------- equal to plain PyTorch


@every_optimizer
@pytest.mark.parametrize("task", ["digits_mlp", "digits_cnn", "dropout", "batch_norm"])
def test_a_run_equals_a_plain_loop(task, optimizer):
    task = get_task(task) if task.startswith("digits") else small_task(task)
    run = TrainingRun(task, optimizer, RATES[optimizer], seed=11)
    losses = train(run, 50)  # more than one pass over the data
    plain = plain_run(task, optimizer, RATES[optimizer], seed=11, updates=50)
    assert losses == plain.losses
    assert same_state(run.model, plain.model)


@pytest.mark.parametrize("batch_size", [1077, 5000])
def test_a_batch_is_at_most_the_whole_training_split(batch_size):
    task = get_task("digits_mlp", batch_size=batch_size)
    run = TrainingRun(task, "adam", 1e-3, seed=2)
    losses = train(run, 3)
    assert losses == plain_run(task, "adam", 1e-3, seed=2, updates=3).losses


def env_run(optimizer: str, mode: str, *, guard: bool = True, task: str = "plain", budget: int = 47):
    """Play an episode of zero actions; return the environment and the loss and the rate of every update."""
    config = EnvConfig(
        optimizers=(optimizer,),
        budgets=(budget, budget),
        decision=DecisionConfig(mode=mode, num_decisions=6),
        guard=GuardConfig(enabled=guard),
        reward_probability=0.5,
    )
    env = LearningRateEnv([small_task(task)], config)
    env.reset(seed=0, options={"seed": 5, "learning_rate": RATES[optimizer]})
    seen = []
    env.run.optimizer.register_step_post_hook(
        lambda stepped, *_: seen.append((env.run.loss.item(), stepped.param_groups[0]["lr"]))
    )
    terminated, rewards = False, []
    while not terminated:
        _, reward, terminated, _, _ = env.step(STILL)
        rewards.append(reward)
    return env, seen, rewards


@every_optimizer
@pytest.mark.parametrize("task", ["plain", "dropout", "batch_norm"])
def test_recursive_without_action_equals_a_constant_rate(optimizer, task):
    env, seen, _ = env_run(optimizer, "recursive", task=task)
    plain = plain_run(small_task(task), optimizer, RATES[optimizer], seed=5, updates=47)
    assert [loss for loss, _ in seen] == plain.losses
    assert {rate for _, rate in seen} == {RATES[optimizer]}
    assert same_state(env.run.model, plain.model)


@every_optimizer
def test_profile_without_action_equals_rex_set_by_hand(optimizer):
    budget, initial = 47, RATES[optimizer]

    def rate(t: int) -> float:
        z = t / budget
        return initial * ((1.0 - z) / (0.5 + 0.5 * (1.0 - z)))

    env, seen, _ = env_run(optimizer, "profile", budget=budget)
    plain = plain_run(small_task(), optimizer, initial, seed=5, updates=budget, rate=rate)
    assert seen == [(loss, rate(t)) for t, loss in enumerate(plain.losses)]
    assert same_state(env.run.model, plain.model)


@pytest.mark.parametrize("mode", ["profile", "recursive"])
@pytest.mark.parametrize("task", ["plain", "dropout", "batch_norm"])
def test_the_guard_changes_nothing_where_nothing_diverges(mode, task):
    (on, seen_on, rewards_on), (off, seen_off, rewards_off) = (
        env_run("adam", mode, guard=guard, task=task) for guard in (True, False)
    )
    assert on.rollbacks == 0
    assert seen_on == seen_off
    assert rewards_on == rewards_off
    assert same_state(on.run.model, off.run.model)


# ---------------------------------------------------------------------- a function of its seed alone


def test_interleaved_runs_equal_runs_one_after_the_other():
    task = small_task("dropout")

    def make() -> list[TrainingRun]:
        return [TrainingRun(task, name, RATES[name], seed=seed) for seed, name in ((1, "adam"), (2, "sgdm"))]

    apart = [train(run, 20) for run in make()]
    one, other = make()
    together: tuple[list[float], list[float]] = ([], [])
    for _ in range(20):
        for losses, run in zip(together, (one, other), strict=True):
            losses.append(run.compute_gradient().item())
        for run in (other, one):
            run.apply_update()
            run.evaluate_reward_split()
    assert list(together) == apart


def test_the_seed_decides_and_global_random_numbers_do_not():
    task = small_task("dropout")

    def losses(seed: int, outside: int) -> list[float]:
        torch.manual_seed(outside)
        return train(TrainingRun(task, "adam", 1e-3, seed=seed), 5)

    assert losses(3, outside=0) == losses(3, outside=1)
    assert losses(3, outside=0) != losses(4, outside=0)


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(17)
    before = torch.get_rng_state()
    run = TrainingRun(small_task("dropout"), "adam", 1e-3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    go_back = run.position()
    train(run, 3)
    run.evaluate_reward_split()
    go_back()
    assert torch.equal(torch.get_rng_state(), before)


def test_global_random_numbers_are_left_alone_when_training_fails():
    def fail(outputs, targets):
        torch.rand(3)
        raise RuntimeError("no loss today")

    run = TrainingRun(small_task("dropout", loss=fail), "adam", 1e-3, seed=1)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no loss today"):
        run.compute_gradient()
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- going back


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_position_goes_back_exactly(done):
    task = small_task("dropout", batch_size=400)  # two batches a pass, so that passes end in between
    run = TrainingRun(task, "sgdm", 0.05, seed=8)

    def gradients() -> list[torch.Tensor]:
        found = []
        for _ in range(5):
            run.compute_gradient()
            found.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]))
        return found

    for _ in range(done):
        run.compute_gradient()
    go_back = run.position()
    first = gradients()
    assert not torch.equal(first[0], first[2])  # another order, another mask
    for _ in range(2):
        go_back()
        assert all(torch.equal(a, b) for a, b in zip(gradients(), first, strict=True))


# ---------------------------------------------------------------------- evaluation


def test_evaluation_is_the_mean_over_the_reward_split_and_disturbs_nothing():
    task = small_task("dropout")
    quiet, watched = (TrainingRun(task, "adam", 1e-2, seed=4) for _ in range(2))
    for _ in range(10):
        train(quiet, 1)
        train(watched, 1)
        figures = watched.evaluate_reward_split()
    assert same_state(quiet.model, watched.model)
    reward, model = task.training_data().reward, quiet.model.eval()
    with torch.no_grad():
        outputs = model(reward.inputs)
    assert figures.loss == pytest.approx(nn.functional.cross_entropy(outputs, reward.targets).item(), rel=1e-6)
    assert figures.metric == pytest.approx((outputs.argmax(1) == reward.targets).double().mean().item())
    assert watched.model.training and figures.loss != pytest.approx(math.log(10), rel=0.05)


def test_evaluation_in_chunks_is_evaluation_at_once():
    task = small_task()
    run = TrainingRun(task, "adam", 1e-2, seed=4)
    reward = task.training_data().reward
    chunked, whole = (evaluate_split(run.model, task, reward, chunk) for chunk in (7, None))
    assert chunked.loss == pytest.approx(whole.loss) and chunked.metrics == whole.metrics == {"accuracy": whole.metric}


def test_evaluation_puts_back_the_mode_of_every_module():
    run = TrainingRun(small_task("batch_norm"), "adam", 1e-3, seed=0)
    run.model[2].eval()  # a part kept as it was pretrained
    modes = [module.training for module in run.model.modules()]
    run.evaluate_reward_split()
    assert [module.training for module in run.model.modules()] == modes


# ---------------------------------------------------------------------- errors


def test_unknown_optimizer_is_named_with_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"Unknown optimizer 'adamv'.*adam, adamw, nadamw, sgd, sgdm.*Did you mean 'adamw?'"
    ):
        TrainingRun(small_task(), "adamv", 1e-3, seed=0)


@pytest.mark.parametrize("rate", [0, 0.0, -1e-3, float("nan"), float("inf"), "1e-3"])
def test_learning_rate_must_be_positive(rate):
    with pytest.raises(InvalidSettingError, match="learning_rate"):
        TrainingRun(small_task(), "adam", rate, seed=0)


# ---------------------------------------------------------------------- going on from a saved state


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw", "nadamw"])
@pytest.mark.parametrize("kind", ["dropout", "batch_norm"])
def test_a_run_goes_on_from_its_state_bit_for_bit(kind, optimizer, precision):
    task = small_task(kind, precision=precision, accumulation=2, clip_norm=1.0, batch_size=500)

    def advance(run, updates):
        for _ in range(updates):
            run.compute_gradient()
            run.apply_update()

    whole, first, second = (TrainingRun(task, optimizer, 0.01, seed) for seed in (0, 0, 1))
    advance(whole, 9)
    advance(first, 5)
    first.compute_gradient()
    first.apply_update()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    advance(first, 2)
    second.compute_gradient()  # a pending gradient is dropped
    second.load_state_dict(torch.load(file, weights_only=True))
    advance(second, 3)
    assert same_state(second.model, whole.model)
    assert second.evaluate_reward_split().loss == whole.evaluate_reward_split().loss
    second.load_state_dict(first.state_dict())
    advance(second, 1)
    assert same_state(second.model, whole.model)


# ---------------------------------------------------------------------- float16


def test_float16_trains_about_as_float32_does():
    losses = {}
    for precision in ("float32", "float16"):
        run = TrainingRun(small_task(precision=precision), "sgdm", 0.05, 0)
        for _ in range(60):
            run.compute_gradient()
            run.apply_update()
        losses[precision] = run.evaluate_reward_split().loss
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.05)


def test_an_update_that_overflows_in_float16_is_left_out_and_its_gradient_is_0():
    run = TrainingRun(small_task(precision="float16"), "sgdm", 0.05, 0)
    run._scaler.load_state_dict({**run._scaler.state_dict(), "scale": 2.0**40})
    before = [p.detach().clone() for p in run.model.parameters()]
    run.compute_gradient()
    assert all(not p.grad.any() for p in run.model.parameters())
    run.apply_update()
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.state_dict()["scaler"]["scale"] == 2.0**39
    for _ in range(40):
        run.compute_gradient()
        run.apply_update()
    assert not torch.equal(before[0], next(run.model.parameters()))


def test_an_episode_runs_in_float16_and_rolls_its_scaler_back():
    env = LearningRateEnv([small_task(precision="float16")], EnvConfig(optimizers=("sgdm",)))
    env.reset(seed=0, options={"budget": 40, "learning_rate": 0.05})
    terminated = False
    while not terminated:
        observation, reward, terminated, _, _ = env.step(np.array([0.0]))
        assert np.isfinite(observation.nodes).all() and math.isfinite(reward)
    scale = env.run.state_dict()["scaler"]["scale"]
    go_back = env.run.position()
    env.run.compute_gradient()
    env.run._scaler.load_state_dict({**env.run._scaler.state_dict(), "scale": 8.0})
    go_back()
    assert env.run.state_dict()["scaler"]["scale"] == scale
    env.run.compute_gradient()  # a gradient that was never applied is no obstacle
    env.run.apply_update()


def test_a_hessian_needs_more_than_float16():
    run = TrainingRun(small_task(precision="float16"), "sgdm", 0.05, 0)
    with pytest.raises(InvalidSettingError, match="float16"):
        run.compute_gradient(keep_graph=True)
