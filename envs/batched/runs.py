"""N training runs of one task and one optimizer, each the run that its seed makes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.batched.model import BatchedModel
from envs.batched.optimizers import BatchedOptimizer
from envs.data_order import DataOrder
from envs.tasks.base import Split, Task, unchanged
from envs.training_run import Figures


class _Stream:
    """Data order and random numbers of one run.

    :param train: its training split
    :param batch_size: rows of a batch
    :param seed: seed of both
    """

    def __init__(self, train: Split, batch_size: int, seed: int) -> None:
        self.data = DataOrder(train, batch_size, seed)
        self.generator = torch.Generator().manual_seed(seed)  # of what model and augmentation draw

    def state(self) -> tuple[dict[str, Any], Tensor]:
        return self.data.state_dict(), self.generator.get_state()

    def load(self, state: tuple[dict[str, Any], Tensor]) -> None:
        self.data.load_state_dict(state[0])
        self.generator.set_state(state[1])


class BatchedRuns:
    """``size`` training runs side by side, numbered by row; each equals a :class:`envs.training_run.TrainingRun`.

    Parameters of all runs are one matrix (N, P), ``weights``; so are their gradients. A run that is left out of a call
    stays as it is.

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
        counts = [shape.numel() for shape in self.model.shapes.values()]
        self._places = list(zip(torch.tensor([0, *counts]).cumsum(0).tolist(), counts, strict=False))
        self.weights = torch.zeros(size, sum(counts), device=self.device)
        self.gradients = torch.zeros_like(self.weights)
        self.losses = torch.zeros(size, device=self.device)  # of the batches whose gradients are pending
        self.optimizer = BatchedOptimizer(optimizer, self.weights)
        self._buffers = {
            name: buffer.to(self.device).expand(size, *buffer.shape).clone()
            for name, buffer in self.model.buffers.items()
        }
        self._streams: dict[int, _Stream] = {}

    # ------------------------------------------------------------------ what happens to runs

    def begin(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin new runs in some rows; their gradients are not pending yet."""
        for row, seed in zip(rows, seeds, strict=True):
            stream = self._streams[row] = _Stream(self._train, self.task.batch_size, int(seed))
            outside = torch.get_rng_state()
            torch.set_rng_state(stream.generator.get_state())
            model = self.task.new_model()
            stream.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(outside)
            with torch.no_grad():
                self.weights[row] = nn.utils.parameters_to_vector(model.parameters())
                for name, buffer in model.named_buffers():
                    self._buffers[name][row] = buffer
        self.optimizer.begin(torch.tensor(list(rows), dtype=torch.long))

    def compute_gradients(self, active: Tensor) -> None:
        """Draw the next batch of some runs and compute its gradient, which is then pending.

        :param active: which runs, bool (N,), on the host
        """
        rows = active.nonzero().squeeze(1).tolist()
        everyone, there = len(rows) == self.size, torch.tensor(rows, device=self.device)
        leaves = {
            name: tensor.detach().requires_grad_()
            for name, tensor in self.views(self.weights if everyone else self.weights[there]).items()
        }
        buffers = self._buffers if everyone else {name: buffer[there] for name, buffer in self._buffers.items()}
        examples = torch.stack([self._streams[i].data.next_rows() for i in rows])
        parts = []
        for part in examples.split(self.batch_size // self.task.accumulation, dim=1):
            inputs, targets, masks = self._batch(part, rows)
            loss = self.model.losses(leaves, buffers, masks, inputs, targets) / self.task.accumulation
            found = torch.autograd.grad(loss.sum(), list(leaves.values()), materialize_grads=True)
            parts.append((torch.cat([gradient.flatten(1) for gradient in found], dim=1), loss.detach()))
        total, losses = parts[0]
        for more, its_losses in parts[1:]:
            total.add_(more)
            losses = losses + its_losses
        if self.task.clip_norm is not None:
            norms = torch.linalg.vector_norm(total, dim=1, keepdim=True)
            total.mul_((self.task.clip_norm / (norms + 1e-6)).clamp(max=1.0))
        if everyone:
            self.gradients, self.losses = total, losses
        else:
            self.gradients[there], self.losses[there] = total, losses
            for name, buffer in buffers.items():
                self._buffers[name][there] = buffer

    def apply_updates(self, rates: Tensor, active: Tensor) -> None:
        """Apply the pending gradients of some runs.

        :param rates: learning rates, float64 (N,), on the host
        :param active: which runs, bool (N,), on the host
        """
        self.optimizer.step(self.gradients, rates, active)

    def evaluate_reward_split(self, rows: Sequence[int], with_metrics: bool = True) -> list[Figures]:
        """Return loss, and if wanted metrics, of some runs on the whole reward split, as it is evaluated alone."""
        if not rows:
            return []
        there = torch.tensor(list(rows), device=self.device)
        parameters = self.views(self.weights[there])
        buffers = {name: buffer[there] for name, buffer in self._buffers.items()}
        count, split = len(self._reward), self._reward
        losses, collected = torch.zeros(len(rows), dtype=torch.float64, device=self.device), []
        for part in torch.arange(count).split(self.task.evaluation_batch_size):
            inputs, targets = split.batch(part)
            outputs = self.model.outputs(parameters, buffers, self.task.prepare(inputs, False))
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

    def state(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return all that some runs need to go on exactly, but for pending gradients; indexing by rows copies."""
        there = torch.tensor(list(rows), device=self.device)
        return {
            "tensors": [tensor[there] for tensor in self._tensors()],
            "buffers": {name: buffer[there] for name, buffer in self._buffers.items()},
            "steps": self.optimizer.steps[list(rows)],
            "streams": [self._streams[row].state() for row in rows],
        }

    def load_state(self, rows: Sequence[int], state: dict[str, Any], chosen: Sequence[int] | None = None) -> None:
        """Put states back.

        :param rows: which runs get them
        :param state: what :meth:`state` returned
        :param chosen: which of its runs, by place; None: all of them
        """
        chosen = range(len(rows)) if chosen is None else chosen
        there, from_ = (torch.tensor(list(numbers), device=self.device) for numbers in (rows, chosen))
        for tensor, saved in zip(self._tensors(), state["tensors"], strict=True):
            tensor[there] = saved[from_]
        for name, saved in state["buffers"].items():
            self._buffers[name][there] = saved[from_]
        self.optimizer.steps[list(rows)] = state["steps"][list(chosen)]
        for row, place in zip(rows, chosen, strict=True):
            self._streams[row].load(state["streams"][place])

    # ------------------------------------------------------------------ inside

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return views (n, *shape) of the parameters' places in a matrix (n, P), by name."""
        return {
            name: matrix[:, start : start + count].unflatten(1, shape) if shape else matrix[:, start]
            for (name, shape), (start, count) in zip(self.model.shapes.items(), self._places, strict=True)
        }

    def _tensors(self) -> list[Tensor]:
        return [self.weights, *self.optimizer.state]

    def _batch(self, examples: Tensor, runs: Sequence[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return prepared inputs, targets and dropout masks of n runs.

        :param examples: rows of the training split for each run, (n, B)
        """
        inputs, targets = self._train.batch(examples.flatten())
        inputs, targets = (value.unflatten(0, examples.shape) for value in (inputs, targets))
        shapes = self.model.mask_shapes
        if self.task.prepare is unchanged and not shapes:
            return inputs, targets, {}
        prepared, masks = [], {name: torch.ones(len(runs), *shape) for name, shape in shapes.items()}
        outside = torch.get_rng_state()
        for i, run in enumerate(runs):
            stream = self._streams[run]
            torch.set_rng_state(stream.generator.get_state())
            prepared.append(self.task.prepare(inputs[i], True))
            for name, mask in masks.items():
                keep = 1.0 - self.model.dropouts[name]
                mask[i].bernoulli_(keep).div_(keep)
            stream.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(outside)
        return torch.stack(prepared), targets, {name: mask.to(self.device) for name, mask in masks.items()}
