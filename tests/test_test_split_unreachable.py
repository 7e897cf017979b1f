"""No environment can learn from, choose on, or even reach an example of a test split."""

import ast
import gc
import types
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance import conformance_task

import envs
import gns
from envs import EnvConfig, LearningRateEnv, PadGraph, known_tasks
from envs.tasks import Split, base
from envs.tasks.report import load_test_split
from gns import DecisionConfig

every_task = pytest.mark.parametrize("name", known_tasks())
CONFIG = EnvConfig(budgets=(20, 30), decision=DecisionConfig(num_decisions=5), reward_probability=0.5)
_MOST_OBJECTS = 500_000
_WINDOWS_AT_A_TIME = 2**14  # which stay in the processor's cache


@lru_cache
def held_out(name: str) -> Split:
    return load_test_split(conformance_task(name))


def play(env: LearningRateEnv, seed: int) -> dict:
    """Play one episode with random actions."""
    env.reset(seed=seed)
    actions, terminated, info = np.random.default_rng(seed), False, {}
    while not terminated:
        _, _, terminated, _, info = env.step(actions.uniform(-1, 1, 1).astype(np.float32))
    return info


def refuse(**settings: object) -> Split:
    raise AssertionError("A test split was asked for.")


@pytest.fixture
def no_test_splits(monkeypatch):
    for name in known_tasks():
        monkeypatch.setitem(base._TEST_SPLITS, name, refuse)


@every_task
def test_an_episode_asks_for_no_test_split(name, no_test_splits):
    with pytest.raises(AssertionError, match="asked for"):
        load_test_split(name)
    env = LearningRateEnv([conformance_task(name)], CONFIG)
    PadGraph(env)
    assert "reward_loss" in play(env, seed=1)


# ---------------------------------------------------------------------- what can be reached from an environment


