"""Features: equal to a slow twin, batched and sharded alike, always finite, and read with one copy to the host."""

from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from twins.features_twin import RunTwin, features, srls_features

from gns import DecisionConfig, DecisionCore, UnknownNameError, layer_graph
from gns.deciding.guard import diverged
from gns.features.held_out import ValidationStatistics, validation_statistics
from gns.features.schemas import SCHEMAS, compute_features, get_schema
from gns.features.statistics import NUM_SUMS, OPTIMIZER_KINDS, RunStatistics, log_loss
from gns.features.sums import tensor_sums
from gns.features.travel import NUM_TRAVEL_SUMS
from gns.features.update_rules import SETTINGS

BUDGET, DECISIONS = 12, 4
quick = settings(deadline=None, derandomize=True, max_examples=60)
every_schema = pytest.mark.parametrize("schema", sorted(SCHEMAS))


class Net(nn.Module):
    """A small network with a norm and a second branch that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 1)
        self.spare = nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor, with_spare: bool = True) -> Tensor:
        h = self.norm(torch.tanh(self.first(x)))
        return self.last(h + self.spare(x) if with_spare else h)


def two_rates(model: Net) -> list[dict]:
    return [
        {"params": [*model.first.parameters(), model.last.weight]},
        {"params": [*model.norm.parameters(), model.last.bias, model.spare.weight], "lr": 3e-3},
    ]


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "sgd momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "sgd nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "sgd decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.8, weight_decay=0.1),
    "sgd two rates": lambda m: torch.optim.SGD(two_rates(m), lr=0.05, momentum=0.9),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "adam decay": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, weight_decay=0.1),
    "adam amsgrad": lambda m: torch.optim.Adam(m.parameters(), lr=0.03, amsgrad=True, betas=(0.7, 0.8)),
    "adam two rates": lambda m: torch.optim.Adam(two_rates(m), lr=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
    "adamw two rates": lambda m: torch.optim.AdamW(two_rates(m), lr=0.01),
}


class Loop:
    """A training loop that keeps the twin's record beside the decision core."""

    def __init__(
        self, optimizer: str, schema: str = "gns-1", mode: str = "profile", spare_used: range = range(BUDGET)
    ) -> None:
        torch.manual_seed(3)
        self.model, self.spare_used = Net(), spare_used
        self.x, self.y = torch.randn(BUDGET, 7, 5), torch.randn(BUDGET, 7, 1)
        self.held_out = torch.randn(9, 5), torch.randn(9, 1)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        graph = layer_graph(self.model, self.model(self.x[0]).sum())
        config = DecisionConfig(mode=mode, num_decisions=DECISIONS, features=schema)
        start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.twin = RunTwin(BUDGET, [group["lr"] for group in self.optimizer.param_groups], start=start)
        self.core = DecisionCore(self.model, self.optimizer, graph, BUDGET, config)

    def compute_gradient(self) -> None:
        t = self.core.update % BUDGET
        self.optimizer.zero_grad()
        self.loss = F.mse_loss(self.model(self.x[t], with_spare=t in self.spare_used), self.y[t])
        self.loss.backward()

    def update(self) -> None:
        self.core.set_rates()
        self.optimizer.step()
        self.core.note_update(self.loss)
        self.twin.updated(self.loss.item(), self.model)

    def decide(self, action: float) -> None:
        self.core.decide(action)
        self.twin.decided(self.predict()[0])

    @torch.no_grad()
    def predict(self) -> tuple[Tensor, float]:
        """Outputs and loss on held-out data."""
        predictions = self.model(self.held_out[0])
        return predictions, F.mse_loss(predictions, self.held_out[1]).item()

    def validation(self) -> ValidationStatistics | None:
        """What the schema needs of held-out data."""
        if not get_schema(self.core.config.features).needs_validation:
            return None
        predictions, loss = self.predict()
        return validation_statistics(loss, predictions, self.twin.predictions)

    def twin_features(self):
        core = self.core
        if core.config.features == "srls":
            predictions, loss = self.predict()
            return [[] for _ in core.graph.names], srls_features(
                self.model.last, self.twin, core.factor, loss, predictions
            )
        return features(core.config.features, core.graph, self.model, self.optimizer, self.twin, core.factor)

    def assert_agreement(self) -> None:
        observation = self.core.observe(self.validation())
        nodes, global_features = self.twin_features()
        np.testing.assert_allclose(observation.nodes, nodes, rtol=0, atol=1e-4)
        np.testing.assert_allclose(observation.globals, np.array(global_features), rtol=0, atol=1e-4)

    def run(self) -> int:
        """Go through the whole budget, comparing at every decision and at every update between."""
        actions, compared = np.random.default_rng(0), 0
        while not self.core.finished:
            self.compute_gradient()
            self.assert_agreement()
            compared += 1
            if self.core.decision_due:
                self.decide(actions.uniform(-1, 1))
            self.update()
        return compared


