"""One model being trained on a task, one update at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from envs.data_order import DataOrder
from envs.passes import Figures, autocast, evaluate_split, in_mode
from envs.random_numbers import random_state, seeded_random_state, set_random_state
from envs.tasks.base import Task
from gns.errors import InvalidSettingError, OutOfOrderError, UnknownNameError, require_positive
from gns.graph.layer_groups import parameter_groups

OptimizerFactory = Callable[[Any, float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, fused=True),
    "sgdm": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True),
    "nadamw": lambda parameters, lr: torch.optim.NAdam(
        parameters, lr=lr, weight_decay=0.01, decoupled_weight_decay=True, foreach=True
    ),
}


@dataclass(frozen=True)
class Position:
    """Where a run stood but for weights and optimizer state; a call goes back there, as often as wanted.

    :param run: which run
    :param state: data order, random numbers, scaler and buffers: plain values, none of which is changed
    """

    run: TrainingRun
    state: dict[str, Any]

    def __call__(self) -> None:
        """Go back."""
        self.run._go_back(self.state)


class TrainingRun:
    """A training run of a task: model, optimizer, data stream and random numbers of its own.

    Every run is a function of its seed alone: runs that take turns in one process do not disturb each other.
    It holds the training and the reward split; it has no way to the test split.

    :param task: what is trained
    :param optimizer: a name in :data:`OPTIMIZERS`
    :param learning_rate: initial learning rate
    :param seed: seed of initial weights, data order and whatever the model draws
    :param device: where to train
    :param make_optimizer: makes the optimizer from parameters and learning rate in place of the one that is named
    :param by_layer: whether the optimizer has a parameter group for each layer; each of the task's own is then divided
    :raises UnknownNameError: if there is no such optimizer
    :raises InvalidSettingError: if the learning rate is not positive
    """

    def __init__(
        self,
        task: Task,
        optimizer: str,
        learning_rate: float,
        seed: int,
        device: torch.device | str = "cpu",
        make_optimizer: OptimizerFactory | None = None,
        by_layer: bool = False,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
        require_positive("learning_rate", learning_rate)
        self.task, self.device = task, torch.device(device)
        data = task.training_data()
        self._train, self._reward = data.train.to(self.device), data.reward.to(self.device)
        seed = int(seed)
        self._random_state = seeded_random_state(seed, self.device)
        with self._own_random_numbers():
            self.model = task.new_model().to(self.device).train()
        make_optimizer = make_optimizer or OPTIMIZERS[optimizer]
        groups = task.parameter_groups(self.model)
        self.optimizer = make_optimizer(
            parameter_groups(self.model, groups=groups) if by_layer else groups, learning_rate
        )
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        self._held = [parameter for parameter in self.model.parameters() if parameter in held]
        self._data = DataOrder(data.train, task.batch_size, seed)
        self._reward_cursor = 0
        self._scaler = torch.amp.GradScaler(self.device.type) if task.precision == "float16" else None
        self._unscaled = self._left_out = False  # a gradient is pending at precision float16; it overflowed
        self._graph: list[Tensor] | None = None
        self.loss: Tensor  # of the batch whose gradient is pending

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer holds, in the model's order."""
        return self._held

    @property
    def left_out(self) -> bool:
        """Whether the pending gradient overflowed at precision ``float16``, so that its update will be left out."""
        return self._left_out

    def compute_gradient(self, keep_graph: bool = False) -> Tensor:
        """Draw the next batch and compute its gradient, clipped if the task says so, which is then pending.

        An update that the scaler of precision ``float16`` will leave out has a pending gradient of 0.

        :param keep_graph: keep what :meth:`hessian_vector_product` needs, until the next call
        :return: the batch's mean loss, a scalar tensor, also kept in ``loss``
        :raises InvalidSettingError: if the graph is to be kept at precision ``float16``
        """
        task = self.task
        if keep_graph and self._scaler is not None:
            raise InvalidSettingError("No Hessian at precision 'float16'; expected 'float32' or 'bfloat16' for it.")
        with self._own_random_numbers():
            rows = self._data.next_rows()
            self.model.zero_grad()
            losses: list[Tensor] = []
            self._graph = None
            for part in rows.tensor_split(min(task.accumulation, len(rows))):
                inputs, targets = self._train.batch(part)
                with autocast(task, self.device):
                    loss = task.loss(self.model(task.prepare(inputs, True)), targets)
                losses.append(loss if len(part) == len(rows) else loss * (len(part) / len(rows)))
                if keep_graph:
                    self._add_graph(losses[-1])
                else:
                    (self._scaler.scale(losses[-1]) if self._scaler else losses[-1]).backward()
            self.loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            if self._scaler is not None:
                self._unscale()
            if keep_graph:
                self._publish_graph()
            if task.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._held, task.clip_norm)
        return self.loss

    def _unscale(self) -> None:
        assert self._scaler is not None
        self._forget_pending()
        self._scaler.unscale_(self.optimizer)
        self._unscaled = True
        gradients = [p.grad for p in self._held if p.grad is not None]
        largest = torch.stack(list(torch._foreach_norm(gradients, torch.inf))) if gradients else torch.zeros(1)
        self._left_out = not bool(largest.isfinite().all())
        if self._left_out:
            torch._foreach_zero_(gradients)

    def _forget_pending(self) -> None:
        """Let the scaler take a new gradient where the last one was never applied."""
        if self._scaler is not None and self._unscaled:
            self._scaler.update()
            self._unscaled = False

    def _add_graph(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self._held, create_graph=True, materialize_grads=True)
        before = self._graph
        self._graph = list(gradients) if before is None else [a + b for a, b in zip(before, gradients, strict=True)]

    def _publish_graph(self) -> None:
        """Make the gradients pending."""
        assert self._graph is not None
        for parameter, gradient in zip(self._held, self._graph, strict=True):
            parameter.grad = gradient.detach().clone()

    def hessian_vector_product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return J v for the pending gradient, J its derivative by :attr:`parameters`: the loss's Hessian.

        One backward pass through the gradient's own graph (Pearlmutter, 1994), which is freed. Of a clipped gradient
        ``s g`` with ``s = clip_norm / |g|`` the derivative is that of the clipped one, which is not symmetric.

        :param vectors: v, tensors of the parameters' shapes
        :raises OutOfOrderError: unless ``compute_gradient(keep_graph=True)`` came just before
        """
        if self._graph is None:
            raise OutOfOrderError("hessian_vector_product() needs compute_gradient(keep_graph=True) just before it.")
        graph, self._graph = self._graph, None
        reachable = [(g, v) for g, v in zip(graph, vectors, strict=True) if g.requires_grad]
        if not reachable:
            return [torch.zeros_like(parameter) for parameter in self._held]
        gradients, weights = zip(*reachable, strict=True)
        product = torch.autograd.grad(gradients, self._held, grad_outputs=weights, materialize_grads=True)
        return list(product) if self.task.clip_norm is None else self._clipped(graph, product, self.task.clip_norm)

    @torch.no_grad()
    def _clipped(self, gradients: Sequence[Tensor], product: Sequence[Tensor], limit: float) -> list[Tensor]:
        """Carry H v through the clipping: ``s H v - g (s / |g|) <g, H v> / |g|`` where it clips."""
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = limit / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        if scale >= 1.0:
            return list(product)
        along = torch.stack([(g * p).sum() for g, p in zip(gradients, product, strict=True)]).sum() / norm
        return [scale * (p - g * along / (norm + 1e-6)) for g, p in zip(gradients, product, strict=True)]

    def reward_gradient(self) -> list[Tensor]:
        """Return the gradient of the loss on the next batch of the reward split, in evaluation mode.

        The reward split is passed through in its own order, again and again. Pending gradient, random numbers and
        buffers stay as they are.

        :return: tensors of the shapes of :attr:`parameters`
        """
        size = min(self.task.batch_size, len(self._reward))
        if self._reward_cursor + size > len(self._reward):
            self._reward_cursor = 0
        rows = torch.arange(self._reward_cursor, self._reward_cursor + size)
        self._reward_cursor += size
        with self._undisturbed(), in_mode(self.model, training=False):
            inputs, targets = self._reward.batch(rows)
            with autocast(self.task, self.device):
                loss = self.task.loss(self.model(self.task.prepare(inputs, False)), targets)
            return list(torch.autograd.grad(loss, self._held, materialize_grads=True))

    def apply_update(self) -> None:
        """Apply the pending gradient."""
        self._graph = None
        if self._scaler is None:
            self.optimizer.step()
        else:
            if not self._left_out:  # a fused SGD would begin its momentum with whatever lies in memory
                self._scaler.step(self.optimizer)
            self._scaler.update()
            self._unscaled = False

    @torch.no_grad()
    def recalibrate_batch_norm(self, batches: int = 50) -> None:
        """Replace batch norm's running statistics by the mean over training batches at the present weights.

        What optimizers whose evaluated weights are not those they train with need (Defazio et al., "The Road Less
        Scheduled", 2024). Random numbers and data position stay as they are; without batch norm it does nothing.

        :param batches: training batches to pass, at most one pass over the training split
        """
        norms = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        size = min(self.task.batch_size, len(self._train))
        rows = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(0))
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over batches
            with self._undisturbed(), in_mode(self.model, training=True):
                for part in rows[: len(rows) // size * size].split(size)[:batches]:
                    inputs, _ = self._train.batch(part)
                    with autocast(self.task, self.device):
                        self.model(self.task.prepare(inputs, True))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, between updates: copies, no references.

        Model, optimizer, random numbers, data position and scaler; learning rates are among the optimizer's.
        """
        return {
            "model": _copied(dict(self.model.state_dict())),
            "optimizer": _copied(self.optimizer.state_dict()),
            "random": [state.clone() for state in self._random_state],
            **_copied(self._data.state_dict()),
            "reward_cursor": self._reward_cursor,
            "scaler": self._scaler_state(),
        }

    def _scaler_state(self) -> dict[str, Any] | None:
        return None if self._scaler is None else dict(self._scaler.state_dict())

    def _load_scaler(self, state: dict[str, Any] | None) -> None:
        if self._scaler is not None and state is not None:
            self._forget_pending()
            self._scaler.load_state_dict(dict(state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a run of the same task and optimizer; any pending gradient is dropped."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(_copied(state["optimizer"]))
        self._random_state = [value.clone() for value in state["random"]]
        self._data.load_state_dict(state)
        self._reward_cursor = state["reward_cursor"]
        self._load_scaler(state["scaler"])
        self.model.zero_grad()
        self._graph = None

    def pending_state(self) -> dict[str, Any]:
        """Return what :meth:`state_dict` leaves out: the pending gradient, its loss, and buffers that are not saved."""
        saved = self.model.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name not in saved}
        return {
            "gradients": _copied([parameter.grad for parameter in self.model.parameters()]),
            "loss": self.loss.detach().clone(),
            "buffers": _copied(buffers),
            "unscaled": self._unscaled,
            "left_out": self._left_out,
        }

    def load_pending_state(self, state: dict[str, Any]) -> None:
        """Make a gradient pending again, after :meth:`load_state_dict` of the state it came with.

        :param state: what :meth:`pending_state` returned
        """
        for parameter, gradient in zip(self.model.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(self.device, copy=True)
        self.loss = state["loss"].to(self.device, copy=True)
        with torch.no_grad():
            for name, value in state["buffers"].items():
                self.model.get_buffer(name).copy_(value)
        if state["unscaled"]:
            self._unscale_again(state["left_out"])
        self._left_out = state["left_out"]

    def _unscale_again(self, left_out: bool) -> None:
        """Bring the scaler where it stood: exact, since it scales by powers of two."""
        assert self._scaler is not None
        self._scaler.scale(torch.zeros((), device=self.device))  # without a tensor it has no scale yet
        gradients = [p.grad for p in self._held if p.grad is not None]
        if left_out:
            gradients[0].fill_(torch.inf)
        else:
            torch._foreach_mul_(gradients, self._scaler.get_scale())
        self._unscale()

    def evaluate_reward_split(self) -> Figures:
        """Return loss and metrics on the reward split; whatever the model draws, the run's random numbers stay."""
        with self._undisturbed():
            return evaluate_split(self.model, self.task, self._reward)

    def position(self) -> Position:
        """Remember data position, random numbers, scaler and the model's buffers; a call of it goes back to them.

        Buffers are part of it because a forward pass moves them (batch norm's running statistics) before any update.
        """
        return Position(
            self,
            {
                **self._data.state_dict(),
                "random": list(self._random_state),
                "buffers": [buffer.clone() for buffer in self.model.buffers()],
                "scaler": self._scaler_state(),
            },
        )

    def _go_back(self, state: dict[str, Any]) -> None:
        self._load_scaler(state["scaler"])
        self._data.load_state_dict(state)
        self._random_state = list(state["random"])
        for buffer, value in zip(self.model.buffers(), state["buffers"], strict=True):
            buffer.copy_(value)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Use the run's random numbers, and put them back."""
        with self._own_random_numbers():
            before = self._random_state
            try:
                yield
            finally:
                set_random_state(before, self.device)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        outside = random_state(self.device)
        set_random_state(self._random_state, self.device)
        try:
            yield
        finally:
            self._random_state = random_state(self.device)
            set_random_state(outside, self.device)


def _copied(value: Any) -> Any:
    """Return a state with copies of its tensors and containers; ten times as fast as ``copy.deepcopy``."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value
