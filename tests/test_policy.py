"""A policy as files: what is saved comes back to the bit, and nothing damaged or hostile gets in."""

import json
import pickle
import struct
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gns import DecisionConfig, GNSPolicy, NetworkConfig, Observation, PolicyConfig, PolicyFormatError
from gns.features.schemas import SCHEMAS
from gns.policy.artefact import FORMAT_VERSION

SMALL = {"hidden": 8, "head": 8, "type_embedding": 4}
CONFIGS = {
    "default": PolicyConfig(),
    "small": PolicyConfig(network=NetworkConfig(**SMALL), training={"tasks": ["digits_mlp"], "steps": 1000}),
    "hierarchical": PolicyConfig(network=NetworkConfig(**SMALL, hierarchical=True, convolution="SAGEConv")),
    "costs of members": PolicyConfig(network=NetworkConfig(**SMALL, levels=9, members=3)),
    "recursive": PolicyConfig(
        network=NetworkConfig(**SMALL, dropout=0.5, action_scale=0.5),
        decision=DecisionConfig(mode="recursive", base=2.0, min_lr=1e-7, max_lr=3.0, decision_interval=10),
    ),
    "paper": PolicyConfig(
        network=NetworkConfig(**SMALL, features="gns-paper"),
        decision=DecisionConfig(mode="gns-paper", features="gns-paper", num_decisions=33),
    ),
    "srls": PolicyConfig(
        network=NetworkConfig(hidden=32, head=32, features="srls", convolution="none"),
        decision=DecisionConfig(mode="recursive", features="srls", decision_interval=10),
    ),
}


def make(config: PolicyConfig = CONFIGS["small"]) -> GNSPolicy:
    torch.manual_seed(0)
    policy = GNSPolicy(config)
    with torch.no_grad():
        for network in policy.network.members or [policy.network]:
            network.actor[2].weight.mul_(100.0)  # actions of order 1
    return policy


