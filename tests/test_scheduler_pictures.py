"""A scheduler's own picture: drawn from the right figures, kept as JSON, and shown by ``python -m gns inspect``."""

import io
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, batch, lively_policy, make_scheduler, network, two_groups
from torch.nn import functional as F

from gns import GNSPolicy, GuardConfig, InvalidSettingError, OutOfOrderError, UnknownNameError
from gns.errors import MissingPackageError, StateError
from gns.features.schemas import SCHEMAS, get_schema
from gns.tools.command_line import main
from gns.tools.history_files import load_history

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NODE = SCHEMAS["gns-1"].node


class Run:
    """A run that notes the rate and loss of every update that counted, and what its layers are at decisions."""

    def __init__(self, mode: str = "profile", guard: GuardConfig | None = None, record_layers: bool = True, **more):
        torch.manual_seed(3)
        self.model = network()
        self.optimizer = two_groups(self.model, torch.optim.SGD)
        self.scheduler = make_scheduler(
            self.optimizer, self.model, lively_policy(mode, **more), guard=guard, record_layers=record_layers
        )
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.update_over_weight: list[float] = []

    def train(self, begin: int = 0, end: int = T, bad: int | None = None) -> "Run":
        """Train; the loss that is reported after update ``bad`` is far too high."""
        for number in range(begin, end):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(batch(number)[0]), batch(number)[1])
            loss.backward()
            first = [self.model[0].weight, self.model[0].bias]
            rms = [
                math.sqrt(sum(float((t.detach() ** 2).sum()) for t in ts)) for ts in (first, [t.grad for t in first])
            ]
            decided, rate = len(self.scheduler.history), self.optimizer.param_groups[0]["lr"]
            counted = self.scheduler.last_epoch
            self.optimizer.step()
            told = 1e6 if number == bad else float(loss.detach())
            self.scheduler.step(told)
            if len(self.scheduler.history) > decided:
                self.update_over_weight.append(math.log10(rate * rms[1] / rms[0]))
            if self.scheduler.last_epoch > counted:
                self.rates.append(self.scheduler.get_last_lr()[0])
                self.losses.append(told)
        return self


@pytest.fixture(scope="module")
def run() -> Run:
    return Run().train()


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")  # what tests of other files left open
    yield
    assert len(plt.get_fignums()) <= 1  # a picture that goes to a file leaves none open
    plt.close("all")


