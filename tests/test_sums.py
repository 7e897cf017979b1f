"""Sums in pieces: equal to those of whole tensors, for every optimizer and kind of tensor, without new memory."""

import copy
import weakref

import numpy as np
import pytest
import torch
from test_moments import KNOWN, UNKNOWN
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gns import DecisionConfig, DecisionCore, layer_graph
from gns.features import sums
from gns.features.statistics import NUM_SUMS, SUM_ABS_G, SUM_G2, SUM_GM, SUM_M2, SUM_U2, SUM_V, SUM_W, SUM_W2
from gns.features.sums import PIECEWISE_FROM, Sums, foreach_sums, piecewise_sums, read_sums

OPTIMIZERS = {
    **KNOWN,
    **UNKNOWN,
    "adam beta2 zero": (torch.optim.Adam, {"betas": (0.9, 0.0)}),
    "adamw sharp": (torch.optim.AdamW, {"betas": (0.0, 0.5), "eps": 1e-2, "weight_decay": 0.3}),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
PIECE = 7


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Tensors of less than a piece, of just two, of more; a number, an empty one, and a convolution's."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5,), (2, 7), (9, 11), (), (0, 3), (4, 3, 2, 2))
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def compute_gradients(tensors: list[nn.Parameter], t: int) -> None:
    generator = torch.Generator().manual_seed(100 + t)
    for p in tensors:
        p.grad = (
            (1e-3 * torch.randn(p.shape, generator=generator)).to(p.dtype).clone(memory_format=torch.preserve_format)
        )


def make(name: str, tensors: object, lr: float = 0.01) -> torch.optim.Optimizer:
    cls, settings = OPTIMIZERS[name]
    return cls(tensors, lr=lr, **settings)


def both(
    optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], steps: int, piece: int = PIECE
) -> tuple[Sums, Sums]:
    gradients = [p.grad for p in tensors]
    return foreach_sums(optimizer, tensors, gradients, steps), piecewise_sums(
        optimizer, tensors, gradients, steps, piece
    )


def assert_equal(whole: Sums, pieces: Sums, tensors: list[nn.Parameter], tolerance: float = 1e-6) -> None:
    """Equal to the tolerance; for the two columns whose terms may cancel, of what their terms may come to.

    The update is worked out in two ways (a square root here, the inverse of its inverse there), and how many roundings
    apart they end depends on the processor: its square is given twice the tolerance, as a square has twice the error.
    """
    expected, found = whole.sums.double(), pieces.sums.double()
    scale = expected.abs()
    count = torch.tensor([p.numel() for p in tensors], dtype=torch.float64)
    scale[:, SUM_W] = (count * expected[:, SUM_W2]).sqrt()
    scale[:, SUM_GM] = (expected[:, SUM_G2] * expected[:, SUM_M2]).sqrt()
    scale[:, SUM_U2] *= 2.0
    assert pieces.sums.dtype == torch.float32 and pieces.sums.shape == (len(tensors), NUM_SUMS)
    assert ((found - expected).abs() <= tolerance * scale).all()
    np.testing.assert_allclose(pieces.momentum_scale, whole.momentum_scale, rtol=1e-12)
    np.testing.assert_allclose(pieces.second_scale, whole.second_scale, rtol=1e-12)


def train(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], updates: int) -> None:
    for t in range(updates):
        compute_gradients(tensors, t)
        optimizer.step()
    compute_gradients(tensors, updates)


# ---------------------------------------------------------------------- the twin


@every_optimizer
@pytest.mark.parametrize("updates", [0, 1, 4])
def test_sums_in_pieces_equal_those_of_whole_tensors(name, updates):
    tensors = parameters()
    optimizer = make(name, tensors)
    train(optimizer, tensors, updates)
    whole, pieces = both(optimizer, tensors, updates)
    assert_equal(whole, pieces, tensors)
    assert (whole.sums[0] != 0).sum() >= (4 if name in UNKNOWN else 6 if updates or "adam" in name else 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["sgd nesterov decay", "adam decay", "adamw decay", "adam amsgrad", "rmsprop momentum"]
)
def test_tensors_of_other_precisions(name, dtype):
    """Beside tensors of single precision, in one group.

    Pieces are multiples of what a processor rounds at once: at the odd end of a tensor it may round otherwise.
    """
    tensors = [*parameters(dtype), *parameters()]
    optimizer = make(name, tensors)
    optimizer.param_groups[0]["eps"] = 1e-3  # 1e-8 is 0 in float16
    for t in range(3):
        compute_gradients(tensors, t)
        torch._foreach_mul_([p.grad for p in tensors], 100.0)
        if t < 2:
            optimizer.step()
    whole, pieces = both(optimizer, tensors, 2, piece=64)
    assert torch.isfinite(whole.sums).all()
    assert_equal(whole, pieces, tensors)


