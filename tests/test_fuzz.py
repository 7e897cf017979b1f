"""Whatever is in a file or on a command line: a named error or a result that works, never anything else.

``GNS_FUZZ_EXAMPLES=10000`` makes a long run of it, with new examples each time.
"""

import copy
import hashlib
import json
import math
import os
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.results_cache import ResultsCache, _check
from agents.runtime.checkpoints import _START, MAGIC, CheckpointStore
from agents.runtime.command import plain
from agents.runtime.settings import build, check_choices, store_task_defaults
from agents.training.train import TrainConfig
from evaluate import _OUTSIDE_PROTOCOL
from gns import (
    DecisionConfig,
    GNSPolicy,
    GNSScheduler,
    NetworkConfig,
    Observation,
    PolicyConfig,
    PolicyFormatError,
)
from gns.errors import GNSError, StateError
from gns.features import DEFAULT_FEATURE
from gns.features.schemas import SCHEMAS
from gns.graph.layer_graph import LayerGraph
from gns.scheduler.history import DecisionRecord, RunHistory
from gns.tools.history_files import load_history
from gns.tools.inspect_history import inspect_history, print_history
from train_agent import _OUTSIDE_TRAINING

EXAMPLES = int(os.environ.get("GNS_FUZZ_EXAMPLES", "60"))
LONG = "GNS_FUZZ_EXAMPLES" in os.environ
CHECKS = list(HealthCheck)
OUTCOMES = Counter()  # of the test that runs; whatever is neither is a raw error, and fails it


@pytest.fixture(autouse=True)
def outcomes(request):
    OUTCOMES.clear()
    yield
    print(f"{request.node.name}: {dict(OUTCOMES)}")


def fuzz(share: float = 1.0):
    """Settings of a test that takes this share of the examples."""
    return settings(
        max_examples=max(1, round(EXAMPLES * share)),
        suppress_health_check=CHECKS,
        deadline=None,
        derandomize=not LONG,
        phases=[Phase.explicit, Phase.generate] if LONG else list(Phase),  # a long run finds, a short one shrinks
        database=None,
    )


# ---------------------------------------------------------------------- what is done to bytes and to JSON

PLACES = st.integers(0, 2**31)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
        st.tuples(st.just("set"), PLACES, st.integers(0, 255)),
        st.tuples(st.just("cut"), PLACES, st.integers(1, 64)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("copy"), PLACES, PLACES),
        st.tuples(st.just("end"), PLACES, st.none()),
    ),
    min_size=1,
    max_size=6,
)


def edited(content: bytes, edits: list[tuple]) -> bytes:
    data = bytearray(content)
    for kind, place, what in edits:
        place %= max(1, len(data))
        if kind == "flip" and data:
            data[place] ^= 1 << what
        elif kind == "set" and data:
            data[place] = what
        elif kind == "cut":
            del data[place : place + what]
        elif kind == "insert":
            data[place:place] = what
        elif kind == "copy":
            start = what % max(1, len(data))
            data[place:place] = data[start : start + 64]
        elif kind == "end":
            del data[place:]
    return bytes(data)


NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 10**9, 2**31, 2**60, 2**63, -(2**63), 10**400, 1e308, -1e308, 5e-324, 0.5]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(),
    st.floats(),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=20),
    st.sampled_from(
        ["GCNConv", "none", "rex", "gns-1", "gns-paper", "srls", "profile", "anchored", "__class__", "F64"]
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
JSON_EDITS = st.lists(
    st.tuples(st.sampled_from(["replace", "delete", "add", "rename"]), PLACES, VALUES, st.text(max_size=8)),
    min_size=1,
    max_size=3,
)


def spots(data, found=None) -> list[tuple]:
    """Every container with each of its keys or places."""
    found = [] if found is None else found
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        found.append((data, key))
        if isinstance(value, dict | list):
            spots(value, found)
    return found


def restructured(data, edits: list[tuple]):
    return edited_in_place(json.loads(json.dumps(data)), edits)


def edited_in_place(data, edits: list[tuple]):
    for kind, place, value, name in edits:
        there = spots(data)
        if not there:
            break
        container, key = there[place % len(there)]
        value = copy.deepcopy(value)  # later edits are made within it
        if kind == "replace":
            container[key] = value
        elif kind == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(value)
        elif kind == "add":
            container[name] = value
        else:
            container[name] = container.pop(key)
    return data


# ---------------------------------------------------------------------- policies


@pytest.fixture(scope="module")
def policy_files(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    GNSPolicy(PolicyConfig(network=NetworkConfig(hidden=4, head=4, type_embedding=2))).save_pretrained(folder)
    return folder, {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def load(files: tuple[Path, dict[str, bytes]], **changed: bytes) -> None:
    """Load a policy some of whose files are changed: it is refused by name, or it decides and can be saved."""
    folder, contents = files
    for name, content in contents.items():
        (folder / name).write_bytes(changed.get(name.partition(".")[0], content))
    try:
        policy = GNSPolicy.from_pretrained(folder)
    except PolicyFormatError as error:
        OUTCOMES["refused"] += 1
        assert len(str(error)) < 10_000
        return
    OUTCOMES["accepted"] += 1
    schema = SCHEMAS[policy.config.decision.features]
    seen = Observation(
        nodes=np.full((3, len(schema.node)), schema.bound, np.float32),
        node_types=np.array([0, 1, 2]),
        blocks=np.array([0, 0, 1]),
        edges=np.array([[0, 1], [1, 2]]),
        globals=np.full(len(schema.globals), -schema.bound, np.float32),
    )
    assert -1.0 <= policy.act(seen) <= 1.0
    decision = policy.config.decision
    for action in (-1.0, 1.0):
        assert np.isfinite(np.exp(decision.strength * action)) and np.isfinite(float(decision.base) ** action)
    json.dumps(policy.to_dict())


@fuzz()
@given(edits=EDITS)
def test_bytes_of_a_policys_config(policy_files, edits):
    load(policy_files, config=edited(policy_files[1]["config.json"], edits))


@fuzz()
@given(edits=JSON_EDITS)
def test_values_of_a_policys_config(policy_files, edits):
    data = restructured(json.loads(policy_files[1]["config.json"]), edits)
    load(policy_files, config=json.dumps(data).encode())


@fuzz()
@given(edits=EDITS)
def test_bytes_of_a_policys_weights(policy_files, edits):
    load(policy_files, model=edited(policy_files[1]["model.safetensors"], edits))


@fuzz()
@given(edits=JSON_EDITS, length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_values_of_the_header_of_a_policys_weights(policy_files, edits, length):
    content = policy_files[1]["model.safetensors"]
    own = struct.unpack("<Q", content[:8])[0]
    text = json.dumps(restructured(json.loads(content[8 : 8 + own]), edits)).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    load(policy_files, model=start + text + content[8 + own :])


# ---------------------------------------------------------------------- histories


@pytest.fixture(scope="module")
def history_file(tmp_path_factory) -> tuple[Path, bytes]:
    """A history of five decisions and a rollback, with features of three layers."""
    graph = LayerGraph(
        names=("a.linear", "a.norm", "b"),
        types=("linear", "norm", "other"),
        edges=np.array([[0, 1], [1, 2]]),
        parameters=(("weight", "bias"), ("weight",), ("weight",)),
        tensor_sizes=(12, 3, 3, 9),
        depths=np.array([0.0, 0.5, 1.0]),
    )
    decision = DecisionConfig(num_decisions=5)
    records = [
        DecisionRecord(5 * k, 0.1 / (k + 1), 0.5, 0.1 * k, {"loss": 0.5}, scale=1.0, loss=2.0 / (k + 1))
        for k in range(5)
    ]
    records.append(DecisionRecord(20, 0.01, 0.1, None, {"loss": 1.0}, rollback=True, finite=False, scale=0.1))
    width = len(SCHEMAS[decision.features].node)
    layers = {k: np.full((3, width), 0.1 * k, dtype=np.float32) for k in range(5)}
    history = RunHistory(25, decision, (0.1, 0.2), tuple(records), graph, layers)
    path = history.save(tmp_path_factory.mktemp("history") / "run.json")
    return path, path.read_bytes()


def read_history(path: Path, content: bytes) -> RunHistory | None:
    """Refuse a history by a named error, or return it with every figure that pictures need."""
    path.write_bytes(content)
    try:
        history = load_history(path)
    except StateError as error:
        OUTCOMES["refused"] += 1
        assert len(str(error)) < 2000
        return None
    OUTCOMES["accepted"] += 1
    updates, rates = history.rate_path()
    assert len(updates) == len(rates) <= 10_000 + 2 * len(history.records) and np.isfinite(rates).all()
    assert all(math.isfinite(loss) for *_, loss in history.losses())
    return history


@fuzz()
@given(edits=EDITS)
def test_bytes_of_a_history(history_file, edits):
    read_history(history_file[0], edited(history_file[1], edits))


@fuzz()
@given(edits=JSON_EDITS)
def test_values_of_a_history(history_file, edits):
    read_history(history_file[0], json.dumps(restructured(json.loads(history_file[1]), edits)).encode())


def test_a_feature_beyond_single_precision_is_refused_without_a_warning(history_file):
    plain = json.loads(history_file[1])
    plain["layers"][4][1][0][4] = -1e308
    assert read_history(history_file[0], json.dumps(plain).encode()) is None


DRAWN = [
    ("graph", "names", 0),
    ("graph", "depths", 1),
    ("graph", "tensor_sizes", 0),
    ("records", 2, "loss"),
    ("records", 2, "learning_rate"),
    ("records", 2, "scale"),
    ("layers", 4, 1, 0, 4),
    ("initial_lrs", 0),
    ("budget",),
]


@fuzz(0.02)
@given(place=st.sampled_from(DRAWN), value=st.one_of(NUMBERS, st.floats(0.0, 1.0), st.text(max_size=200)))
def test_pictures_of_a_history(history_file, place, value):
    path, content = history_file
    plain = json.loads(content)
    *way, last = place
    inner = plain
    for step in way:
        inner = inner[step]
    inner[last] = value
    if read_history(path, json.dumps(plain).encode()) is not None:
        print_history(inspect_history(str(path), None, DEFAULT_FEATURE, -1))


# ---------------------------------------------------------------------- states of schedulers

TENSORS = st.one_of(
    st.sampled_from([torch.zeros(0), torch.ones(5), torch.full((5,), float("nan")), torch.tensor(1e30)]),
    st.sampled_from([torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2), torch.zeros(6), torch.tensor(True)]),
)
STATE_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "replace", "delete", "add", "rename"]),
        PLACES,
        st.one_of(VALUES, TENSORS),
        st.one_of(st.text(max_size=8), st.sampled_from(["optimizer", "_run", "update", "scale", "graph"])),
    ),
    min_size=1,
    max_size=3,
)