def observations(config: PolicyConfig, count: int = 5) -> list[Observation]:
    schema, rng = SCHEMAS[config.decision.features], np.random.default_rng(0)
    return [
        Observation(
            nodes=rng.normal(size=(layers, len(schema.node))).astype(np.float32),
            node_types=rng.integers(7, size=layers),
            blocks=np.arange(layers) // 2,
            edges=np.stack([np.arange(layers - 1), np.arange(1, layers)]),
            globals=rng.normal(size=len(schema.globals)).astype(np.float32),
        )
        for layers in range(1, count + 1)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def edit_config(folder: Path, change) -> None:
    """Apply a function to the parsed config."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(folder: Path | str) -> str:
    """The message with which a folder is refused."""
    with pytest.raises(PolicyFormatError) as caught:
        GNSPolicy.from_pretrained(folder)
    return str(caught.value)


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_policy_is_the_saved_one(name, tmp_path):
    policy = make(CONFIGS[name])
    policy.save_pretrained(tmp_path)
    loaded = GNSPolicy.from_pretrained(tmp_path)
    assert loaded.config == policy.config
    assert not loaded.training
    seen = observations(policy.config)
    actions = [policy.act(one) for one in seen]
    assert [loaded.act(one) for one in seen] == actions
    assert len(set(actions)) > 1 and all(-1.0 <= action <= 1.0 for action in actions)
    for key, value in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_a_policy_may_be_saved_loaded_and_saved_again(folder, tmp_path):
    GNSPolicy.from_pretrained(str(folder)).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    cards = [(path / "README.md").read_text().splitlines() for path in (folder, tmp_path / "again")]
    assert sorted(cards[0]) == sorted(cards[1])


def test_a_policy_is_three_files_and_no_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert set(load_file(folder / "model.safetensors")) == set(make().state_dict())


def test_the_config_is_json_anyone_can_read(folder):
    data = json.loads((folder / "config.json").read_text())
    assert data == make().to_dict()
    assert data["format_version"] == FORMAT_VERSION
    assert data["decision"]["mode"] == "profile" and data["decision"]["features"] == "gns-1"
    assert (data["decision"]["min_lr"], data["decision"]["max_lr"]) == (1e-8, 10.0)
    assert data["feature_names"] == {"node": list(SCHEMAS["gns-1"].node), "global": list(SCHEMAS["gns-1"].globals)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_card_has_the_settings(name, tmp_path):
    policy = make(CONFIGS[name])
    policy.save_pretrained(tmp_path)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.to_dict()["library_name"] == "gns-scheduler"
    decision, parameters = policy.config.decision, sum(p.numel() for p in policy.parameters())
    expected = [
        f"{parameters:,} parameters",
        f"`{decision.mode}`",
        f"[{decision.min_lr:g}, {decision.max_lr:g}]",
        f"`{decision.features}`",
        f"format version {FORMAT_VERSION}",
        "GNSPolicy.from_pretrained",
        *(f"| {key} | {value} |" for key, value in policy.config.training.items()),
    ]
    assert [text for text in expected if text not in card.text] == []


def test_a_config_whose_parts_read_other_features_is_refused():
    with pytest.raises(PolicyFormatError, match="network reads features 'gns-1' but decisions give 'gns-paper'"):
        PolicyConfig(decision=DecisionConfig(features="gns-paper"))


# ---------------------------------------------------------------------- files that are missing or damaged


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    message = refused(folder)
    assert f"{folder} has no {name}" in message and "save_pretrained" in message


def test_the_model_card_is_not_needed(folder):
    (folder / "README.md").unlink()
    GNSPolicy.from_pretrained(folder)


def test_an_empty_folder_is_refused(tmp_path):
    assert "has no config.json" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.5, 0.9, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    message = refused(folder)
    assert str(path) in message and "undamaged safetensors file" in message


def test_trailing_bytes_are_refused(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "undamaged safetensors file" in refused(folder)


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**31, 10**6])
def test_a_header_that_claims_to_be_huge_is_refused(folder, length):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    assert "undamaged safetensors file" in refused(folder)


def test_a_tensor_that_claims_to_be_huge_is_refused(folder):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "undamaged safetensors file" in refused(folder)


@pytest.mark.parametrize("seed", range(3))
def test_garbage_is_refused(folder, seed):
    (folder / "model.safetensors").write_bytes(np.random.default_rng(seed).bytes(5000))
    assert "undamaged safetensors file" in refused(folder)


def test_a_file_too_large_is_refused_unread(folder):
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(2**40)  # a hole: takes no room
    assert "1,099,511,627,776 bytes; expected at most" in refused(folder)


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pickle_is_not_run(folder, tmp_path, name, protocol):
    trace = tmp_path / "was here"
    content = pickle.dumps(Touch(trace), protocol=protocol)
    pickle.loads(content)
    assert trace.exists()  # it does harm where it is run
    trace.unlink()
    (folder / name).write_bytes(content)
    refused(folder)
    assert not trace.exists()


def test_a_checkpoint_of_torch_is_not_run(folder, tmp_path):
    trace = tmp_path / "was here"
    torch.save({"weights": Touch(trace)}, folder / "model.safetensors")
    refused(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Touch(trace)}, folder / "pytorch_model.bin")
    assert "pickled checkpoints are not read" in refused(folder)
    assert not trace.exists()


# ---------------------------------------------------------------------- weights of another policy


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    make(PolicyConfig(network=NetworkConfig(**{**SMALL, "hidden": 16}))).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    message = refused(folder)
    assert "no weights for this policy" in message and "size mismatch" in message


@pytest.mark.parametrize("change", ["missing", "another"])
def test_weights_of_other_names_are_refused(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["network.actor.0.weight"]
    else:
        weights["network.extra"] = torch.zeros(1)
    save_file(weights, path)
    message = refused(folder)
    assert ("network.actor.0.weight" if change == "missing" else "network.extra") in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["network.critic.0.bias"][3] = value
    save_file(weights, path)
    message = refused(folder)
    assert "not finite" in message and "network.critic.0.bias" in message


# ---------------------------------------------------------------------- configs


@pytest.mark.parametrize("content", ["", "{", "not JSON", '{"format_version": 1,}', "\x00\x01", "[" * 100_000])
def test_invalid_json_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    message = refused(folder)
    assert "config.json is not valid JSON" in message


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x80")
    assert "config.json is not valid JSON" in refused(folder)


@pytest.mark.parametrize("content", ["[]", '[{"format_version": 1}]', "1", '"text"', "null", "{}", '{"a": 1}'])
def test_json_that_is_no_policy_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    assert "no GNS policy: expected a JSON object with a format_version" in refused(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, [1]])
def test_another_format_version_is_refused(folder, version):
    edit_config(folder, lambda data: data.update(format_version=version))
    message = refused(folder)
    assert f"format version {version!r}; this gns reads {FORMAT_VERSION}" in message
    assert "Use the version of gns that wrote it" in message


@pytest.mark.parametrize("part", ["node", "global"])
@pytest.mark.parametrize("change", [lambda names: names[:-1], lambda names: names[::-1], lambda names: [*names, "new"]])
def test_other_features_are_refused(folder, part, change):
    edit_config(folder, lambda data: data["feature_names"].update({part: change(data["feature_names"][part])}))
    message = refused(folder)
    assert "trained on other features than schema 'gns-1' has here" in message
    assert "Use the version of gns that trained it" in message


@pytest.mark.parametrize("part", [None, "network", "decision"])
def test_unknown_keys_are_named(folder, part):
    edit_config(folder, lambda data: (data if part is None else data[part]).update(surprise=1))
    assert "surprise" in refused(folder)


@pytest.mark.parametrize("key", ["network", "decision"])
def test_missing_parts_are_named(folder, key):
    edit_config(folder, lambda data: data.pop(key))
    assert key in refused(folder)


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        ("decision", "mode", "magic", "action mode 'magic'"),
        ("decision", "mode", None, "mode"),
        ("decision", "mode", ["profile"], "mode"),
        ("decision", "profile", "zigzag", "profile 'zigzag'"),
        ("decision", "profile", ["rex"], "profile"),
        ("decision", "features", "gns-2", "gns-2"),
        ("decision", "features", {}, "features"),
        ("decision", "base", float("nan"), "base is nan"),
        ("decision", "max_lr", float("inf"), "max_lr is inf"),
        ("decision", "min_lr", "1e-8", "min_lr is '1e-8'"),
        ("decision", "num_decisions", 0, "num_decisions is 0"),
        ("decision", "num_decisions", 20.5, "num_decisions is 20.5"),
        ("decision", "decision_interval", -1, "decision_interval is -1"),
        ("network", "hidden", 2**40, "hidden is"),
        ("network", "hidden", "8", "hidden is '8'"),
        ("network", "hidden", None, "hidden is None"),
        ("network", "convolution", "Sequential", "'Sequential'"),
        ("network", "convolution", 3, "3"),
        ("network", "dropout", "0.1", "not valid"),
        ("network", "levels", 1, "levels is 1"),
        ("network", "levels", True, "levels is True"),
        ("network", "members", 0, "members is 0"),
        ("network", "members", 2.0, "members is 2.0"),
        ("network", "action_scale", 2.0, "action_scale is 2.0"),
        ("network", "hierarchical", "no", "hierarchical"),
        (None, "network", [], "not valid"),
        (None, "network", "small", "config.json"),
        (None, "decision", None, "not valid"),
        (None, "feature_names", ["node"], "other features"),
        (None, "training", [1, 2], "training"),
        (None, "training", "long", "training"),
    ],
)
def test_invalid_settings_are_named(folder, part, key, value, named):
    edit_config(folder, lambda data: (data if part is None else data[part]).update({key: value}))
    assert named in refused(folder)


# ---------------------------------------------------------------------- the Hub


def test_a_hub_id_out_of_reach_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PolicyFormatError) as caught:
        GNSPolicy.from_pretrained("nobody/no-such-policy", cache_dir=tmp_path)
    message = str(caught.value)
    assert "No policy at 'nobody/no-such-policy'" in message and "Check the path or the id, or the network" in message


@pytest.mark.parametrize("name", ["no/such/folder/here", "../policy", "a b", "x" * 300])
def test_what_is_neither_folder_nor_id_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert "Check the path" in refused(name)


def test_a_policy_in_the_cache_is_loaded_by_its_id(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--somebody--policy"
    make().save_pretrained(cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    loaded = GNSPolicy.from_pretrained("somebody/policy", cache_dir=tmp_path)
    assert loaded.config == make().config
    (cache / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    with pytest.raises(PolicyFormatError, match="somebody/policy"):
        GNSPolicy.from_pretrained("somebody/policy", cache_dir=tmp_path)
