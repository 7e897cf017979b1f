"""A scheduler in the ``Trainer`` of transformers, see ``docs/integrations.md``."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import SequentialLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gns.errors import InvalidSettingError, require_count
from gns.scheduler import advice
from gns.scheduler.scheduler import GNSScheduler
from gns.scheduler.trackers import figures


class GNSTrainer(Trainer):
    """A ``Trainer`` that tells its scheduler the loss it trains on, and trackers what the scheduler decided.

    It takes what a ``Trainer`` takes. The scheduler is that of ``optimizers=(optimizer, scheduler)``. Another kind of
    trainer is made one by inheritance: ``class MyTrainer(GNSTrainer, Seq2SeqTrainer): pass``.

    A plain ``Trainer`` with :class:`GNSCallback` does as well where the model itself computes the loss and returns it.

    :raises InvalidSettingError: from ``train``, see :class:`GNSCallback`, which it brings along
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pop_callback(GNSCallback)
        self.add_callback(GNSCallback)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on a part of a batch; what this returns for all parts of an update adds up to its loss."""
        loss = super().training_step(*args, **kwargs)
        scheduler, _ = _scheduler_in(self.lr_scheduler)
        scheduler.report_loss(loss, share=True)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the scheduler's figures with those of training: a callback's would come after the trackers'."""
        _add_figures(logs, self.lr_scheduler)
        super().log(logs, *args, **kwargs)


class GNSCallback(TrainerCallback):
    """Refuses to train on a budget that is not the ``Trainer``'s, and adds the scheduler's figures to its logs.

    The figures, ``gns/multiplier`` (of the last decision), ``gns/decisions`` and ``gns/rollbacks``, enter the log
    history and the callbacks that come after this one. A ``Trainer`` puts trackers (``report_to``) before all callbacks
    it is given: for the figures to reach them too, use :class:`GNSTrainer`.

    :raises InvalidSettingError: as training begins, where the learning rate is not a :class:`GNSScheduler`'s, perhaps
        after a warm-up in a ``SequentialLR``; where its budget is another number of updates than the ``Trainer`` makes;
        where it does not stand where the run begins; or under ``DataParallel``
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check what would otherwise go wrong without a sign."""
        schedule: Any = kwargs["lr_scheduler"]
        scheduler, warm_up = _scheduler_in(schedule)
        if scheduler._run.end_known and scheduler.budget + warm_up != state.max_steps:
            after = f" after a warm-up of {warm_up}" if warm_up else ""
            raise InvalidSettingError(
                f"The scheduler was made for total_steps={scheduler.budget} updates{after}, and the Trainer makes "
                f"{state.max_steps}; expected total_steps={state.max_steps - warm_up}. "
                "gns.integrations.transformers.training_updates(args, len(train_dataset)) tells the Trainer's number "
                "before there is a Trainer; a run that is resumed keeps the number it was begun with."
            )
        done, begun = schedule.last_epoch, state.global_step
        left_out = math.inf if args.fp16 else scheduler.rollbacks  # updates that were begun, but not made
        loaded = scheduler.graph is not None  # by its first forward pass a run has one
        if not begun - left_out <= done <= begun or (begun and not loaded):
            raise InvalidSettingError(
                f"The scheduler has counted {done} updates, and the Trainer goes on after {begun}; expected as many. "
                "Make model, optimizer and scheduler anew for every run; resume from a checkpoint that holds the "
                "scheduler (save_only_model=False)."
            )
        if args.n_gpu > 1:
            raise InvalidSettingError(
                f"The Trainer copies the model to {args.n_gpu} GPUs in one process (DataParallel), where a scheduler "
                "sees neither layers nor losses. Start one process a GPU with torchrun or accelerate launch, or show "
                "this one a single GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        idle = {"warmup_steps": args.warmup_steps, "lr_scheduler_type": getattr(args.lr_scheduler_type, "value", "")}
        idle = {name: value for name, value in idle.items() if value not in (0, "", "linear")}
        if idle:
            scheduler._warn(advice.NO_EFFECT, given=", ".join(f"{name}={value!r}" for name, value in idle.items()))
        # With this setting a model divides by the items of all processes.
        scheduler.shared_by = args.world_size if args.average_tokens_across_devices else 1

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget losses of an update that float16 left out: the ``Trainer`` does not step its scheduler then."""
        _scheduler_in(kwargs["lr_scheduler"])[0].forget_losses()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say of a run that ended before its budget was spent which number to give."""
        _scheduler_in(kwargs["lr_scheduler"])[0]._progress.tell_if_unfinished()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the figures to the logs of training."""
        for logs in (kwargs["logs"], state.log_history[-1]):
            _add_figures(logs, kwargs["lr_scheduler"])


def training_updates(args: TrainingArguments, examples: int | None, processes: int | None = None) -> int:
    """Return the number of updates a ``Trainer`` will make: ``total_steps`` of its scheduler.

    :param args: the ``Trainer``'s
    :param examples: length of its training data; None, of data without one, where ``max_steps`` is set
    :param processes: processes with batches of their own; None: all, as without tensor, context or sequence parallelism
    :raises InvalidSettingError: if a number is not a positive whole one, or the settings ask for no update
    """
    if args.max_steps > 0:
        return args.max_steps
    processes = args.world_size if processes is None else processes
    if examples is None:
        raise InvalidSettingError(
            "examples is None and max_steps is not set, so that the length of the run is not known; expected the "
            "length of the training data. For data without one (an IterableDataset) set TrainingArguments(max_steps=N)."
        )
    require_count("examples", examples)
    require_count("processes", processes)
    last = math.floor if args.dataloader_drop_last else math.ceil
    batches = last(examples / args.train_batch_size)
    loading: Any = args.accelerator_config
    if not loading.split_batches:
        batches = last(batches / processes)
    if batches < 1:
        raise InvalidSettingError(
            f"{examples} examples make no whole batch of {args.train_batch_size} for each of {processes} processes, "
            "and dataloader_drop_last leaves out the rest; expected one or more. Lower the batch size or set it False."
        )
    an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    updates = math.ceil(args.num_train_epochs * an_epoch) if args.max_steps < 0 else 0
    if updates < 1:
        raise InvalidSettingError(
            f"max_steps is {args.max_steps} and num_train_epochs {args.num_train_epochs}, which is no update at all; "
            "expected max_steps above 0, or -1 and epochs above 0."
        )
    return updates


def _scheduler_in(schedule: Any) -> tuple[GNSScheduler, int]:
    """Return a ``Trainer``'s scheduler, and the number of updates before its turn.

    :raises InvalidSettingError: if it is none of ours, nor a ``SequentialLR`` that ends in one
    """
    scheduler, warm_up = schedule, 0
    if isinstance(schedule, SequentialLR):
        scheduler, warm_up = schedule._schedulers[-1], schedule._milestones[-1]
    if not isinstance(scheduler, GNSScheduler):
        raise InvalidSettingError(
            f"The Trainer's scheduler is a {type(scheduler).__name__}; expected a GNSScheduler. Pass "
            "optimizers=(optimizer, GNSScheduler(optimizer, model, total_steps=...)), both of them."
        )
    return scheduler, warm_up


def _add_figures(logs: dict[str, float], schedule: Any) -> None:
    """Add a scheduler's figures to logs that have a learning rate; others are of an evaluation, or of the whole run."""
    if "learning_rate" not in logs:
        return
    scheduler, _ = _scheduler_in(schedule)
    logs.update({f"gns/{name}": value for name, value in figures(scheduler._run).items()})