def trained_a_little(scheduler, updates: int) -> None:
    model, optimizer = scheduler.model, scheduler.optimizer
    for _ in range(updates):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)


def new_scheduler() -> GNSScheduler:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    groups = [{"params": [*layer.parameters()], "lr": rate} for layer, rate in ((model[0], 0.01), (model[2], 0.1))]
    return GNSScheduler(torch.optim.SGD(groups, momentum=0.9), model, 25, policy=_SMALL_POLICY, record_layers=True)


torch.manual_seed(0)
_SMALL_POLICY = GNSPolicy(
    PolicyConfig(NetworkConfig(hidden=4, head=4, type_embedding=2), DecisionConfig(num_decisions=5))
)


@pytest.fixture(scope="module")
def scheduler_states():
    scheduler, states = new_scheduler(), []
    for updates in (0, 7, 18):
        trained_a_little(scheduler, updates)
        states.append(copy.deepcopy(scheduler.state_dict()))
    return states


@fuzz()
@given(place=PLACES, edits=STATE_EDITS)
def test_values_of_a_schedulers_state(scheduler_states, place, edits):
    state = edited_in_place(copy.deepcopy(scheduler_states[place % len(scheduler_states)]), edits)
    scheduler = new_scheduler()
    try:
        scheduler.load_state_dict(state)
    except GNSError as error:
        OUTCOMES["refused"] += 1
        assert len(str(error)) < 2000
        assert scheduler.last_epoch == 0 and scheduler.graph is None and not scheduler.history
        return
    OUTCOMES["accepted"] += 1
    trained_a_little(scheduler, 6)
    rates = [float(rate) for rate in scheduler.get_last_lr()]
    assert all(math.isfinite(rate) and rate > 0.0 for rate in rates)
    json.dumps(scheduler.run_history().losses())


# ---------------------------------------------------------------------- results and checkpoints


ROW = {"controller": "a", "test_loss": 0.25, "test_metric": float("inf"), "path": [(0.0, 0.1), (0.5, 0.2)]}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("cache") / "cache.jsonl"
    cache = ResultsCache(path)
    for key in ("first", "second", "third"):
        cache.put(key, ROW)
    return path, path.read_bytes()


@fuzz()
@given(edits=EDITS)
def test_bytes_of_kept_results(results, edits):
    path, content = results
    path.write_bytes(edited(content, edits))
    cache = ResultsCache(path)
    OUTCOMES.update(accepted=len(cache), refused=3 - len(cache))  # of three results
    assert len(cache) <= 3 and all(cache.get(key) in (None, ROW) for key in ("first", "second", "third"))
    cache.put("fourth", ROW)
    assert ResultsCache(path).get("fourth") == ROW