@every_optimizer
def test_tensors_that_are_not_contiguous(name):
    """Channels last, transposed, and gradients and state that lie in another order than their parameter."""
    base = parameters()
    last = nn.Parameter(base[5].detach().to(memory_format=torch.channels_last))
    turned = nn.Parameter(base[2].detach().t())
    tensors = [last, turned, base[5]]
    optimizer = make(name, tensors)
    train(optimizer, tensors, 2)
    assert not last.is_contiguous() and not turned.is_contiguous()
    assert_equal(*both(optimizer, tensors, 2), tensors)
    for state in optimizer.state.values():
        state.update({key: t.contiguous() for key, t in state.items() if isinstance(t, Tensor)})
    last.grad, turned.grad = last.grad.contiguous(), turned.grad.sum().expand(turned.shape)
    assert_equal(*both(optimizer, tensors, 2), tensors)


@every_optimizer
@pytest.mark.parametrize("missing", [(0, 2), (0, 1, 2, 3, 4, 5)], ids=["some", "all"])
@pytest.mark.parametrize("updates", [0, 2])
def test_gradients_may_be_missing(name, missing, updates):
    tensors = parameters()
    optimizer = make(name, tensors)
    train(optimizer, tensors, updates)
    for i in missing:
        tensors[i].grad = None
    whole, pieces = both(optimizer, tensors, updates)
    assert_equal(whole, pieces, tensors)
    assert pieces.sums[2, SUM_G2] == pieces.sums[2, SUM_U2] == 0 != pieces.sums[2, SUM_W2]


@pytest.mark.parametrize("name", ["sgd momentum", "adam", "adamw decay"])
def test_a_tensor_may_join_later(name):
    tensors = parameters()
    optimizer = make(name, tensors)
    for t in range(4):
        compute_gradients(tensors, t)
        if t < 3:
            tensors[2].grad = None
        assert_equal(*both(optimizer, tensors, t), tensors)
        optimizer.step()


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_groups_of_different_settings_and_tensors_in_none(cls):
    tensors = parameters()
    settings = (
        [{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.0}]
        if cls is torch.optim.SGD
        else [{"betas": (0.5, 0.9), "weight_decay": 0.2}, {"amsgrad": True, "weight_decay": 0.0}]
    )
    optimizer = cls(
        [{"params": part, **about} for part, about in zip((tensors[1:3], tensors[5:]), settings, strict=True)], lr=0.01
    )
    train(optimizer, tensors, 3)
    whole, pieces = both(optimizer, tensors, 3)
    assert_equal(whole, pieces, tensors)
    assert pieces.sums[0, SUM_U2] == 0 != pieces.sums[2, SUM_U2]


@pytest.mark.parametrize("name", ["sgd momentum", "adamw", "adam decay"])
def test_an_embedding_most_of_whose_rows_have_no_gradient(name):
    """Second moments are zero there, or have decayed to denormal numbers."""
    tensors = [nn.Parameter(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)))]
    optimizer = make(name, tensors)
    for t in range(3):
        compute_gradients(tensors, t)
        tensors[0].grad[3:] = 0
        if t < 2:
            optimizer.step()
    for state in optimizer.state.values():
        if "exp_avg_sq" in state:
            state["exp_avg_sq"][20:] = 1e-40
    assert_equal(*both(optimizer, tensors, 2), tensors)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3e30])