def reachable(root: object) -> list[object]:
    """Everything that can be reached from an object without going through a module, a type or a function's globals."""
    found, stack, seen = [], [root], set()
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, types.ModuleType | type | types.CodeType | str | bytes):
            continue
        seen.add(id(thing))
        found.append(thing)  # also keeps it alive, so that no id is used twice
        assert len(found) < _MOST_OBJECTS, "The walk left the environment."
        if isinstance(thing, types.FunctionType):
            stack += [cell.cell_contents for cell in thing.__closure__ or ()]
            stack += [thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
        elif isinstance(thing, torch.Tensor):
            stack += [*gc.get_referents(thing), thing.grad if thing.is_leaf else None]
        elif isinstance(thing, np.ndarray):
            stack += [*gc.get_referents(thing), thing.base]
        else:
            stack += gc.get_referents(thing)
    return found


def numbers(thing: object) -> np.ndarray | None:
    """All numbers that a tensor or array holds on to, those a view leaves out among them, as float32."""
    if isinstance(thing, torch.Tensor):
        whole = torch.empty(0, dtype=thing.dtype).set_(thing.detach().untyped_storage())
        return whole.float().numpy()
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "fiu":
        return np.ascontiguousarray(thing, dtype=np.float32).ravel()
    return None


def fingerprints(flat: np.ndarray, width: int) -> np.ndarray:
    """A hash of every window of ``width`` numbers, wherever it starts: of 64 numbers of it where it is wider."""
    if len(flat) < width:
        return np.empty(0, dtype=np.uint64)
    rng = np.random.default_rng(0)
    places = rng.permutation(width)[:64]
    weights = rng.integers(1, 2**63, len(places), dtype=np.uint64)
    bits = np.ascontiguousarray(flat, dtype=np.float32).view(np.uint32).astype(np.uint64)
    count = len(flat) - width + 1
    total = np.zeros(count, dtype=np.uint64)
    for start in range(0, count, _WINDOWS_AT_A_TIME):
        part = total[start : start + _WINDOWS_AT_A_TIME]
        for k, weight in zip(places, weights, strict=True):
            part += weight * bits[start + k : start + k + len(part)]  # modulo 2^64
    return total


def all_fingerprints(things: list[object], like: Split) -> np.ndarray:
    """Sorted hashes of every window as wide as an example of a split, of every tensor and array among ``things``.

    Tensors of over a million numbers are read only where they are of the split's kind: weights are not images.
    """
    prints, seen = [np.empty(0, dtype=np.uint64)], set()
    for thing in things:
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage().data_ptr(), thing.dtype
            if storage in seen:
                continue
            seen.add(storage)
        flat = numbers(thing)
        if flat is None or (len(flat) > 10**6 and getattr(thing, "dtype", None) != like.inputs.dtype):
            continue
        prints.append(fingerprints(flat, like.inputs[0].numel()))
    return np.sort(np.concatenate(prints))


def examples_found(prints: np.ndarray, split: Split) -> int:
    """Number of examples of a split whose hash is among sorted ones."""
    width = split.inputs[0].numel()
    wanted = fingerprints(split.inputs.numpy().ravel(), width)[::width]
    places = np.searchsorted(prints, wanted).clip(max=len(prints) - 1)
    return int((prints[places] == wanted).sum())


@every_task
def test_no_test_example_can_be_reached_from_an_environment(name):
    env = LearningRateEnv([conformance_task(name)], CONFIG)
    play(env, seed=2)
    env.reset(seed=3)
    things = reachable(PadGraph(env))
    data = conformance_task(name).training_data()
    prints = all_fingerprints(things, data.train)
    assert examples_found(prints, data.train) == len(data.train)  # the walk does see what is there
    assert examples_found(prints, data.reward) == len(data.reward)
    assert examples_found(prints, held_out(name)) == 0
    assert not [thing for thing in things if any(thing is load for load in base._TEST_SPLITS.values())]


@pytest.mark.parametrize(
    "hide",
    [
        lambda split: split,
        lambda split: {"deep": [(split.inputs,)]},
        lambda split: lambda: split.inputs,
        lambda split: lru_cache(lambda s=split: s),
        lambda split: split.inputs[3:4].numpy(),
        lambda split: split.inputs.numpy()[:5][:, :, :1],
        lambda split: torch.cat([torch.zeros(3), split.inputs[0].flatten()])[1:2],
        lambda split: split.inputs[7].numpy().astype(np.float64),
    ],
    ids=["split", "nested", "closure", "default", "array", "view", "offset", "double"],
)
def test_the_walk_finds_what_is_hidden(hide):
    env = LearningRateEnv(["digits_mlp"], CONFIG)
    env.hidden = hide(held_out("digits_mlp"))
    test = held_out("digits_mlp")
    assert examples_found(all_fingerprints(reachable(env), test), test) >= 1


# ---------------------------------------------------------------------- what the model is shown


def content(example: torch.Tensor) -> bytes:
    """What an example holds, padding of text left out."""
    is_text = example.dtype == torch.int32
    return (example[:, example[1] >= 0] if is_text else example).numpy().tobytes()


@every_task
def test_the_model_is_shown_the_training_and_the_reward_split_only(name):
    task, shown = conformance_task(name), {True: set(), False: set()}

    def prepare(inputs, training):  # the one way from a split to a model
        shown[training].update(content(example) for example in inputs)
        prepared = task.prepare(inputs, training)
        given.append(prepared)
        return prepared

    def build_model(**settings):
        model = task.build_model(**settings)
        model.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
        return model

    given, taken = [], []
    env = LearningRateEnv([replace(task, build_model=build_model, prepare=prepare)], CONFIG)
    env.graph_limits()
    play(env, seed=4)
    assert len(given) == len(taken) and all(a is b for a, b in zip(given, taken, strict=True))
    data = task.training_data()
    train, reward, test = (
        {content(example) for example in split.inputs} for split in (data.train, data.reward, held_out(name))
    )
    assert len(shown[True]) > task.batch_size and shown[True] <= train
    assert shown[False] == reward
    assert not (shown[True] | shown[False]) & test


# ---------------------------------------------------------------------- who may name the test splits


def sources() -> list[Path]:
    return [path for package in (envs, gns) for path in Path(package.__file__).parent.rglob("*.py")]


def names_in(path: Path) -> set[str]:
    """Dotted parts of every import, and every name, of a source file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names


def test_only_the_report_module_hands_out_test_splits():
    places = {path.name for path in sources() if {"_TEST_SPLITS", "envs.tasks.base._TEST_SPLITS"} & names_in(path)}
    assert places == {"base.py", "report.py"}
    importers = {path for path in sources() if any(n.startswith("envs.tasks.report") for n in names_in(path))}
    assert not importers
