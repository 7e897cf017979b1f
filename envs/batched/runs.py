"""N training runs of one task and one optimizer, each the run that its seed makes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.batched.model import BatchedModel, laid_out
from envs.batched.optimizers import BatchedOptimizer
from envs.batched.state import load_runs_state, runs_state
from envs.batched.tracing import Traced
from envs.data_order import DataOrder
from envs.passes import Figures
from envs.tasks.base import Split, Task, unchanged
from gns.features.travel import spacing

# Of a run: state of its data order and random numbers, and its buffers.
StreamState = tuple[tuple[dict[str, Any], Tensor], list[Tensor]]


_EVALUATED_AT_ONCE = 4096  # examples of all runs: what an evaluation holds in memory stays small


class _Stream:
    """Data order and random numbers of one run.

    :param train: its training split
    :param batch_size: rows of a batch
    :param seed: seed of both
    """

    def __init__(self, train: Split, batch_size: int, seed: int) -> None:
        self.data = DataOrder(train, batch_size, seed)
        self._random = torch.Generator().manual_seed(seed).get_state()  # of what model and augmentation draw

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let PyTorch's random numbers be those of this run."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(outside)

    def state(self) -> tuple[dict[str, Any], Tensor]:
        return self.data.state_dict(), self._random

    def load(self, state: tuple[dict[str, Any], Tensor]) -> None:
        self.data.load_state_dict(state[0])
        self._random = state[1]


class BatchedRuns:
    """``size`` training runs side by side, numbered; each equals a :class:`envs.training_run.TrainingRun`.

    Parameters of all runs are one matrix (N, P), ``weights``; so are their gradients and the optimizer's state. Run i
    has row ``rows[i]`` of all of them: :meth:`arrange` brings runs that are to be active together into neighbouring
    rows, which are then trained in place. A run that is left out of a call stays as it is.

    :param task: what is trained
    :param optimizer: a name in :data:`envs.batched.optimizers.BATCHED_OPTIMIZERS`
    :param size: number of runs N
    :param device: where to train
    :raises NotBatchableError: if runs of this task cannot be trained side by side
    :raises UnknownNameError: if there is no such optimizer
    """

    def __init__(self, task: Task, optimizer: str, size: int, device: torch.device | str = "cpu") -> None:
        self.task, self.size, self.device = task, size, torch.device(device)
        data = task.training_data()
        self._train, self._reward = data.train.to(self.device), data.reward.to(self.device)
        self.batch_size = min(task.batch_size, len(self._train))
        self.model = BatchedModel(task, self.device)
        self._counts = [shape.numel() for shape in self.model.shapes.values()]
        self.weights = torch.zeros(size, sum(self._counts), device=self.device)
        self.gradients = torch.zeros_like(self.weights)
        self.losses = torch.zeros(size, device=self.device)  # by row, of the batches whose gradients are pending
        self.optimizer = BatchedOptimizer(optimizer, self.weights, self.model.settings.get(optimizer))
        self.buffers = {
            name: buffer.to(self.device).expand(size, *buffer.shape).clone()
            for name, buffer in self.model.buffers.items()
        }
        self._passes = Traced(self._losses_and_gradients)
        self._sketched = torch.cat(
            [
                first + torch.arange(0, count, spacing(count))
                for first, count in zip(np.cumsum([0, *self._counts[:-1]]).tolist(), self._counts, strict=True)
            ]
        ).to(self.device)
        self.starts = torch.zeros(size, len(self._sketched), device=self.device)  # by run: see gns.features.travel
        self.streams: dict[int, _Stream] = {}
        self.rows = np.arange(size)  # of each run
        self.order = np.arange(size)  # the run of each row

    # ------------------------------------------------------------------ what happens to runs

    def begin(self, runs: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin some runs anew; their gradients are not pending yet."""
        for run, seed in zip(runs, seeds, strict=True):
            stream = self.streams[run] = self.new_stream(int(seed))
            with stream.drawing():
                model = self.task.new_model()
            row = self.rows[run]
            with torch.no_grad():
                self.weights[row] = nn.utils.parameters_to_vector(model.parameters())
                for name, buffer in model.named_buffers():
                    self.buffers[name][row] = buffer
                self.starts[run] = self.weights[row][self._sketched]
        self.optimizer.begin(self._rows_of(runs))

    def new_stream(self, seed: int) -> _Stream:
        """Return the data order and random numbers that a run of a seed begins with."""
        return _Stream(self._train, self.task.batch_size, seed)

    def arrange(self, priority: np.ndarray) -> None:
        """Move runs to other rows, so that those of the highest priority are in the first ones.

        :param priority: a number a run, (N,)
        """
        if (np.diff(priority[self.order]) <= 0).all():
            return
        order = np.argsort(-priority, kind="stable")
        moved = torch.from_numpy(self.rows[order]).to(self.device)  # the row that comes to each row
        for tensor in (*self.tensors(), self.gradients, self.losses, *self.buffers.values()):
            tensor.copy_(tensor[moved])
        self.optimizer.steps.copy_(self.optimizer.steps[moved.cpu()])
        self.order = order
        self.rows[order] = np.arange(self.size)

    def compute_gradients(self, active: Tensor) -> None:
        """Draw the next batch of some runs and compute its gradient, which is then pending.

        :param active: which runs, bool (N,), on the host
        """
        rows, runs = self._active(active)
        whole = isinstance(rows, slice)  # views, and no copies
        weights = self.weights[rows]
        buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        gradients = self.gradients[rows] if whole else torch.empty_like(weights)
        into = list(self.views(gradients).values())
        parameters = list(self.views(weights).values())
        examples = torch.stack([self.streams[run].data.next_rows() for run in runs])
        losses = torch.zeros(len(runs), device=self.device)
        for number, part in enumerate(examples.split(self.batch_size // self.task.accumulation, dim=1)):
            loss, found = self._passes(parameters, buffers, *self._batch(part, runs))
            (torch._foreach_add_ if number else torch._foreach_copy_)(into, found)
            losses += loss
        if self.task.clip_norm is not None:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients.mul_((self.task.clip_norm / (norms + 1e-6)).clamp(max=1.0))
        self.losses[rows] = losses
        if not whole:
            self.gradients[rows] = gradients
            for name, buffer in buffers.items():
                self.buffers[name][rows] = buffer

    def apply_updates(self, rates: Tensor, active: Tensor) -> None:
        """Apply the pending gradients of some runs.

        :param rates: learning rates, float64 (N,), on the host
        :param active: which runs, bool (N,), on the host
        """
        rows, runs = self._active(active)
        self.optimizer.step(self.gradients[rows], rates[runs], rows)

    def evaluate_reward_split(self, runs: Sequence[int], with_metrics: bool = True) -> list[Figures]:
        """Return loss, and if wanted metrics, of some runs on the whole reward split, as it is evaluated alone."""
        if not runs:
            return []
        rows = self._rows_of(runs)
        parameters = self.views(self.weights[rows])
        buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        count, split = len(self._reward), self._reward
        losses, collected = torch.zeros(len(runs), dtype=torch.float64, device=self.device), []
        at_once = min(self.task.evaluation_batch_size, max(1, _EVALUATED_AT_ONCE // len(runs)))
        for part in torch.arange(count).split(at_once):
            inputs, targets = split.batch(part)
            inputs = self.task.prepare(inputs, False)
            everyones = laid_out(inputs.expand(len(runs), *inputs.shape))
            outputs = self.model.outputs(parameters, buffers, everyones)
            losses += self.model.split_losses(outputs, targets).double() * (len(part) / count)
            if with_metrics:
                collected.append(torch.stack([self.task.collect(output) for output in outputs]))
        found = losses.tolist()
        if not with_metrics:
            return [Figures(loss, {self.task.metric_name: float("nan")}) for loss in found]
        joined = torch.cat(collected, dim=1)
        return [Figures(loss, self._metrics(output, split)) for loss, output in zip(found, joined, strict=True)]

    def _metrics(self, outputs: Tensor, split: Split) -> dict[str, float]:
        return {name: float(metric(outputs, split)) for name, metric in self.task.metrics.items()}

    # ------------------------------------------------------------------ going back

    def positions(self, runs: Sequence[int]) -> dict[int, StreamState]:
        """Return where data order, random numbers and buffers of some runs stand, by run: what a gradient moves."""
        return {
            run: (self.streams[run].state(), [buffer[self.rows[run]].clone() for buffer in self.buffers.values()])
            for run in runs
        }

    def state(self, positions: dict[int, StreamState]) -> dict[str, Any]:
        """Return all that some runs need to go on exactly, but for pending gradients.

        :param positions: of these runs, from before the gradients that are pending now
        """
        rows = self._rows_of(list(positions))
        return {
            "tensors": [tensor[rows] for tensor in self.tensors()],
            "steps": self.optimizer.steps[rows.cpu()],
            "positions": list(positions.values()),
        }

    def load_state(self, runs: Sequence[int], state: dict[str, Any], chosen: Sequence[int] | None = None) -> None:
        """Put states back.

        :param runs: which runs get them
        :param state: what :meth:`state` returned
        :param chosen: which of its runs, by place; None: all of them
        """
        chosen = range(len(runs)) if chosen is None else chosen
        rows, from_ = self._rows_of(runs), torch.tensor(list(chosen), device=self.device)
        for tensor, saved in zip(self.tensors(), state["tensors"], strict=True):
            tensor[rows] = saved[from_]
        self.optimizer.steps[rows.cpu()] = state["steps"][list(chosen)]
        for run, place in zip(runs, chosen, strict=True):
            stream, buffers = state["positions"][place]
            self.streams[run].load(stream)
            for buffer, saved in zip(self.buffers.values(), buffers, strict=True):
                buffer[self.rows[run]] = saved

    def state_dict(self) -> dict[str, Any]:
        """Return all that every run needs to go on exactly, pending gradients among it, see :mod:`envs.plain_state`.

        :raises OutOfOrderError: if a run was never begun
        """
        return runs_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        :raises StateError: if it is of another task, optimizer, model or number of runs, or damaged
        """
        load_runs_state(self, state)

    # ------------------------------------------------------------------ inside

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return views (n, *shape) of the parameters' places in a matrix (n, P), by name."""
        return {
            name: part.view(len(matrix), *shape)
            for (name, shape), part in zip(self.model.shapes.items(), self.split(matrix), strict=True)
        }

    def sketched(self, matrix: Tensor) -> list[Tensor]:
        """Return of each parameter tensor the scalars that a sketch keeps, (N, k), of a matrix (N, P) by row."""
        counts = [len(range(0, count, spacing(count))) for count in self._counts]
        return list(matrix[:, self._sketched].split(counts, dim=1))

    def split(self, matrix: Tensor) -> Sequence[Tensor]:
        """Return the parts of a matrix (..., P) that belong to each parameter tensor."""
        return matrix.split(self._counts, dim=-1)

    def _rows_of(self, runs: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.rows[list(runs)]).to(self.device)

    def _active(self, active: Tensor) -> tuple[slice | Tensor, list[int]]:
        """Return the rows of active runs, a slice if they are the first ones, and the run of each."""
        rows = np.sort(self.rows[active.numpy()])
        runs = self.order[rows].tolist()
        return (slice(len(runs)) if np.array_equal(rows, np.arange(len(rows))) else self._rows_of(runs)), runs

    def tensors(self) -> list[Tensor]:
        """Return weights and optimizer state of all runs, each a matrix by row."""
        return [self.weights, *self.optimizer.state]

    def _losses_and_gradients(
        self, parameters: list[Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor, masks: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return each run's part of its loss, (n,), and the gradients of it; buffers are moved in place.

        :param parameters: tensors (n, *shape)
        """
        leaves = [tensor.detach().requires_grad_() for tensor in parameters]
        by_name = dict(zip(self.model.shapes, leaves, strict=True))
        losses = self.model.losses(by_name, buffers, masks, inputs, targets) / self.task.accumulation
        return losses.detach(), torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)

    def _batch(self, examples: Tensor, runs: Sequence[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return prepared inputs, targets and dropout masks of n runs.

        :param examples: rows of the training split for each run, (n, B)
        """
        inputs, targets = self._train.batch(examples.flatten())
        inputs, targets = (value.unflatten(0, examples.shape) for value in (inputs, targets))
        shapes = self.model.mask_shapes
        if self.task.prepare is unchanged and not shapes:
            return laid_out(inputs), targets, {}
        prepared, masks = [], {name: torch.ones(len(runs), *shape) for name, shape in shapes.items()}
        for i, run in enumerate(runs):
            with self.streams[run].drawing():
                prepared.append(self.task.prepare(inputs[i], True))
                for name, mask in masks.items():
                    keep = 1.0 - self.model.dropouts[name]
                    mask[i].bernoulli_(keep).div_(keep)
        return laid_out(torch.stack(prepared)), targets, {name: mask.to(self.device) for name, mask in masks.items()}
