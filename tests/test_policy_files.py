"""Hostile policy files: refused by name, before anything large is allocated, and nothing in them is run."""

import json
import os
import struct
import tracemalloc
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from gns import GNSPolicy, NetworkConfig, PolicyConfig, PolicyFormatError
from gns.policy.files import MAX_CONFIG_BYTES, MAX_DEPTH, parse_json
from gns.scheduler.policy_source import frozen_policy
from gns.tools.inspect_policy import inspect_policy

MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    small = NetworkConfig(hidden=8, head=8, type_embedding=4)
    GNSPolicy(PolicyConfig(network=small)).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that operations return, those on the meta device left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        out = function(*arguments, **(settings or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.bytes += tensor.nbytes
        return out


def refused(folder: Path, most: int = 4 * MIB) -> str:
    """The message with which a folder is refused, which takes no more than ``most`` bytes."""
    GNSPolicy(PolicyConfig(network=NetworkConfig(hidden=2, head=2)))  # what is imported late is no part of it
    tracemalloc.start()
    try:
        with Allocations() as allocations, pytest.raises(PolicyFormatError) as caught:
            GNSPolicy.from_pretrained(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert allocations.bytes < MIB
    assert peak < most
    assert len(str(caught.value)) < 5000
    return str(caught.value)


def edit_config(folder: Path, change) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def edit_header(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**32, 300])
def test_a_header_of_a_length_that_is_not_there_is_refused_at_once(folder, length):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    assert f"its header claims {length:,} bytes" in refused(folder)


def test_a_header_larger_than_any_policy_has_is_not_parsed(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2 * MIB) + b"[" * (2 * MIB))
    assert "its header claims" in refused(folder)


def test_the_largest_network_is_not_built_for_weights_of_a_small_one(folder):
    edit_config(folder, lambda data: data["network"].update(hidden=4096, head=4096, type_embedding=4096))
    assert "size mismatch" in refused(folder)


@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62], [8, -8], [True, 8], [8.0, 8], "8", None, [[8]], [8] * 1000])
def test_a_tensor_of_a_shape_that_is_not_the_networks_is_refused(folder, shape):
    edit_header(folder, lambda header: header["network.actor.0.weight"].update(shape=shape))
    assert "network.actor.0.weight" in refused(folder)


@pytest.mark.parametrize("kind", ["I64", "U8", "F8_E4M3", "C64", "f32", None, 3, ["F32"]])
def test_weights_of_another_kind_of_number_are_refused(folder, kind):
    edit_header(folder, lambda header: header["network.actor.0.weight"].update(dtype=kind))
    assert "network.actor.0.weight holds" in refused(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(folder, kind):
    path = folder / "model.safetensors"
    save_file({name: value.to(kind) for name, value in load_file(path).items()}, path)
    for value in GNSPolicy.from_pretrained(folder).state_dict().values():
        assert value.dtype == torch.float32


@pytest.mark.parametrize("offsets", [[0, 4], [2**50, 2**50 + 256], [-256, 0], [256, 0], None, "0", [0.0, 256.0]])
def test_offsets_that_do_not_fit_are_refused(folder, offsets):
    edit_header(folder, lambda header: header["network.actor.0.weight"].update(data_offsets=offsets))
    assert "undamaged safetensors file" in refused(folder)


@pytest.mark.parametrize("header", [[], 1, "text", {}, {"__metadata__": {}}])
def test_a_header_that_names_no_tensors_is_refused(folder, header):
    edit_header(folder, lambda _: header)
    assert "undamaged safetensors file" in refused(folder)


def test_a_tensor_named_twice_is_refused(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = content[8 : 8 + length].rstrip()
    text = text[:-1] + b',"network.actor.0.weight":{"dtype":"F32","shape":[8,8],"data_offsets":[0,256]}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert "'network.actor.0.weight' comes twice" in refused(folder)


@pytest.mark.parametrize("value", [1e7, -1e30])
def test_weights_that_could_overflow_are_refused(folder, value):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["network.critic.0.bias"][3] = value
    save_file(weights, path)
    with pytest.raises(PolicyFormatError, match="beyond 1e"):
        GNSPolicy.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("network", "hidden", 10**9),
        ("network", "head", 10**4000),
        ("network", "layers", 10**9),
        ("network", "levels", 65),
        ("network", "members", 17),
        ("network", "type_embedding", -(10**9)),
        ("network", "dropout", float("nan")),
        ("network", "action_scale", 1e-400),
        ("network", "convolution", "x" * 10**5),
        ("decision", "base", 10**400),
        ("decision", "base", 1e308),
        ("decision", "strength", 1e5),
        ("decision", "max_lr", 10**30),
        ("decision", "num_decisions", 10**4000),
        ("decision", "decision_interval", 10**12),
        ("decision", "mode", ["x"] * 10**5),
        ("decision", "profile", "__class__"),
        (None, "format_version", True),
        (None, "format_version", 1.0),
        (None, "format_version", [1] * 10**5),
        (None, "feature_names", ["x"] * 10**5),
        (None, "training", ["x"] * 10**5),
        (None, "x" * 10**5, 1),
        ("network", "x" * 10**5, 1),
    ],
)
def test_settings_out_of_all_bounds_are_refused_in_few_words(folder, part, key, value):
    edit_config(folder, lambda data: (data if part is None else data[part]).update({key: value}))
    refused(folder, 64 * MIB)


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "-1e999"])
def test_numbers_that_no_type_holds_are_refused(folder, number):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"base": 10.0', f'"base": {number}'))
    refused(folder)