def size(path: Path) -> tuple[int, int]:
    """Pixels of a PNG, from its header."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


# ---------------------------------------------------------------------- figures


@pytest.mark.parametrize("mode", ["profile", "recursive", "anchored", "gns-paper"])
@pytest.mark.parametrize("bounds", [{}, {"min_lr": 0.005, "max_lr": 0.035}])
def test_the_rates_drawn_are_those_applied_to_the_last_bit(mode, bounds):
    run = Run(mode, **bounds).train()
    updates, rates = run.scheduler.run_history().rate_path()
    assert updates.tolist() == list(range(T)) and rates.tolist() == run.rates and len(set(run.rates)) > 1


def test_the_path_of_a_long_run_has_a_bounded_number_of_points():
    run = Run().train(end=1)
    history = replace(run.scheduler.run_history(), budget=10**9)
    updates, rates = history.rate_path()
    assert len(updates) == 10_000 and updates[0] == 0 and updates[-1] == history.decision.interval(10**9) - 1
    assert rates[0] == run.rates[0] and (np.diff(rates) < 0).all()


def test_rates_and_losses_around_a_rollback():
    run = Run(guard=GuardConfig(cut=0.25)).train(end=T + 1, bad=9)
    history = run.scheduler.run_history()
    assert [(r.update, r.rollback) for r in history.records][:4] == [(0, False), (5, False), (10, True), (10, False)]
    updates, rates = history.rate_path()
    assert updates.tolist() == list(range(T)) and rates.tolist() == run.rates
    begins, ends, means = zip(*history.losses(), strict=True)
    assert begins == (0, 5, 10, 15) and ends == (5, 10, 15, 20)
    assert means == pytest.approx([np.mean(run.losses[k : k + 5]) for k in (0, 5, 10, 15)])


def test_losses_are_means_of_intervals_and_one_that_is_not_finite_is_left_out(run):
    history = run.scheduler.run_history()
    expected = [(k, k + 5, pytest.approx(np.mean(run.losses[k : k + 5]))) for k in (0, 5, 10, 15)]
    assert history.losses() == expected and history.records[0].loss is None
    bad = Run()
    for number in range(T):
        bad.train(number, number + 1)
        if number == 6:
            bad.scheduler._run.core._losses[1] = math.nan
    assert [begin for begin, *_ in bad.scheduler.run_history().losses()] == [0, 10, 15]


def test_layers_are_recorded_as_they_are_at_each_decision(run):
    history = run.scheduler.run_history()
    updates, values = history.layer_values("log_update_over_weight")
    assert updates.tolist() == [0, 5, 10, 15, 20] and values.shape == (3, 5)
    assert values[0, 0] == pytest.approx(run.update_over_weight[0], abs=1e-5)
    sizes = history.layer_values("log_size")[1]
    assert sizes == pytest.approx(np.log10([[6 * 16 + 16] * 5, [16 * 16 + 16] * 5, [16 * 3 + 3] * 5]), abs=1e-6)
    assert history.layer_values("depth")[1][:, 0] == pytest.approx(history.graph.depths)


def test_readable_features_are_the_logarithms_that_they_claim_to_be():
    run = Run().train(end=6)
    layer, core = run.model[3], run.scheduler._run.core
    run.optimizer.zero_grad()
    F.cross_entropy(run.model(batch(6)[0]), batch(6)[1]).backward()
    observed = core.observe().nodes[1]
    rows = get_schema("gns-1").layers
    read = {row.name: row.inverse(float(x)) for row, x in zip(rows, observed, strict=True)}

    def rms(tensors):
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        return math.log10(float((flat * flat).mean().sqrt()))

    gradient, weight = rms([p.grad for p in layer.parameters()]), rms(layer.parameters())
    assert read["log_weight_rms"] == pytest.approx(weight, abs=1e-5)
    assert read["log_gradient_rms"] == pytest.approx(gradient, abs=1e-5)
    change = gradient + math.log10(core.learning_rate) - weight
    assert read["log_update_over_weight"] == pytest.approx(change, abs=1e-5)
    assert read["log_gradient_signal_to_noise"] == pytest.approx(0.0, abs=1e-6)  # one gradient is its own mean
    assert tuple(read) == NODE and all(row.label for row in rows)


def test_recording_changes_no_rate_and_costs_four_bytes_a_layer_and_feature(run):
    plain = Run(record_layers=False).train()
    assert (
        plain.rates == run.rates
        and same_state(plain.model, run.model)
        and plain.scheduler.history == run.scheduler.history
    )
    assert plain.scheduler.run_history().layers == {}
    kept = run.scheduler.run_history().layers
    assert list(kept) == [0, 1, 2, 3, 4] and {v.nbytes for v in kept.values()} == {4 * 3 * len(NODE)}
    assert all(values.base is None for values in kept.values())


def test_what_was_recorded_goes_with_the_state(run):
    first = Run().train(end=12)
    torch.save(first.scheduler.state_dict(), file := io.BytesIO())
    second = Run()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.scheduler.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    again = second.train(12).scheduler.run_history()
    whole = run.scheduler.run_history()
    assert again.records == whole.records and again.rate_path()[1].tolist() == run.rates
    assert all(np.array_equal(again.layers[k], whole.layers[k]) for k in range(5))


# ---------------------------------------------------------------------- pictures


def test_the_picture_marks_decisions_and_rollbacks_with_losses_below(tmp_path):
    run = Run(guard=GuardConfig(cut=0.25)).train(end=T + 1, bad=9)
    figure = run.scheduler.plot()
    above, below = figure.axes
    (line,) = above.get_lines()
    assert line.get_xdata().tolist() == list(range(T)) and line.get_ydata().tolist() == run.rates
    marks = {drawn.get_label(): drawn.get_offsets().tolist() for drawn in above.collections}
    expected = {
        name: [[r.update, r.learning_rate] for r in run.scheduler.history if r.rollback is rollback]
        for name, rollback in (("decision", False), ("rollback", True))
    }
    assert marks == expected and len(marks["rollback"]) == 1
    assert above.get_yscale() == "log" and above.get_shared_x_axes().joined(above, below)
    heights = [segment[0][1] for segment in below.collections[0].get_segments()]
    assert heights == [loss for *_, loss in run.scheduler.run_history().losses()]
    run.scheduler.plot(tmp_path / "run.png")
    assert size(tmp_path / "run.png") == (840, 672)


def test_without_matplotlib_an_error_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for kind in ("rates", "layers", "graph"):
        with pytest.raises(MissingPackageError, match=r"'matplotlib'.*pip install 'gns-scheduler\[plots\]'"):
            run.scheduler.plot(kind=kind)


def test_before_any_loss_is_known_only_rates_are_drawn(tmp_path):
    figure = Run().train(end=1).scheduler.plot(tmp_path / "run.png")
    assert len(figure.axes) == 1 and size(tmp_path / "run.png") == (840, 456)


def test_the_heat_map_holds_the_feature_of_every_layer(run, tmp_path):
    figure = run.scheduler.plot(kind="layers", feature="log_gradient_signal_to_noise")
    (mesh,) = figure.axes[0].collections
    _, values = run.scheduler.run_history().layer_values("log_gradient_signal_to_noise")
    assert np.array_equal(mesh.get_array(), values)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 5, 10, 15, 20, T]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0", "3", "5"]
    assert figure.axes[1].get_ylabel() == "signal over noise of the gradient, log10"
    run.scheduler.plot(tmp_path / "layers.png", "layers")
    assert size(tmp_path / "layers.png") == (960, 288)


@pytest.mark.parametrize("decision", [0, 3, -1])
def test_the_layer_graph_has_the_colours_of_one_decision(run, decision, tmp_path):
    figure = run.scheduler.plot(kind="graph", feature="log_weight_rms", decision=decision)
    nodes = next(drawn for drawn in figure.axes[0].collections if drawn.get_array() is not None)
    updates, values = run.scheduler.run_history().layer_values("log_weight_rms")
    assert np.array_equal(nodes.get_array(), values[:, decision])
    assert f"after {updates[decision]} updates" in figure.axes[0].get_title()
    run.scheduler.plot(tmp_path / "graph.svg", "graph", decision=decision)
    assert (tmp_path / "graph.svg").read_text().count("<path") > 10


def test_what_cannot_be_drawn_is_named(run, tmp_path):
    empty = Run().scheduler
    for call in (empty.plot, lambda: empty.plot(kind="layers"), lambda: empty.save_history(tmp_path / "x.json")):
        with pytest.raises(OutOfOrderError, match=r"history is empty.*first optimizer\.step"):
            call()
    assert list(tmp_path.iterdir()) == []
    for kind in ("layers", "graph"):
        with pytest.raises(InvalidSettingError, match="record_layers=True"):
            Run(record_layers=False).train(end=6).scheduler.plot(kind=kind)
    with pytest.raises(UnknownNameError, match=r"kind of picture 'rate'.*'rates'"):
        run.scheduler.plot(kind="rate")
    with pytest.raises(UnknownNameError, match="feature of layers 'log_weight'"):
        run.scheduler.plot(kind="layers", feature="log_weight")
    with pytest.raises(InvalidSettingError, match="decision is 5; expected one from 0 to 4"):
        run.scheduler.plot(kind="graph", decision=5)
    for path in (tmp_path / "no" / "x.png", tmp_path / "x.doc"):
        with pytest.raises(InvalidSettingError, match="cannot be written"):
            run.scheduler.plot(path)


# ---------------------------------------------------------------------- files


def test_a_history_is_read_back_as_it_was(run, tmp_path):
    whole = run.scheduler.run_history()
    assert run.scheduler.save_history(tmp_path) == tmp_path / "history.json"
    for source in (tmp_path, tmp_path / "history.json"):
        again = load_history(source)
        assert again.records == whole.records and again.graph == whole.graph and again.decision == whole.decision
        assert again.rate_path()[1].tolist() == run.rates
        assert all(np.array_equal(again.layers[k], whole.layers[k]) for k in range(5))
    assert list(tmp_path.iterdir()) == [tmp_path / "history.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not of the format"),
        ({"version": 2}, "its version is 2"),
        ({"records": []}, "no list of 1 to"),
        ({"initial_lrs": []}, "no list of 1 to"),
        ({"initial_lrs": [0.1] * 10_001}, "no list of 1 to 10,000"),
        ({"records": {"features": [1.0]}}, r"features of a record are \[1.0\]"),
        ({"budget": -1}, "budget is -1"),
        ({"budget": 2}, "smaller than num_decisions"),
        ({"decision": {"mode": "x"}}, "action mode 'x'"),
        ({"initial_lrs": ["a"]}, "initial rate is 'a'"),
        ({"initial_lrs": [1e30]}, "expected one within"),
        ({"layers": [[0, [[0.0]]]]}, "have shape"),
        ({"layers": [[99, [[0.0] * 7] * 3]]}, "record 99"),
        ({"records": {"learning_rate": -1.0}}, "learning_rate is -1.0"),
        ({"records": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"records": {"update": 24}}, "beyond the budget"),
        ({"records": {"action": "x"}}, "figure of a record is 'x'"),
        ({"records": {"rollback": 1}}, "not true or false"),
        ({"records": {"more": 1}}, "unexpected keyword"),
        ({"graph": 3}, "TypeError"),
        ({"graph": {"edges": [[0], [3]]}}, "an edge of its layer graph"),
        ({"graph": {"types": ["x", "linear", "linear"]}}, "names or types"),
        ({"graph": {"names": ["a", 1, "b"]}}, "names or types"),
        ({"graph": {"depths": [0.0]}}, "different lengths"),
        ({"budget": 10**400}, "is the most"),
        ({"graph": {"depths": [0.0, 0.5, 1e308]}}, "sizes or depths"),
        ({"graph": {"tensor_sizes": [10**400] * 6}}, "is the most"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(run, tmp_path, change, message):
    path = run.scheduler.save_history(tmp_path / "run.json")
    plain = json.loads(path.read_text())
    if isinstance(change.get("records"), dict):
        plain["records"][-1].update(change["records"])
    elif isinstance(change.get("graph"), dict) or "decision" in change:
        for name, values in change.items():
            plain[name].update(values)
    else:
        plain.update(change)
    path.write_text(json.dumps(plain))
    with pytest.raises(StateError, match=message):
        load_history(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"\x80\x04N.", b"[" * 100_000, b'{"a": 1, "a": 1}'])
def test_what_is_no_history_is_refused(content, tmp_path):
    (tmp_path / "history.json").write_bytes(content)
    with pytest.raises(StateError, match="expected a file that"):
        load_history(tmp_path)
    with pytest.raises(StateError, match="cannot be read"):
        load_history(tmp_path / "none.json")


# ---------------------------------------------------------------------- the command


def test_inspect_prints_the_decisions_and_writes_the_pictures(tmp_path, capsys):
    run = Run(guard=GuardConfig(cut=0.25)).train(end=T + 1, bad=9)
    run.scheduler.save_history(tmp_path / "run.json")
    assert main(["inspect", str(tmp_path / "run.json"), "--feature", "log_weight_rms", "--decision", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"history {tmp_path / 'run.json'}: budget 23 updates, 3 layers"
    rows = [line.split() for line in shown[4:10]]
    assert [row[0] for row in rows] == ["0", "5", "10", "10", "15", "20"]
    records = run.scheduler.history
    assert [row[1] for row in rows] == [f"{record.learning_rate:.4g}" for record in records]
    assert rows[2][2] == "0.25" and rows[2][-1] == "rollback" and rows[1][-1] == f"{records[1].loss:.4g}"
    names = ["run_graph.png", "run_layers.png", "run_rates.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    assert [line.split()[-1].rpartition("/")[2] for line in shown[-3:]] == ["run_rates.png", *names[1::-1]]
    assert all(size(tmp_path / name)[0] > 300 for name in names)


def test_inspect_gives_json_and_puts_pictures_where_it_is_told(tmp_path, capsys):
    Run(record_layers=False).train().scheduler.save_history(tmp_path)
    (tmp_path / "pictures").mkdir()
    assert main(["inspect", str(tmp_path), "--json", "--pictures", str(tmp_path / "pictures")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] == [str(tmp_path / "pictures" / "history_rates.png")] and len(report["decisions"]) == 5
    assert report["decisions"][0]["loss"] is None and report["decisions"][1]["loss"] > 0
    assert size(Path(report["pictures"][0])) == (840, 672)


def test_inspect_says_what_is_wrong_in_one_line(tmp_path, capsys, run):
    (tmp_path / "bad.json").write_text('{"format": "gns-history"}')
    good = run.scheduler.save_history(tmp_path / "good.json")
    cases = [
        (["bad.json"], "StateError: "),
        (["good.json", "--pictures", "none"], "InvalidSettingError: --pictures"),
        (["good.json", "--feature", "x"], "UnknownNameError: Unknown feature of layers 'x'"),
        (["good.json", "--decision", "9"], "InvalidSettingError: decision is 9"),
    ]
    for (name, *more), message in cases:
        assert main(["inspect", str(tmp_path / name), *more]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert good.is_file()


def test_a_folder_with_a_policy_is_still_inspected_as_a_policy(tmp_path, run, capsys):
    GNSPolicy().save_pretrained(tmp_path)
    run.scheduler.save_history(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("policy ") and not list(tmp_path.glob("*.png"))
