"""What tasks are drawn: settings of a pool, and what its editions draw from."""

from __future__ import annotations

from dataclasses import dataclass

from envs.pool.models import FAMILIES
from envs.tasks.base import FROM_SCRATCH
from gns.errors import InvalidSettingError, UnknownNameError, require_count, require_positive

# The families that a source is fit for, and the most training examples taken of it.
SOURCES: dict[str, tuple[tuple[str, ...], int]] = {
    "digits": (("mlp", "cnn", "transformer", "recurrent", "bare"), 1078),
    "mnist1d": (("mlp", "cnn", "transformer", "bare"), 3000),
    "teacher": (("mlp", "bare"), 4000),
    "mixture": (("mlp", "bare"), 4000),
    "fashion_mnist": (("mlp", "cnn", "transformer"), 10_000),
    "sst2": (("mlp", "transformer"), 8000),
    "cola": (("mlp", "transformer"), 5000),
    # From edition 1 on, whole sources: no number of examples is drawn.
    "breast_cancer": (("mlp", "bare"), 427),
    "wine": (("mlp", "bare"), 134),
    "diabetes": (("mlp", "bare"), 332),
    "patterns": (("mlp", "cnn", "transformer", "recurrent", "bare"), 6000),
    "graphs": (("graph",), 6000),
    "characters": (("language", "recurrent"), 20_000),
    "words": (("bag", "transformer", "recurrent"), 8757),
}
EMBEDDED = ("digits", "mnist1d", "teacher", "mixture")  # need no data root
_NEWER = ("breast_cancer", "wine", "diabetes", "patterns", "graphs", "characters", "words")
# What each edition draws from; see :class:`PoolConfig`.
EDITIONS: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: (tuple(name for name in SOURCES if name not in _NEWER), ("mlp", "cnn", "transformer")),
    1: ((*EMBEDDED, *_NEWER), tuple(FAMILIES)),
}


@dataclass(frozen=True)
class PoolConfig:
    """What tasks are drawn. Each is a function of ``seed`` and its number: a larger pool begins with a smaller one.

    Sources, families and optimizers take turns; all else is drawn for each task by itself.

    :param size: number of tasks; 0: none
    :param edition: how they are drawn, so that what was drawn once can be drawn again: 0, many small and noisy tasks;
        1, what people train (:mod:`envs.pool.people`)
    :param seed: seed of all of them
    :param sources: names in :data:`SOURCES`
    :param families: names in :data:`envs.pool.models.FAMILIES`; one that stands here twice comes twice as often
    :param optimizers: names in :data:`envs.training_run.OPTIMIZERS`
    :param noisy: share of classification tasks with label noise, of 0 to 0.3
    :param rescaled: share of tasks whose inputs are multiplied by 0.1 to 10, and shifted
    :param mixed: share of fully connected networks whose inputs are permuted, rotated or projected
    :param scaled_loss: share of tasks whose loss is multiplied by 0.1 to 10
    :param clipped: share of tasks with gradients clipped to norm 1
    :param fine_tuning: share of tasks whose network is pretrained, but for its head
    :param batch_sizes: smallest and largest, drawn log-uniformly
    :param budgets: smallest and largest of all tasks' budgets in updates
    :param budget_spread: largest over smallest budget of one task
    :param passes: from edition 1 on: fewest and most passes over the data that the largest budget of a task makes
    :param operations: floating-point operations of an episode, at most: of its updates' products and convolutions
    :param reward_examples: examples of the reward split, at most
    """

    size: int = 64
    edition: int = 0
    seed: int = 0
    sources: tuple[str, ...] = EMBEDDED
    families: tuple[str, ...] = ("mlp", "cnn", "transformer")
    optimizers: tuple[str, ...] = ("adam", "adamw", "sgdm", "sgd")
    noisy: float = 0.3
    rescaled: float = 0.3
    mixed: float = 0.4
    scaled_loss: float = 0.15
    clipped: float = 0.15
    fine_tuning: float = 0.25
    batch_sizes: tuple[int, int] = (8, 256)
    budgets: tuple[int, int] = (20, 2000)
    budget_spread: float = 4.0
    passes: tuple[float, float] = (1.0, 30.0)
    operations: float = 1e10
    reward_examples: int = 400

    def __post_init__(self) -> None:
        if self.size < 0:
            raise InvalidSettingError(f"pool.size is {self.size}; expected 0 or more.")
        if self.edition not in EDITIONS:
            raise InvalidSettingError(f"pool.edition is {self.edition}; expected one of {tuple(EDITIONS)}.")
        sources, families = EDITIONS[self.edition]
        for what, names, known in (
            ("sources", self.sources, sources),
            ("families", self.families, families),
            ("optimizers", self.optimizers, FROM_SCRATCH),
        ):
            if not names:
                raise InvalidSettingError(f"pool.{what} is empty; expected some of {', '.join(known)}.")
            for name in names:
                if name not in known:
                    raise UnknownNameError(f"name in pool.{what}", name, known)
        for share in ("noisy", "rescaled", "mixed", "scaled_loss", "clipped", "fine_tuning"):
            if not 0.0 <= getattr(self, share) <= 1.0:
                raise InvalidSettingError(f"pool.{share} is {getattr(self, share)}; expected a share in [0, 1].")
        for name, (low, high) in (("batch_sizes", self.batch_sizes), ("budgets", self.budgets)):
            require_count(f"the smallest of pool.{name}", low)
            if not low <= high:
                raise InvalidSettingError(f"pool.{name} is {(low, high)}; expected (smallest, largest).")
        if not 0.0 < self.passes[0] <= self.passes[1]:
            raise InvalidSettingError(f"pool.passes is {self.passes}; expected (fewest, most), above 0.")
        require_count("pool.reward_examples", self.reward_examples)
        require_positive("pool.operations", self.operations)
        if not self.budget_spread >= 1.0:
            raise InvalidSettingError(f"pool.budget_spread is {self.budget_spread}; expected 1 or more.")
        if not self.kinds:
            raise InvalidSettingError(
                f"No source in pool.sources = {self.sources} is fit for a family in pool.families = {self.families}; "
                f"expected one of {', '.join(f'{name}: {fit}' for name, (fit, _) in SOURCES.items())}."
            )

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Pairs of source and family, as often as the family is named."""
        return [
            (source, family)
            for source in self.sources
            for family in SOURCES[source][0]
            for _ in range(self.families.count(family))
        ]
