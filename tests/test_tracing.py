"""A traced function is the function."""

import pytest
import torch
from plain_loop import small_task

from envs import get_task
from envs.batched.runs import BatchedRuns
from envs.batched.tracing import Traced

CALLS = 3


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Counting:
    """A function that knows how often Python entered it."""

    def __init__(self, function) -> None:
        self.function, self.entered = function, 0

    def __call__(self, *arguments):
        self.entered += 1
        return self.function(*arguments)


def test_a_function_is_traced_once_for_each_set_of_shapes_when_it_was_called_often():
    def gradient(weights, inputs):
        leaf = weights.detach().requires_grad_()
        return torch.autograd.grad((inputs @ leaf).relu().square().sum(), leaf)[0]

    function = Counting(gradient)
    traced = Traced(function, calls=CALLS)
    for rows in (4, 7):
        function.entered = 0
        for call in range(10):
            arguments = numbers(5, 2, seed=call), numbers(rows, 5, seed=call + 1)
            assert torch.equal(traced(*arguments), gradient(*arguments))
            assert function.entered == min(call + 1, CALLS - 1) + (
                2 if call + 1 >= CALLS else 0
            )  # to trace and to compare


def test_what_it_changes_in_place_is_changed_once_a_call():
    def step(state, by_name):
        state.mul_(0.5).add_(1.0)
        by_name["count"].add_(1)
        return state * by_name["count"]

    traced, state, count = Traced(step, calls=CALLS), numbers(4), torch.zeros((), dtype=torch.long)
    expected = state.clone()
    for call in range(8):
        expected = expected * 0.5 + 1.0
        assert torch.equal(traced(state, {"count": count}), expected * (call + 1))
        assert torch.equal(state, expected) and count.item() == call + 1


def test_a_factor_of_one_that_is_changed_in_place_leaves_its_argument_alone():
    traced = Traced(lambda x: torch.ops.aten.mul.Scalar(x, 1).add_(1.0), calls=1)
    x = numbers(3)
    assert torch.equal(traced(x), x + 1.0) and torch.equal(traced(x), x + 1.0)
    assert torch.equal(x, numbers(3))


def test_a_function_that_decides_by_values_is_called_itself():
    traced = Traced(lambda x: x + 1.0 if x.sum() > 0 else x - 1.0, calls=CALLS)
    for call in range(8):
        x = torch.full((3,), -1.0 if call % 3 else 1.0)
        assert torch.equal(traced(x), x - 1.0 if call % 3 else x + 1.0)


def test_a_function_that_decides_otherwise_from_call_to_call_is_called_itself():
    calls = []

    def alternating(x):
        calls.append(1)
        return x + 1.0 if len(calls) % 2 else x - 1.0

    traced, found = Traced(alternating, calls=CALLS), []
    for _ in range(CALLS + 6):
        found.append(float(traced(torch.zeros(()))))
    assert found[-6:] in ([1.0, -1.0] * 3, [-1.0, 1.0] * 3)


@pytest.mark.parametrize("kind", ["digits_mlp", "digits_cnn", "dropout", "batch_norm", "accumulated"])
def test_runs_are_trained_with_the_same_bits_traced_or_not(kind):
    task = small_task("dropout", accumulation=2, clip_norm=0.5) if kind == "accumulated" else None
    task = task or (get_task(kind) if kind.startswith("digits") else small_task(kind))
    ways = []
    for calls in (2, 10**9):
        runs = BatchedRuns(task, "adam", 3)
        runs._passes = Traced(runs._losses_and_gradients, calls=calls)
        runs.begin(range(3), [1, 2, 3])
        for t in range(14):
            active = torch.tensor([True, True, t % 3 > 0])
            runs.compute_gradients(active)
            runs.apply_updates(torch.full((3,), 1e-2, dtype=torch.float64), active)
        ways.append(runs)
    traced, called = ways
    assert len(traced._passes._traces) == 2 and not called._passes._traces
    assert all(isinstance(trace, torch.fx.GraphModule) for trace in traced._passes._traces.values())
    assert torch.equal(traced.weights, called.weights) and torch.equal(traced.losses, called.losses)
    assert traced.evaluate_reward_split(range(3)) == called.evaluate_reward_split(range(3))


def test_a_trace_keeps_no_results_and_there_are_no_more_traces_than_asked_for():
    traced = Traced(lambda a, b: (a @ b).exp().sum(0), calls=CALLS, most=2)
    for rows in (3, 4, 5):
        for _ in range(CALLS + 1):
            traced(numbers(rows, 6), numbers(6, 2))
    traces = list(traced._traces.values())
    assert len(traces) == 2 and all(trace is not None for trace in traces)
    assert all(not node.meta for trace in traces for node in trace.graph.nodes)
    assert torch.equal(traced(numbers(5, 6), numbers(6, 2)), (numbers(5, 6) @ numbers(6, 2)).exp().sum(0))