@fuzz()
@given(edits=JSON_EDITS, key=VALUES, seal=st.booleans())
def test_values_of_kept_results(results, edits, key, seal):
    path, _ = results
    row = restructured(ROW, edits)
    entry = {"key": key, "check": _check(key, row) if seal else key, "row": row}
    path.write_text(f"{json.dumps(entry)}\n{json.dumps(restructured(entry, edits))}\n")
    cache = ResultsCache(path)
    OUTCOMES["accepted" if len(cache) else "refused"] += 1
    cache.put("good", ROW)
    assert ResultsCache(path).get("good") == ROW


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[CheckpointStore, Path, bytes]:
    store = CheckpointStore(tmp_path_factory.mktemp("checkpoints"))
    state = {"step": 3, "rng": (1, 2**100, None), "nested": [{"weights": torch.arange(6.0).reshape(2, 3)}, "text", 0.5]}
    path = store.save(state, 3, "mine")
    return store, path, path.read_bytes()


@fuzz()
@given(edits=EDITS)
def test_bytes_of_a_checkpoint(checkpoint, edits):
    store, path, content = checkpoint
    damaged = edited(content, edits)
    path.write_bytes(damaged)
    found = store.newest("mine")
    OUTCOMES["refused" if found is None else "accepted"] += 1
    assert (found is None) == (damaged != content)


@fuzz()
@given(edits=EDITS)
def test_bytes_of_a_checkpoint_whose_seal_is_made_anew(checkpoint, edits):
    store, path, content = checkpoint
    body = edited(content[_START:], edits)
    path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    try:
        found = store.newest("mine")
    except GNSError:
        found = None
    OUTCOMES["refused" if found is None else "accepted"] += 1
    assert found is None or isinstance(found[0], dict)


# ---------------------------------------------------------------------- command lines

NAMES = """
task env agent controller tracker name seed episodes workers data_root baseline baseline.rates grids grids.adam seeds
device policy budgets task.digits_mlp.budget task.digits_mlp.model env.decision.base env.budgets agent.network.hidden
hydra hydra.run.dir hydra.callbacks.x._target_ hydra.searchpath hydra.job_logging.root hydra/launcher _target_
task._target_ controller.rex.settings controller.rex.settings._target_ initial_rates
"""
VALUES_GIVEN = r"""
digits_mlp mnist1d_mlp rex policy gns default none null true 1 -1 1e-3 1e999 nan inf 0x10 '' ../x /etc/passwd [] {}
[digits_mlp,mnist1d_mlp] {lowest:1e-4,count:3} {_target_:fuzz_sentinel.touch} [[[1]]] {a:{b:{_target_:x}}} ${name}
${oc.env:HOME} ${oc.env:NOT_SET} ${oc.create:[1]} ${oc.create:{_target_:fuzz_sentinel.touch}} ${name ${missing.key}
${seed}${seed} ${task} pkg://fuzz_sentinel file:///tmp 1,2 choice(1,2) range(1,3) glob(*) int(x) 'quoted' "_target_"
${oc.decode:${name}} ${seed:x} \{ a=b
"""
WORDS = st.one_of(
    st.sampled_from(VALUES_GIVEN.split()),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
    st.text(alphabet="[]{},:'\"$()\\=.@~+ a1_", max_size=16),
)
OVERRIDES = st.one_of(
    st.builds(
        "{}{}{}={}".format,
        st.sampled_from(["", "", "", "+", "++", "~"]),
        st.sampled_from(NAMES.split()),
        st.sampled_from(["", "", "", "", "@x", "@hydra.callbacks.x", "@_global_", ".more"]),
        WORDS,
    ),
    st.text(max_size=20),
    st.sampled_from(
        ["--config-dir=/tmp", "-cp=/tmp", "--experimental-rerun=x", "--config-n", "[" * 2000, "a=" + "[" * 2000]
    ),
)


@pytest.fixture(scope="module")
def hydra_here():
    from hydra import initialize_config_dir

    store_task_defaults()
    root = Path(__file__).resolve().parent.parent
    with initialize_config_dir(str(root / "configs"), version_base=None):
        yield
    GlobalHydra.instance().clear()


@fuzz(0.5)
@given(root=st.sampled_from(["train_agent", "evaluate"]), overrides=st.lists(OVERRIDES, min_size=1, max_size=3))
def test_overrides_on_the_command_line(hydra_here, root, overrides):
    from hydra import compose

    try:
        check_choices(overrides)
        config = compose(root, overrides=overrides)
        outside = _OUTSIDE_TRAINING if root == "train_agent" else _OUTSIDE_PROTOCOL
        content = {key: value for key, value in plain(config).items() if key not in outside}
        build(TrainConfig if root == "train_agent" else EvaluationConfig, content)
        OUTCOMES["accepted"] += 1
    except (GNSError, HydraException, OmegaConfBaseException) as error:
        OUTCOMES["refused"] += 1
        assert str(error)
    assert not any(name.startswith("fuzz_sentinel") for name in sys.modules)
