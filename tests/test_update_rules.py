"""One rule an optimizer: what others derive for speed, or of the last update, equals it."""

import numpy as np
import pytest
import torch
from test_moments import KNOWN

from agents.controllers.directions import last_direction
from envs.batched.optimizers import BATCHED_OPTIMIZERS, BatchedOptimizer
from gns.features.moments import optimizer_kind
from gns.features.update_rules import SETTINGS, read_alike

BY_HAND = {name: made for name, made in KNOWN.items() if "maximize" not in name}  # the baselines' runs never do
ROWS, SIZE = 4, 33


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("updates", [0, 1, 6])
@pytest.mark.parametrize("name", BY_HAND)
def test_the_direction_of_the_last_update_is_what_the_coming_one_was(name, updates):
    weight = torch.nn.Parameter(numbers(0, SIZE))
    cls, settings = BY_HAND[name]
    optimizer = cls([weight], lr=0.01, **settings)
    group, state = optimizer.param_groups[0], optimizer.state
    for t in range(updates + 1):
        weight.grad = numbers(t + 1, SIZE)
        held = [dict(state.get(weight, {}))]
        coming = read_alike(optimizer_kind(optimizer), group, held, [weight.detach()], [weight.grad], t).updates[0]
        optimizer.step()
    last = last_direction(group, weight.detach(), state[weight], weight.grad)
    assert (last - coming).norm() <= 1e-9 * coming.norm() > 0


@pytest.mark.parametrize("decay", [0.0, 0.1, "of each"])
@pytest.mark.parametrize("name", sorted(name for name, known in BATCHED_OPTIMIZERS.items() if known.readable))
def test_runs_side_by_side_come_to_the_same_update_and_scales(name, decay):
    settings = BATCHED_OPTIMIZERS[name]
    of_each = numbers(99, SIZE).abs() if decay == "of each" else torch.full((SIZE,), float(decay), dtype=torch.float64)
    settings = type(settings)(**{**vars(settings), "weight_decay": of_each if decay == "of each" else decay})
    batched = BatchedOptimizer(name, numbers(0, ROWS, SIZE), settings)
    for t, rows in enumerate([[0, 1], [0, 1, 2], [1], [0, 1, 2]]):  # the last has had none yet
        batched.step(numbers(t + 1, len(rows), SIZE), torch.full((len(rows),), 0.01), torch.tensor(rows))
    gradients = numbers(50, ROWS, SIZE)
    kept = [tensor.clone() for tensor in (batched.parameters, *batched.state)]
    updates, (first, second) = batched.coming_update(gradients), batched.scales()
    assert all(map(torch.equal, kept, (batched.parameters, *batched.state)))
    for row, steps in enumerate(batched.steps.tolist()):
        for column in (0, 7, SIZE - 1):
            place = row, slice(column, column + 1)
            group = {"dampening": 0.0, "nesterov": False, **vars(settings), "weight_decay": float(of_each[column])}
            names = ("exp_avg", "exp_avg_sq") if len(batched.state) == 2 else ("momentum_buffer",)
            state = dict(zip(names, (tensor[place] for tensor in batched.state), strict=False)) if steps else {}
            of_place = [batched.parameters[place]], [gradients[place]]
            alone = read_alike(settings.kind, group, [state | {"step": steps}], *of_place, int(steps))
            torch.testing.assert_close(updates[place], alone.updates[0], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(
                [first[row], second[row]], [alone.momentum_scale, alone.second_scale], rtol=1e-12
            )


def test_settings_are_those_of_the_optimizer():
    weight = [torch.nn.Parameter(torch.zeros(2))]
    made = {
        "sgd": torch.optim.SGD(weight, lr=1.0, momentum=0.8, weight_decay=0.1),
        "adam": torch.optim.Adam(weight, lr=1.0, betas=(0.7, 0.99), weight_decay=0.2),
        "adamw": torch.optim.AdamW(weight, lr=1.0, weight_decay=0.3),
        "other": torch.optim.RMSprop(weight, lr=1.0, momentum=0.6),
    }
    read = {kind: [float(of(kind, o.param_groups[0])) for of in SETTINGS.values()] for kind, o in made.items()}
    assert list(SETTINGS) == ["momentum", "beta2", "weight_decay", "decoupled"]
    assert read == {
        "sgd": [0.8, 0.0, 0.1, 0.0],
        "adam": [0.7, 0.99, 0.2, 0.0],
        "adamw": [0.9, 0.999, 0.3, 1.0],
        "other": [0.6, 0.0, 0.0, 0.0],
    }