# ---------------------------------------------------------------------- the twin


@every_schema
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_features_equal_the_twins(optimizer, schema):
    assert Loop(optimizer, schema).run() == BUDGET


@pytest.mark.parametrize("mode", ["recursive", "anchored", "gns-paper"])
def test_features_equal_the_twins_in_every_mode(mode):
    assert Loop("adam", mode=mode).run() == BUDGET


@pytest.mark.parametrize("used", [range(0), range(4)], ids=["never", "not any more"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd momentum", "sgd decay", "adam", "adamw"])
def test_features_equal_the_twins_where_a_layer_has_no_gradient(optimizer, used):
    """Neither is the layer without a gradient updated, nor do the other layers see anything of it."""
    loop = Loop(optimizer, spare_used=used)
    assert loop.run() == BUDGET
    assert loop.model.spare.weight.grad is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_features_equal_the_twins_where_a_layer_joins_later(optimizer):
    """As in gradual unfreezing: Adam has counted fewer updates of that layer."""
    loop = Loop(optimizer, spare_used=range(5, BUDGET))
    assert loop.run() == BUDGET
    assert loop.model.spare.weight.grad is not None


def test_the_budget_need_not_be_a_multiple_of_the_interval():
    loop = Loop("adam")
    loop.core = DecisionCore(loop.model, loop.optimizer, loop.core.graph, BUDGET, DecisionConfig(decision_interval=5))
    assert loop.run() == BUDGET


# ---------------------------------------------------------------------- sums


def tensors(seed: int, shapes: tuple = ((4, 3), (5,)), dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Weights, gradients, momenta, second moments and updates of as many tensors as shapes.

    All of one sign, so that no sum cancels.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.rand(shape, generator=generator).add_(0.5).mul_(scale).to(dtype) for shape in shapes]
        for scale in (1.0, -1e-4, 1e-4, 1e-3, 1.0)
    ]


SHAPES = ((4, 3), (5,), ())  # the last is a parameter that is a single number


@pytest.mark.parametrize("missing", [(), (2,), (3,), (4,), (2, 3, 4)])
def test_sums_are_what_they_say(missing):
    parts = tensors(0, shapes=SHAPES)
    sums = tensor_sums(*(None if i in missing else part for i, part in enumerate(parts))).double().numpy()
    assert sums.shape == (3, NUM_SUMS)
    for row, tensor_of_each in zip(sums, zip(*parts, strict=True), strict=True):
        w, g, m, v, u = (tensor.double().numpy() for tensor in tensor_of_each)
        m = 0 * m if 2 in missing else m
        v = g**2 if 3 in missing else v
        u = 0 * u if 4 in missing else u
        expected = [w, w**2, abs(g), g**2, g * m, m**2, v, u**2]
        np.testing.assert_allclose(row, [values.sum() for values in expected], rtol=1e-5)


def test_sums_add_up_over_shards():
    parts = tensors(2)
    shards = [tensor_sums(*([t[rows] for t in part] for part in parts)) for rows in (slice(0, 1), slice(1, None))]
    torch.testing.assert_close(shards[0] + shards[1], tensor_sums(*parts), rtol=1e-5, atol=0)


def test_a_shard_may_be_empty():
    empty = tensor_sums(*([t[:0] for t in part] for part in tensors(2)))
    assert torch.equal(empty, torch.zeros(2, NUM_SUMS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_sums_of_other_precisions_are_float32(dtype):
    parts = tensors(3, dtype=dtype)
    sums = tensor_sums(*parts)
    assert sums.dtype == torch.float32
    exact = tensor_sums(*([t.float() for t in part] for part in parts))
    torch.testing.assert_close(sums, exact, rtol=1e-2, atol=0)


# ---------------------------------------------------------------------- batches of runs


def small_graph():
    model = Net()
    return layer_graph(model, model(torch.ones(2, 5)))


GRAPH = small_graph()
TENSORS = len(GRAPH.tensor_sizes)


def statistics(seed: int, count: int = 3, **changes: object) -> RunStatistics:
    """Statistics of an imaginary run."""
    rng = np.random.default_rng(seed)
    values = {
        "sums": np.exp(rng.normal(size=(TENSORS, NUM_SUMS))),
        "learning_rates": np.exp(rng.normal(size=TENSORS)) * 1e-2,
        "momentum_scale": np.exp(rng.normal(size=TENSORS)),
        "second_scale": np.exp(rng.normal(size=TENSORS)),
        "losses": np.exp(rng.normal(size=count)),
        "first_loss": np.exp(rng.normal()),
        "previous_loss": np.exp(rng.normal()),
        "learning_rate": np.exp(rng.normal()) * 1e-2,
        "progress": rng.uniform(),
        "budget": rng.integers(10, 1000),
        "rolled_back": rng.integers(2),
        "optimizer_kind": rng.integers(len(OPTIMIZER_KINDS)),
        "validation_loss": np.exp(rng.normal()),
        "prediction_variance": np.exp(rng.normal()),
        "prediction_change_variance": np.exp(rng.normal()),
        "level": np.exp(rng.normal()),
        "travel": np.exp(rng.normal(size=(TENSORS, NUM_TRAVEL_SUMS))),
    }
    settings = {name: rng.uniform(size=TENSORS) for name in SETTINGS}
    arrays = {name: np.asarray(value) for name, value in {**values, **changes}.items()}
    return RunStatistics(**arrays, settings=settings)


def stacked_statistics(runs: list[RunStatistics], **changes: object) -> RunStatistics:
    """Return the statistics of several runs as one."""
    names = [f.name for f in fields(RunStatistics) if f.name not in (*changes, "settings")]
    arrays = {name: np.stack([getattr(run, name) for run in runs]) for name in names}
    settings = {name: np.stack([run.settings[name] for run in runs]) for name in SETTINGS}
    return RunStatistics(**{**arrays, **changes}, settings=settings)


@every_schema
@pytest.mark.parametrize("count", [0, 1, 3])
def test_features_of_many_runs_equal_those_of_each(schema, count):
    runs = [statistics(seed, count) for seed in range(5)]
    stacked = stacked_statistics(runs)
    nodes, global_features = compute_features(schema, GRAPH, stacked)
    assert stacked.finite.tolist() == [True] * 5
    for i, run in enumerate(runs):
        alone_nodes, alone_globals = compute_features(schema, GRAPH, run)
        np.testing.assert_allclose(nodes[i], alone_nodes, rtol=1e-6)
        np.testing.assert_array_equal(global_features[i], alone_globals)


@every_schema
@pytest.mark.parametrize("rest", [0.0, 1e9, np.nan])
def test_runs_with_fewer_losses_than_others_are_filled_up(schema, rest):
    counts = [0, 1, 2, 5, 9, 30]
    runs = [statistics(seed, count) for seed, count in enumerate(counts)]
    losses = np.full((len(runs), 30), rest)
    for row, run in zip(losses, runs, strict=True):
        row[: run.losses.size] = run.losses
    stacked = stacked_statistics(runs, losses=losses, loss_counts=np.array(counts))
    nodes, global_features = compute_features(schema, GRAPH, stacked)
    assert stacked.finite.all()
    for i, run in enumerate(runs):
        alone_nodes, alone_globals = compute_features(schema, GRAPH, run)
        np.testing.assert_allclose(nodes[i], alone_nodes, rtol=1e-6)
        np.testing.assert_allclose(global_features[i], alone_globals, rtol=1e-6)
    losses[4, 3] = np.inf
    assert stacked.finite.tolist() == [True] * 4 + [False, True]


@every_schema
def test_widths_and_types_are_the_schemas(schema):
    nodes, global_features = compute_features(schema, GRAPH, statistics(0))
    known = get_schema(schema)
    assert nodes.shape == (GRAPH.num_nodes, len(known.node)) and nodes.dtype == np.float32
    assert global_features.shape == (len(known.globals),) and global_features.dtype == np.float32


def test_an_unknown_schema_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"feature schema 'gns-3'; expected one of: gns-1, gns-2, gns-paper"):
        get_schema("gns-3")


# ---------------------------------------------------------------------- finite whatever comes

EXTREMES = [0.0, -0.0, 1e-300, 1e-45, 1.0, -1.0, 1e30, -1e30, 1e308, np.inf, -np.inf, np.nan]
extreme = st.sampled_from(EXTREMES)
extreme_float32 = st.sampled_from([x for x in EXTREMES if not 1e38 < abs(x) < np.inf])


def assert_finite_and_bounded(schema: str, nodes: np.ndarray, global_features: np.ndarray) -> None:
    bound = get_schema(schema).bound
    for values in (nodes, global_features):
        assert np.isfinite(values).all()
        assert (np.abs(values) <= bound).all()


@every_schema
@quick
@given(data=st.data())
def test_features_are_finite_and_bounded_for_any_statistics(schema, data):
    sums = data.draw(st.lists(extreme, min_size=TENSORS * NUM_SUMS, max_size=TENSORS * NUM_SUMS))
    losses = data.draw(st.lists(extreme, max_size=4))
    drawn = ("first_loss", "previous_loss", "learning_rate", "progress")
    held_out = ("validation_loss", "prediction_variance", "prediction_change_variance")
    scalars = {name: data.draw(extreme) for name in (*drawn, *held_out)}
    run = statistics(0, sums=np.reshape(sums, (TENSORS, NUM_SUMS)), losses=np.array(losses, dtype=float), **scalars)
    assert_finite_and_bounded(schema, *compute_features(schema, GRAPH, run))
    assert bool(run.finite) == bool(np.isfinite(sums).all() and np.isfinite(losses).all())


@every_schema
@pytest.mark.parametrize("optimizer", ["sgd momentum", "adam", "adamw"])
@settings(deadline=None, derandomize=True, max_examples=20)
@given(weight=extreme_float32, gradient=extreme_float32, losses=st.lists(extreme_float32, min_size=3, max_size=3))
def test_observations_are_finite_and_bounded_for_any_run(optimizer, schema, weight, gradient, losses):
    loop = Loop(optimizer, schema)
    loop.compute_gradient()
    loop.decide(0.0)
    for loss in losses:
        loop.core.set_rates()
        loop.optimizer.step()
        loop.core.note_update(torch.tensor(loss))
    with torch.no_grad():
        for parameter in loop.model.first.parameters():
            parameter.fill_(weight)
            parameter.grad.fill_(gradient)
    observation = loop.core.observe(loop.validation())
    assert_finite_and_bounded(schema, observation.nodes, observation.globals)
    entered = torch.tensor([weight, gradient, *losses])
    assert bool(loop.core.statistics.finite) or not (entered.abs() < 1e15).all()
    assert not bool(loop.core.statistics.finite) or torch.isfinite(entered).all()


@quick
@given(
    losses=st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=8),
    first=st.floats(1e-2, 1e2),
    previous=st.floats(1e-2, 1e2),
    scale=st.floats(1e-3, 1e3),
)
def test_rescaling_the_losses_shifts_the_level_alone(losses, first, previous, scale):
    def global_features(factor: float) -> dict[str, float]:
        run = statistics(
            1, losses=np.array(losses) * factor, first_loss=first * factor, previous_loss=previous * factor
        )
        return dict(zip(SCHEMAS["gns-1"].globals, compute_features("gns-1", GRAPH, run)[1].tolist(), strict=True))

    before, after = global_features(1.0), global_features(scale)
    level = before.pop("log_loss"), after.pop("log_loss")
    assert after == pytest.approx(before, abs=1e-5)
    assert level[1] - level[0] == pytest.approx(0.5 * np.log(scale), abs=1e-5) or 5.0 in map(abs, level)


def test_without_an_update_there_is_no_loss():
    names = SCHEMAS["gns-1"].globals
    run = statistics(2, count=0, first_loss=np.nan, previous_loss=np.nan)
    values = dict(zip(names, compute_features("gns-1", GRAPH, run)[1].tolist(), strict=True))
    assert values["no_loss"] == 1.0
    assert {name: value for name, value in values.items() if "loss" in name and name != "no_loss"} == dict.fromkeys(
        ("log_loss", "log_loss_since_start", "log_loss_change", "loss_slope", "log_loss_spread"), 0.0
    )


@pytest.mark.parametrize(("loss", "expected"), [(1.0, 0.0), (np.e, 1.0), (0.0, np.log(1e-8)), (-1.0, np.log(1e-8))])
def test_the_logarithm_of_a_loss_has_a_floor(loss, expected):
    assert log_loss(loss) == pytest.approx(expected)


# ---------------------------------------------------------------------- one copy to the host


class HostCopies(TorchFunctionMode):
    """Notes every call that brings a tensor's content to the host.

    :param ignored: tensors that live on the host anyway, such as Adam's counters
    """

    READS = frozenset(
        ["cpu", "item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "__index__", "__contains__"]
    )

    def __init__(self, ignored: list[Tensor]) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._ignored = {id(tensor) for tensor in ignored}
        self._on_host: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        to_host = name == "to" and any(isinstance(arg, str) and arg == "cpu" for arg in args[1:])
        if name in self.READS or to_host:
            if name in ("cpu", "to"):
                self._on_host.append(result)
            if id(args[0]) not in self._ignored and not (
                name == "numpy" and any(args[0] is tensor for tensor in self._on_host)
            ):
                self.seen.append(name)
        return result


def test_the_counter_of_host_copies_sees_them():
    x = torch.ones(2)
    with HostCopies([]) as copies:
        x.cpu().numpy(), x.sum().item(), x.tolist(), float(x[0]), bool(x[0]), np.asarray(x), x.to("cpu")
    assert len(copies.seen) >= 7
    with HostCopies([x]) as copies:
        x.tolist()
    assert copies.seen == []


@every_schema
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_decision_copies_to_the_host_once(optimizer, schema):
    loop = Loop(optimizer, schema)
    while not loop.core.finished:
        loop.compute_gradient()
        counters = [s["step"] for s in loop.optimizer.state.values() if "step" in s]
        if loop.core.decision_due:
            validation = loop.validation()
            with HostCopies(counters) as copies:
                loop.core.observe(validation)
                diverged(loop.core, 4.0)
                loop.core.decide(0.3)
            assert copies.seen == ["cpu"]
        with HostCopies([]) as copies:
            loop.core.set_rates()
        loop.optimizer.step()
        with copies:
            loop.core.note_update(loop.loss)
        assert copies.seen == []
