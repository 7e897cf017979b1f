"""A scheduler goes on to the last bit: saved and loaded, pickled, copied, after a warm-up; and ends without a trace."""

import copy
import gc
import io
import os
import pickle
import random
import subprocess
import sys
import weakref

import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, two_groups
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from gns import InvalidSettingError
from gns.errors import LayerGraphError, StateError

SPLITS = sorted(random.Random(5).sample(range(T + 1), 20))
OPTIMIZERS = {
    "adamw": lambda model: two_groups(model),
    "fused adam": lambda model: two_groups(model, torch.optim.Adam, fused=True),
    "momentum": lambda model: two_groups(model, torch.optim.SGD, momentum=0.9, nesterov=True),
    "tensor rates": lambda model: two_groups(model, torch.optim.Adam, rate=torch.tensor(0.01), foreach=False),
    "rmsprop": lambda model: two_groups(model, torch.optim.RMSprop, rate=1e-3),
}


class Run:
    """A run with dropout, two groups, accumulation over two parts and bfloat16."""

    def __init__(self, optimizer: str = "adamw", seed: int = 7, **settings) -> None:
        torch.manual_seed(seed)
        self.model = network(dropout=0.3)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.scheduler = make_scheduler(self.optimizer, self.model, **settings)
        self.watch = Watch(self.optimizer)

    def train(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            self.optimizer.zero_grad()
            total = 0.0
            for x, y in zip(*(tensor.chunk(2) for tensor in batch(number)), strict=True):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(self.model(x), y) / 2
                loss.backward()
                total = total + loss.detach()
            self.optimizer.step()
            self.scheduler.step(total)

    def save(self) -> bytes:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        torch.save({**parts, "random": torch.get_rng_state()}, file := io.BytesIO())
        return file.getvalue()

    def load(self, saved: bytes, order: tuple[str, ...]) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        for name in order:
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_n_and_m_updates_equal_their_sum_whichever_state_is_loaded_first(optimizer):
    whole = Run(optimizer)
    whole.train(0, T)
    assert len({first for first, _ in whole.watch.rates}) > 4
    for place, n in enumerate(SPLITS):
        first = Run(optimizer)
        first.train(0, n)
        saved = first.save()
        second = Run(optimizer, seed=99)
        names = ["model", "optimizer", "scheduler"]
        second.load(saved, tuple(names if place % 2 else reversed(names)))
        assert second.scheduler.get_last_lr() == first.scheduler.get_last_lr()
        assert [group["lr"] for group in second.optimizer.param_groups] == second.scheduler.get_last_lr()
        second.train(n, T)
        assert first.watch.rates + second.watch.rates == whole.watch.rates, n
        assert same_state(second.model, whole.model), n
        assert second.scheduler.history == whole.scheduler.history
        assert second.scheduler.state_dict()["core"]["memory"] == whole.scheduler.state_dict()["core"]["memory"]


PROCESS = """
import sys, torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}]
from test_scheduler_state import Run, T
ends = {{}}
for n in {splits!r}:
    run = Run(seed=50)
    run.load(open(str(n), "rb").read(), ("scheduler", "model", "optimizer"))
    run.train(n, T)
    ends[n] = [run.watch.rates, run.model.state_dict()]
torch.save(ends, "ends")
"""


def test_a_new_process_goes_on_to_the_last_bit(root, tmp_path):
    whole, before = Run(), {}
    whole.train(0, T)
    for n in SPLITS:
        first = Run()
        first.train(0, n)
        before[n] = first.watch.rates
        (tmp_path / str(n)).write_bytes(first.save())
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS.format(tests=str(root / "tests"), splits=SPLITS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ends = torch.load(tmp_path / "ends")
    for n in SPLITS:
        rates, weights = ends[n]
        assert before[n] + rates == whole.watch.rates
        assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())


def test_a_state_is_loaded_into_a_run_that_is_under_way():
    whole = Run()
    whole.train(0, T)
    run = Run()
    run.train(0, 8)
    saved = run.save()
    run.train(8, 19)
    run.load(saved, ("scheduler", "optimizer", "model"))
    run.train(8, T)
    assert run.watch.rates[:8] + run.watch.rates[19:] == whole.watch.rates
    assert same_state(run.model, whole.model)


def test_budget_and_bounds_of_the_state_take_the_place_of_those_given():
    whole = Run(max_lr=0.031)
    whole.train(0, T)
    first = Run(max_lr=0.031)
    first.train(0, 6)
    second = Run(budget=900)
    second.load(first.save(), ("model", "optimizer", "scheduler"))
    second.train(6, T)
    assert first.watch.rates + second.watch.rates == whole.watch.rates
    assert second.scheduler.budget == T and second.scheduler.decision.max_lr == 0.031


def test_a_state_of_another_policy_other_groups_or_no_such_scheduler_is_refused():
    run = Run()
    run.train(0, 3)
    state = run.scheduler.state_dict()
    other = Run(policy=lively_policy(mode="recursive"))
    with pytest.raises(InvalidSettingError, match="another policy"):
        other.scheduler.load_state_dict(state)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(InvalidSettingError, match="2 parameter groups and the optimizer 1"):
        make_scheduler(optimizer, model).load_state_dict(state)
    cosine = lr_scheduler.CosineAnnealingLR(run.optimizer, T).state_dict()
    with pytest.raises(InvalidSettingError, match="expected one of a GNSScheduler"):
        run.scheduler.load_state_dict(cosine)


def test_loading_leaves_the_state_as_it_was():
    first = Run()
    first.train(0, 7)
    state = first.scheduler.state_dict()
    before = copy.deepcopy(state)
    for _ in range(2):
        run = Run()
        run.scheduler.load_state_dict(state)
        run.train(7, T)
    assert {key: value for key, value in state.items() if key != "core"} == {
        key: value for key, value in before.items() if key != "core"
    }
    assert state["core"]["memory"] == before["core"]["memory"]
    assert torch.equal(state["core"]["losses"], before["core"]["losses"])


# ---------------------------------------------------------------------- pickle and deepcopy


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"])
@pytest.mark.parametrize("n", [0, 5, 8])
def test_a_copy_of_model_optimizer_and_scheduler_goes_on_alike_and_by_itself(copied, n):
    whole = Run()
    whole.train(0, T)
    run = Run()
    run.train(0, n)
    random_numbers = torch.get_rng_state()
    parts = copied((run.model, run.optimizer, run.scheduler))
    twin = Run.__new__(Run)
    twin.model, twin.optimizer, twin.scheduler = parts
    assert twin.scheduler.optimizer is twin.optimizer and twin.scheduler.model is twin.model
    twin.watch = Watch(twin.optimizer)
    for one in (run, twin):
        torch.set_rng_state(random_numbers)
        one.train(n, T)
        assert same_state(one.model, whole.model)
        assert one.scheduler.history == whole.scheduler.history
    assert run.watch.rates == whole.watch.rates and run.watch.rates[n:] == twin.watch.rates


class HoldsItsScheduler(nn.Module):
    """A model with optimizer and scheduler among its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.optimizer = two_groups(self)
        self.scheduler = make_scheduler(self.optimizer, self)

    def forward(self, inputs):
        return self.body(inputs)

    def train_on(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self(batch(number)[0]), batch(number)[1])
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"])
def test_a_model_that_holds_its_scheduler_is_copied_with_it(copied):
    torch.manual_seed(0)
    model = HoldsItsScheduler()
    model.train_on(0, 8)
    twin = copied(model)
    assert twin.scheduler.model is twin and twin.scheduler.optimizer is twin.optimizer is not model.optimizer
    for one in (model, twin):
        one.train_on(8, T)
        assert one.scheduler.last_epoch == T and len(one._forward_hooks) == 1
    assert same_state(model, twin) and model.scheduler.history == twin.scheduler.history


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"])
def test_a_copy_of_the_model_alone_has_no_scheduler(copied):
    run = Run()
    run.train(0, 3)
    average = copied(run.model)
    size = len(pickle.dumps(run.model))
    assert size < len(pickle.dumps(network())) + 1000
    average(batch(0)[0]).sum().backward()
    assert run.scheduler.last_epoch == 3 and run.scheduler._losses.of_update() is None
    scheduler = make_scheduler(torch.optim.SGD(average.parameters(), lr=0.1), average)
    assert len(average._forward_hooks) == len(average._forward_hooks_with_kwargs) == 1
    assert scheduler.graph is None


def test_a_shallow_copy_keeps_the_run_as_it_was():
    run = Run()
    run.train(0, 7)
    kept = copy.copy(run.scheduler)
    kept.remove()
    memory = run.scheduler.state_dict()["core"]["memory"]
    run.train(7, T)
    assert run.scheduler.state_dict()["core"]["memory"] != memory
    assert kept.last_epoch == 7 and kept.state_dict()["core"]["memory"] == memory


# ---------------------------------------------------------------------- beside PyTorch's schedulers


def after_a_warm_up(warm_up: int, budget: int):
    torch.manual_seed(7)
    model = network()
    optimizer = two_groups(model)
    ramp = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=warm_up)
    scheduler = make_scheduler(optimizer, model, budget=budget)
    both = lr_scheduler.SequentialLR(optimizer, [ramp, scheduler], milestones=[warm_up])
    return model, optimizer, scheduler, both, Watch(optimizer)


def sequential(parts, begin: int, end: int) -> None:
    model, optimizer, scheduler, both, _ = parts
    for number in range(begin, end):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
        loss.backward()
        scheduler.report_loss(loss)
        optimizer.step()
        both.step()


def test_a_warm_up_comes_first_and_then_the_policy_from_the_initial_rates():
    warm_up = 6
    parts = after_a_warm_up(warm_up, T)
    model, optimizer, scheduler, both, watch = parts
    sequential(parts, 0, warm_up)
    ramp = [0.01 * (0.1 + 0.9 * t / warm_up) for t in range(warm_up)]
    assert [first for first, _ in watch.rates] == pytest.approx(ramp) and not scheduler.history
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.03] == both.get_last_lr()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    sequential(parts, warm_up, warm_up + T + 3)
    alone = network()
    alone.load_state_dict(weights)
    trained_by = two_groups(alone)
    trained_by.load_state_dict(state)
    alone_scheduler, alone_watch = make_scheduler(trained_by, alone), Watch(trained_by)
    for number in range(warm_up, warm_up + T + 3):
        trained_by.zero_grad()
        loss = F.cross_entropy(alone(batch(number)[0]), batch(number)[1])
        loss.backward()
        trained_by.step()
        alone_scheduler.step(loss)
    assert watch.rates[warm_up:] == alone_watch.rates and same_state(model, alone)
    assert scheduler.history == alone_scheduler.history and scheduler.last_epoch == T


@pytest.mark.parametrize("n", [3, 6, 11])
def test_a_warm_up_and_the_policy_after_it_are_saved_and_loaded(n):
    whole = after_a_warm_up(6, T)
    sequential(whole, 0, 6 + T)
    first = after_a_warm_up(6, T)
    sequential(first, 0, n)
    torch.save([part.state_dict() for part in (first[0], first[1], first[3])], file := io.BytesIO())
    file.seek(0)
    second = after_a_warm_up(6, T)
    for part, state in zip((second[0], second[1], second[3]), torch.load(file), strict=True):
        part.load_state_dict(state)
    sequential(second, n, 6 + T)
    assert first[-1].rates + second[-1].rates == whole[-1].rates and same_state(second[0], whole[0])


def test_another_scheduler_may_follow_when_the_budget_is_spent():
    torch.manual_seed(7)
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    last = lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=1000)
    both = lr_scheduler.SequentialLR(optimizer, [scheduler, last], milestones=[T])
    parts = model, optimizer, scheduler, both, Watch(optimizer)
    sequential(parts, 0, T + 3)
    assert len(scheduler.history) == 5 and parts[-1].rates[T:] == [[0.005, 0.015]] * 3


def test_a_run_is_resumed_without_a_state_dict_where_its_rates_stood():
    first = Run()
    first.train(0, 10)
    model = network(dropout=0.3)
    model.load_state_dict(first.model.state_dict())
    optimizer = two_groups(model)
    optimizer.load_state_dict(first.optimizer.state_dict())
    scheduler = make_scheduler(optimizer, model, last_epoch=9)
    assert scheduler.last_epoch == 10 and scheduler.get_last_lr() == first.scheduler.get_last_lr()
    rates = []
    for number in range(10, T):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        rates.append(scheduler.get_last_lr()[0])
    assert [record.update for record in scheduler.history] == [10, 15, 20]
    assert scheduler.last_epoch == T
    assert scheduler._run.core.initial_lrs == [0.01, 0.03]
    record = scheduler.history[0]
    assert rates[0] == pytest.approx(first.scheduler.get_last_lr()[0] * record.multiplier, rel=1e-12)
    with pytest.raises(KeyError, match="initial_lr"):
        make_scheduler(two_groups(network_ := network()), network_, last_epoch=9)


# ---------------------------------------------------------------------- the end of a scheduler


@pytest.mark.parametrize("way", ["remove", "garbage"])
def test_hooks_go_with_the_scheduler(way):
    run = Run()
    run.train(0, 7)
    model, optimizer, rates = run.model, run.optimizer, run.scheduler.get_last_lr()
    assert model._forward_hooks and optimizer._optimizer_step_pre_hooks
    if way == "remove":
        run.scheduler.remove()
        run.scheduler.remove()
    else:
        reference = weakref.ref(run.scheduler)
        del run.scheduler
        assert reference() is None  # at once: nothing refers to it, no cycle either
        gc.collect()
    assert not model._forward_hooks and not optimizer._optimizer_step_pre_hooks
    assert len(optimizer._optimizer_step_post_hooks) == 1  # the test's own
    model(batch(0)[0]).sum().backward()
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == rates


def test_a_new_schedule_begins_at_the_initial_rates():
    run = Run()
    run.train(0, T)
    run.scheduler.remove()
    again = make_scheduler(run.optimizer, run.model)
    assert again.get_last_lr() == [0.01, 0.03] == [group["lr"] for group in run.optimizer.param_groups]
    assert isinstance(again, lr_scheduler.LRScheduler) and again.last_epoch == 0


# ---------------------------------------------------------------------- damage


def damaged(state: dict, path: str, value) -> dict:
    """A copy of a state in which one entry is another, or missing."""
    state = copy.deepcopy(state)
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = state
    for part in above:
        place = place[part]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return state


MISSING = object()
DAMAGE = [
    ("budget", -5),
    ("budget", 10**15),
    ("budget", True),
    ("last_epoch", 10**6),
    ("last_epoch", 1.5),
    ("_step_count", None),
    ("_pending", 1),
    ("rollbacks", MISSING),
    ("last_epoch", 0),
    ("base_lrs", 3),
    ("base_lrs", [0.0, -1.0]),
    ("base_lrs.0", float("nan")),
    ("base_lrs.0", torch.tensor(1e30)),
    ("base_lrs.0", torch.ones(3)),
    ("_last_lr", [0.1]),
    ("_last_lr.0", "fast"),
    ("decision", []),
    ("decision.mode", "recursive"),
    ("decision.max_lr", float("inf")),
    ("decision.num_decisions", 3),
    ("graph", 7),
    ("graph.edges", [[0], [99]]),
    ("graph.types.0", "nothing"),
    ("graph.depths.0", float("nan")),
    ("graph.tensor_sizes", []),
    ("core", {}),
    ("core.memory.scale", 0.0),
    ("core.memory.scale", float("nan")),
    ("core.memory.update", 10**6),
    ("core.memory.update", "3"),
    ("core.memory.interval_updates", 10**6),
    ("core.memory.extra", 1),
    ("core.memory.rolled_back", 2),
    ("core.memory.layer_actions", [0.5]),
    ("core.initial_lrs", [0.1]),
    ("core.initial_lrs.0", float("inf")),
    ("core.initial_lrs.0", 1e-30),
    ("core.losses", torch.zeros(1)),
    ("core.losses", None),
    ("core.losses", torch.zeros(2, dtype=torch.int64)),
    ("core.measured", torch.zeros(3)),
    ("history", {}),
    ("history.0.update", 10**6),
    ("history.0.learning_rate", float("inf")),
    ("history.0.features", None),
    ("history.0.more", 1),
    ("layers", [[99, torch.zeros(2, 2)]]),
]


@pytest.fixture(scope="module")
def under_way():
    run = Run()
    run.train(0, 7)
    return run.scheduler.state_dict()


@pytest.mark.parametrize(("path", "value"), DAMAGE, ids=[path for path, _ in DAMAGE])
def test_a_damaged_state_is_refused_by_name_and_changes_nothing(under_way, path, value):
    run = Run()
    run.train(0, 3)
    before = copy.deepcopy(run.scheduler.state_dict())
    with pytest.raises(StateError, match="state dict is damaged"):
        run.scheduler.load_state_dict(damaged(under_way, path, value))
    after = run.scheduler.state_dict()
    assert after["history"] == before["history"] and after["core"]["memory"] == before["core"]["memory"]
    run.train(3, T)


def test_initial_rates_of_a_state_before_any_update_are_within_the_bounds():
    state = Run().scheduler.state_dict()
    for rate in (1e-9, 11.0):
        with pytest.raises(StateError, match="initial learning rate is"):
            Run().scheduler.load_state_dict(damaged(state, "base_lrs.0", rate))


@pytest.mark.parametrize("state", [None, 3, [], "text"])
def test_what_is_no_mapping_is_refused_by_name(state):
    with pytest.raises(StateError, match="expected what GNSScheduler"):
        Run().scheduler.load_state_dict(state)


def test_entries_that_are_no_part_of_a_state_are_not_taken_over(under_way):
    run = Run()
    run.scheduler.load_state_dict(under_way | {"optimizer": None, "_losses": None, "_run": 3})
    run.train(7, T)


def test_a_state_of_another_model_is_refused_and_changes_nothing(under_way):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.01)
    scheduler = make_scheduler(optimizer, model)
    with pytest.raises(LayerGraphError, match="parameters that this model lacks"):
        scheduler.load_state_dict(under_way)
    assert scheduler.last_epoch == 0 and scheduler.graph is None