@pytest.mark.parametrize("where", ["weight", "gradient", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("name", ["adamw decay", "adam amsgrad"])
def test_what_is_not_finite_stays_visible(name, where, value):
    tensors = parameters()
    optimizer = make(name, tensors)
    train(optimizer, tensors, 2)
    place = {"weight": tensors[2].data, "gradient": tensors[2].grad}
    place.get(where, optimizer.state[tensors[2]].get(where))[4, 5] = value
    whole, pieces = both(optimizer, tensors, 2)
    assert torch.equal(torch.isfinite(whole.sums), torch.isfinite(pieces.sums))
    seen = bool(torch.isfinite(pieces.sums).all())
    assert seen == (where == "exp_avg_sq" and value == 3e30)  # large, but its sum is a number


# ---------------------------------------------------------------------- which way is taken, and what it takes


def model_of(scalars: int) -> nn.Sequential:
    torch.manual_seed(2)
    width = int((scalars / 2) ** 0.5) + 1
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def compute_model_gradient(model: nn.Sequential, t: int) -> Tensor:
    x = torch.randn(4, model[0].in_features, generator=torch.Generator().manual_seed(t))
    model.zero_grad()
    loss = (model(x) - x).square().mean()
    loss.backward()
    return loss


@every_optimizer
def test_small_models_are_read_by_whole_tensors_to_the_bit(name):
    tensors = parameters()
    optimizer = make(name, tensors)
    train(optimizer, tensors, 2)
    gradients = [p.grad for p in tensors]
    found, whole = (way(optimizer, tensors, gradients, 2) for way in (read_sums, foreach_sums))
    assert torch.equal(found.sums, whole.sums)


@pytest.mark.parametrize("name", ["sgd momentum decay", "adamw decay", "adam decay"])
def test_sums_of_a_large_model_are_exact(name):
    """Against the same figures in double precision; those of whole tensors are further off."""
    model = model_of(PIECEWISE_FROM)
    tensors = list(model.parameters())
    optimizer = make(name, tensors)
    for t in range(3):
        compute_model_gradient(model, t)
        if t < 2:
            optimizer.step()
    gradients = [p.grad for p in tensors]
    found = read_sums(optimizer, tensors, gradients, 2)
    doubles = [nn.Parameter(p.detach().double()) for p in tensors]
    double = copy.copy(optimizer)
    double.state = {
        d: {k: t.double() if k != "step" and isinstance(t, Tensor) else t for k, t in optimizer.state[p].items()}
        for d, p in zip(doubles, tensors, strict=True)
    }
    double.param_groups = [{**optimizer.param_groups[0], "params": doubles}]
    w, g = [p.detach() for p in doubles], [p.grad.double() for p in tensors]
    state = [double.state[p] for p in doubles]
    m = [s.get("exp_avg", s.get("momentum_buffer")) for s in state]
    before = [p.clone() for p in w]
    for p, gradient in zip(doubles, g, strict=True):
        p.grad = gradient
    exact = {SUM_W: w, SUM_W2: [x**2 for x in w], SUM_ABS_G: [x.abs() for x in g], SUM_G2: [x**2 for x in g]}
    exact |= {SUM_GM: [x * y for x, y in zip(g, m, strict=True)], SUM_M2: [x**2 for x in m]}
    exact[SUM_V] = [s["exp_avg_sq"].clone() if "exp_avg_sq" in s else x**2 for s, x in zip(state, g, strict=True)]
    columns = {column: torch.stack([x.sum() for x in terms]) for column, terms in exact.items()}
    double.step()
    columns[SUM_U2] = torch.stack(
        [((b - p.detach()) / 0.01).square().sum() for b, p in zip(before, doubles, strict=True)]
    )
    expected = Sums(
        torch.stack([columns[i] for i in range(NUM_SUMS)], dim=-1), found.momentum_scale, found.second_scale
    )
    assert_equal(expected, found, tensors)


class NewMemory(TorchDispatchMode):
    """Notes the largest storage that an operation makes, in bytes, and what reads a number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        given = {t.untyped_storage().data_ptr() for t in tensors_of((args, kwargs))}
        for tensor in tensors_of(result):
            if tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def tensors_of(nest: object) -> list[Tensor]:
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, dict):
        nest = list(nest.values())
    return [t for item in nest for t in tensors_of(item)] if isinstance(nest, tuple | list) else []


@pytest.mark.parametrize("name", ["sgd momentum decay", "adamw decay", "adam amsgrad", "rmsprop momentum"])
def test_a_decision_makes_no_copy_of_a_large_model(name):
    model = model_of(2**22)
    optimizer = make(name, model.parameters())
    core = DecisionCore(
        model,
        optimizer,
        layer_graph(model, model(torch.ones(2, model[0].in_features))),
        6,
        DecisionConfig(num_decisions=3),
    )
    for t in range(3):
        loss = compute_model_gradient(model, t)
        with NewMemory() as memory:
            core.observe()
        assert 0 < memory.largest <= 2 * 2**20 < min(p.numel() * 4 for p in model[0].parameters() if p.dim() == 2) / 2
        assert memory.reads == 0 or "sgd" not in name  # others count their updates on the host
        if core.decision_due:
            core.decide(0.0)
        core.set_rates()
        optimizer.step()
        core.note_update(loss)


def test_no_number_of_a_piece_is_kept_while_the_next_is_read(monkeypatch):
    """Each would lie in room that a piece had, and the process would grow by a piece for every piece."""
    numbers, real = [], sums._sums_of_piece

    def watched(*given):
        assert not any(number() is not None for number in numbers)
        found = real(*given)
        numbers[:] = map(weakref.ref, found)
        return found

    monkeypatch.setattr(sums, "_sums_of_piece", watched)
    tensors = parameters()
    optimizer = make("sgd momentum", tensors)
    compute_gradients(tensors, 0)
    optimizer.step()
    piecewise_sums(optimizer, tensors, [p.grad for p in tensors], 1, PIECE)
    assert numbers