@pytest.mark.parametrize("key", ["network", "hidden", "format_version"])
def test_a_key_given_twice_is_refused(folder, key):
    text = (folder / "config.json").read_text()
    start = text.index(f'"{key}"')
    (folder / "config.json").write_text(f'{text[:start]}"{key}": 1, {text[start:]}')
    assert f"the key '{key}' comes twice" in refused(folder)


@pytest.mark.parametrize("key", ["training", "network", "feature_names", "format_version"])
@pytest.mark.parametrize("depth", [MAX_DEPTH, 500, 20_000])
def test_what_is_nested_too_deeply_is_refused(folder, key, depth):
    data = json.loads((folder / "config.json").read_text())
    data[key] = "HERE"
    text = json.dumps(data).replace('"HERE"', '{"a": ' * depth + "1" + "}" * depth)
    (folder / "config.json").write_text(text)
    assert "nested deeper" in refused(folder, 64 * MIB)


def test_depth_is_counted_to_the_level():
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="nested deeper"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_a_large_config_is_refused_unread(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**40)  # a hole: takes no room
    assert f"expected at most {MAX_CONFIG_BYTES:,}" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "loop", "dangling"])
def test_what_is_no_file_is_refused_and_never_waited_for(folder, name, what):
    (folder / name).unlink()
    if what == "folder":
        (folder / name).mkdir()
    elif what == "pipe":
        os.mkfifo(folder / name)
    else:
        target = {"device": "/dev/zero", "loop": name, "dangling": "nowhere"}[what]
        (folder / name).symlink_to(target)
    assert f"has no {name}" in refused(folder)


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    def fail(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gns.policy.files.os.open", fail)
    assert "config.json cannot be read" in refused(folder)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "no\0thing"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(PolicyFormatError):
        frozen_policy(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("target", ["/proc/self/mem", "../secret"])  # the former is regular, of size 0
def test_a_link_out_of_the_folder_is_refused_unread_by_loading_and_inspecting(folder, name, target):
    (folder / name).rename(folder.parent / "secret")
    (folder / name).symlink_to(target)
    assert f"{name} is a link out of its folder" in refused(folder)
    report, problem = inspect_policy(str(folder))
    assert "is a link out of its folder" in str(problem)
    assert [file["kind"] for file in report["files"] if file["name"] == name] == ["link"]


def test_links_within_the_folder_and_folders_behind_links_are_followed(folder, tmp_path):
    (folder / "config.json").rename(folder / "own.json")
    (folder / "config.json").symlink_to("own.json")
    (tmp_path / "best").symlink_to(folder)
    assert inspect_policy(str(tmp_path / "best"))[1] is None


def test_a_snapshot_in_the_cache_of_the_hubs_client_is_a_folder_too(folder, tmp_path):
    snapshot = tmp_path / "models--user--name" / "snapshots" / "0123"
    (tmp_path / "models--user--name" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / "models--user--name" / "blobs" / name[:5])
        (snapshot / name).symlink_to(f"../../blobs/{name[:5]}")
    assert inspect_policy(str(snapshot))[1] is None


# ---------------------------------------------------------------------- the Hub


class Hub:
    """Stands for the Hub: notes what is asked for, and serves a folder."""

    def __init__(self, folder: Path, sizes: dict[str, int], monkeypatch) -> None:
        self.folder, self.sizes, self.asked, self.fetched = folder, sizes, [], []
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.metadata)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def metadata(self, url, token=None):
        self.asked.append((url, token))
        name = url.rsplit("/", 1)[1]
        if name not in self.sizes:
            raise ConnectionError("out of reach")

        class Metadata:
            size = self.sizes[name]

        return Metadata()

    def download(self, repo_id, filename, **settings):
        self.fetched.append((repo_id, filename, settings))
        return str(self.folder / filename)


def test_the_revision_reaches_the_hub(folder, monkeypatch):
    hub = Hub(folder, {"config.json": 500, "model.safetensors": 5000}, monkeypatch)
    commit = "0123456789abcdef0123456789abcdef01234567"
    GNSPolicy.from_pretrained("somebody/policy", revision=commit, token="secret")
    assert [settings["revision"] for _, _, settings in hub.fetched] == [commit, commit]
    assert all(f"/{commit}/" in url and token == "secret" for url, token in hub.asked) and len(hub.asked) == 2


@pytest.mark.parametrize(("name", "size"), [("config.json", MAX_CONFIG_BYTES + 1), ("model.safetensors", 2**40)])
def test_a_file_too_large_for_a_policy_is_not_fetched(folder, monkeypatch, name, size):
    hub = Hub(folder, {"config.json": 500, "model.safetensors": 5000, name: size}, monkeypatch)
    with pytest.raises(PolicyFormatError, match=f"{name} of 'somebody/policy' has {size:,} bytes"):
        GNSPolicy.from_pretrained("somebody/policy")
    assert name not in [asked for _, asked, _ in hub.fetched]


def test_where_the_size_is_not_known_the_download_says_what_is_wrong(folder, monkeypatch):
    hub = Hub(folder, {}, monkeypatch)
    GNSPolicy.from_pretrained("somebody/policy")
    assert len(hub.fetched) == 2
    GNSPolicy.from_pretrained("somebody/policy", local_files_only=True)
    assert len(hub.asked) == 2


@pytest.mark.parametrize(("name", "size"), [("config.json", MAX_CONFIG_BYTES + 1), ("model.safetensors", 2**40)])
def test_inspecting_fetches_as_loading_does(folder, monkeypatch, name, size):
    hub = Hub(folder, {"config.json": 500, "model.safetensors": 5000, "README.md": 2**30}, monkeypatch)
    report, problem = inspect_policy("somebody/policy", "v1")
    assert "README.md of 'somebody/policy' has 1,073,741,824 bytes" in str(problem)  # not even the card
    hub.sizes["README.md"] = 300
    report, problem = inspect_policy("somebody/policy", "v1")
    assert problem is None and [file["name"] for file in report["files"]] == [
        "config.json",
        "model.safetensors",
        "README.md",
    ]
    hub.fetched.clear()
    hub.sizes[name] = size
    report, problem = inspect_policy("somebody/policy", "v1")
    assert f"{name} of 'somebody/policy' has {size:,} bytes" in str(problem) and "files" not in report
    assert name not in [asked for _, asked, _ in hub.fetched]


@pytest.mark.parametrize(
    "source",
    [
        "outputs/nope",
        "results/nope",
        "nope",
        "./nope",
        "/nope/policy",
        "~/policy",
        "a/b/c",
        "a b/c",
        "../a",
        "user/..",
        "user/",
        Path("somebody/policy"),
    ],
)
def test_what_does_not_look_like_a_hub_id_or_stands_in_a_folder_here_is_never_fetched(
    folder, tmp_path, monkeypatch, source
):
    hub = Hub(folder, {}, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(
        PolicyFormatError, match=r"No policy at .*train_agent\.py name=NAME writes .*outputs/NAME/policy"
    ):
        GNSPolicy.from_pretrained(source)
    if isinstance(source, str):
        assert "No policy at" in str(inspect_policy(source)[1])
    assert hub.asked == hub.fetched == []


def test_that_the_hub_is_asked_is_said_first(folder, monkeypatch, caplog):
    hub = Hub(folder, {}, monkeypatch)
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("fetched before it was said"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: caplog.text and 1 / 0)
    with pytest.raises(PolicyFormatError, match="ZeroDivisionError"):
        GNSPolicy.from_pretrained("somebody/policy", revision="v1")
    assert "Hub for policy somebody/policy, revision v1" in caplog.text
