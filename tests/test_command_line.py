"""The command line: a policy described from its files, a model's layers and what a schedule would do to them."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from text_hub import make_bert

from gns import DecisionConfig, DecisionCore, GNSPolicy, NetworkConfig, PolicyConfig, PolicyFormatError, layer_graph
from gns.features.schemas import SCHEMAS
from gns.tools.command_line import main
from gns.tools.inspect_policy import kind_of

TRAINING = {"tasks": "digits_mlp", "budgets": "100 to 400 updates", "episodes": 5000, "seed": 3}
CONFIG = PolicyConfig(
    network=NetworkConfig(hidden=8, head=8, type_embedding=4),
    decision=DecisionConfig(mode="recursive", base=3.0, min_lr=1e-6, max_lr=2.0, num_decisions=30),
    training=TRAINING,
)
MODELS = '''
import torch
from torch import nn

print("importing models")


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


class Tied(nn.Module):
    """Embedding tied to the output, a frozen layer, and one that nothing uses."""

    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.body = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.idle = nn.Linear(2, 2)
        self.out = nn.Linear(width, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        h = self.embed(ids)
        for layer in self.body:
            h = h + torch.relu(layer(h))
        return self.out(self.frozen(h))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.image = nn.Embedding(7, 3), nn.Linear(4, 3)

    def forward(self, ids, image):
        return {"score": self.words(ids).sum(1) * self.image(image)}


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        h = self.stem(x)
        return self.head(torch.cat([self.left(h)[:, :2], self.right(h)[:, :2]], dim=1))


def broken():
    raise RuntimeError("no\\nsuch luck")


def text():
    return "text"
'''


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GNSPolicy(CONFIG).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models")
    (folder / "models_of_a_user.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    yield "models_of_a_user"
    sys.path.remove(str(folder))
    sys.modules.pop("models_of_a_user", None)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "bert"
    make_bert(folder)
    return folder


@pytest.fixture
def run(capsys):
    """Run a command; return its exit status and what it wrote to either stream."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return status, written.out, written.err

    return call


@pytest.fixture
def plan(run):
    """Plan as JSON."""

    def call(*arguments: object) -> dict:
        status, out, err = run("plan", *arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return call


def assert_one_line(err: str, name: str) -> None:
    assert err.count("\n") == 1 and err.startswith(f"{name}: ") and "Traceback" not in err


# ---------------------------------------------------------------------- inspect: a policy that can be used


def test_a_policy_is_described_as_json(policy, run):
    status, out, err = run("inspect", policy, "--json")
    report = json.loads(out)
    assert (status, err, report["valid"]) == (0, "", True)
    assert report["format_version"] == CONFIG.format_version
    schema = SCHEMAS["gns-1"]
    assert report["features"]["node"] == list(schema.node) and report["features"]["global"] == list(schema.globals)
    action, decisions = report["action"], report["decisions"]
    assert (action["mode"], action["min_lr"], action["max_lr"]) == ("recursive", 1e-6, 2.0)
    assert (decisions["num_decisions"], decisions["decision_interval"]) == (30, None)
    assert report["network"]["parameters"] == sum(p.numel() for p in GNSPolicy(CONFIG).parameters())
    assert report["network"]["hidden"] == 8 and report["training"] == TRAINING
    files = {file["name"]: file for file in report["files"]}
    assert list(files) == ["config.json", "model.safetensors", "README.md"]
    for name, file in files.items():
        content = (policy / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert [file["kind"] for file in files.values()] == ["text", "safetensors", "text"]


def test_a_policy_is_described_as_text(policy, run):
    status, out, err = run("inspect", policy)
    assert (status, err) == (0, "")
    expected = [
        f"policy {policy}: valid",
        "recursive: rate = level, level <- level * 3^a",
        "within [1e-06, 2]",
        "30 a run",
        "digits_mlp",
        "100 to 400 updates",
        "5000",
        *SCHEMAS["gns-1"].node,
        *SCHEMAS["gns-1"].globals,
        hashlib.sha256((policy / "model.safetensors").read_bytes()).hexdigest(),
    ]
    assert [text for text in expected if text not in out] == []
    assert "\x1b" not in out and all(line == line.rstrip() for line in out.splitlines())


def test_a_terminal_gets_a_table(policy, run, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    status, out, _ = run("inspect", policy)
    assert status == 0 and "─" in out and "level <- level" in out
    shown = re.sub("\x1b\\[[0-9;]*m", "", out)  # without colours
    assert max(len(line) for line in shown.splitlines()[1:]) <= 60
    monkeypatch.setitem(sys.modules, "rich", None)  # which is no part of a plain installation
    status, plain, _ = run("inspect", policy)
    assert status == 0 and "─" not in plain and "level <- level" in plain


def test_what_a_file_says_cannot_steer_the_terminal(tmp_path, run):
    GNSPolicy(PolicyConfig(training={"tasks": "\x1b[2Jgone [red]x[/red]"})).save_pretrained(tmp_path / "p")
    _, out, _ = run("inspect", tmp_path / "p")
    assert "\x1b" not in out and "\\x1b[2Jgone [red]x[/red]" in out


def test_numbers_that_json_lacks_are_written_as_text(tmp_path, run):
    GNSPolicy(PolicyConfig(training={"ratio": float("nan")})).save_pretrained(tmp_path / "p")
    _, out, _ = run("inspect", tmp_path / "p", "--json")
    assert json.loads(out, parse_constant=pytest.fail)["training"] == {"ratio": "NaN"}


def test_a_policy_of_the_hub_is_found_by_its_id(run, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cache, commit = tmp_path / "models--somebody--policy", "0" * 40
    GNSPolicy(CONFIG).save_pretrained(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    status, out, _ = run("inspect", "somebody/policy", "--json")
    assert status == 0 and json.loads(out)["folder"].endswith(commit)
    assert run("inspect", "somebody/policy", "--revision", commit)[0] == 0
    status, _, err = run("inspect", "somebody/other")
    assert status == 1 and "No policy at 'somebody/other'" in err
    assert_one_line(err, "PolicyFormatError")


# ---------------------------------------------------------------------- inspect: a policy that cannot


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_said_to_be_missing(policy, run, name):
    (policy / name).unlink()
    status, out, err = run("inspect", policy)
    assert status == 1 and re.search(rf"{re.escape(name)} +MISSING", out) and "NOT VALID" in out
    assert f"has no {name}" in err
    assert_one_line(err, "PolicyFormatError")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights_are_said_to_be_damaged(policy, run, kept):
    path = policy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    status, out, err = run("inspect", policy)
    assert status == 1 and "NOT VALID" in out and hashlib.sha256(path.read_bytes()).hexdigest() in out
    assert "undamaged safetensors file" in err
    assert_one_line(err, "PolicyFormatError")


def test_an_error_of_many_lines_is_one_line(policy, run, tmp_path):
    GNSPolicy(PolicyConfig()).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(policy / "model.safetensors")
    status, _, err = run("inspect", policy)
    assert status == 1 and "size mismatch" in err
    assert_one_line(err, "PolicyFormatError")


def test_a_damaged_policy_as_json_says_what_is_wrong(policy, run):
    (policy / "config.json").write_text("{")
    status, out, err = run("inspect", policy, "--json")
    report = json.loads(out)
    assert (status, report["valid"], len(report["files"])) == (1, False, 3)
    assert "config.json is not valid JSON" in report["problem"]
    assert_one_line(err, "PolicyFormatError")


def test_json_nested_without_end_is_refused(policy, run):
    data = json.loads((policy / "config.json").read_text())
    text = json.dumps({**data, "training": {"a": "DEEP"}}).replace('"DEEP"', "[" * 900 + "]" * 900)
    (policy / "config.json").write_text(text)
    status, _, err = run("inspect", policy)
    assert status == 1
    assert_one_line(err, "PolicyFormatError")


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 5, "torch", "old torch"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pickle_is_named_as_one_and_not_run(policy, run, tmp_path, name, protocol):
    trace = tmp_path / "was here"
    if isinstance(protocol, int):
        (policy / name).write_bytes(pickle.dumps(Touch(trace), protocol=protocol))
    else:
        torch.save({"w": Touch(trace)}, policy / name, _use_new_zipfile_serialization=protocol == "torch")
    status, out, err = run("inspect", policy)
    assert status == 1 and f"{name} is a pickle, and a policy is never unpickled" in err
    assert re.search(rf"{re.escape(name)} .* pickle ", out)
    assert_one_line(err, "PolicyFormatError")
    assert not trace.exists()


def test_a_pickle_in_place_of_the_folder_is_named_as_one(run, tmp_path):
    torch.save({"w": Touch(tmp_path / "was here")}, tmp_path / "agent.zip")
    status, _, err = run("inspect", tmp_path / "agent.zip")
    assert status == 1 and "agent.zip is a pickle" in err and "Expected a folder" in err
    assert not (tmp_path / "was here").exists()


def test_a_pickle_beside_a_policy_is_noted(policy, run, tmp_path):
    torch.save({"w": Touch(tmp_path / "was here")}, policy / "pytorch_model.bin")
    status, out, _ = run("inspect", policy)
    assert status == 0 and "note: pytorch_model.bin is no part of the policy and is not read" in out
    assert not (tmp_path / "was here").exists()


def test_a_file_too_large_is_not_read(policy, run):
    with (policy / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)  # a hole: takes no room
    status, out, err = run("inspect", policy)
    assert status == 1 and "1,099,511,627,776" in out and "too large" in out
    assert "expected at most" in err


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "text"),
        (b'{"a": 1}', "text"),
        (b"12", "text"),
        (
            b"\x80\x02\x00\x00\x00\x00\x00\x00" + b"{" + b" " * 700,
            "safetensors",
        ),  # its length looks like a pickle's mark
        (b"\x80\x02" + b"x" * 10, "pickle"),
        (pickle.dumps({"a": [1, 2]}, protocol=0), "pickle"),
        (pickle.dumps({"a": [1, 2]}, protocol=0)[:-1], "text"),
        (b"\xff\xfe\x80", "unknown"),
        (b"a\x00b", "unknown"),
        (b"PK\x03\x04" + b"\x00" * 26 + b"archive/data.pkl", "pickle"),
        (b"PK\x03\x04 but no archive \xff", "unknown"),
    ],
)
def test_the_kind_of_a_file_is_told_from_its_content(content, kind):
    assert kind_of(content) == kind


def test_the_error_itself_is_shown_on_demand(run, tmp_path):
    with pytest.raises(PolicyFormatError, match=r"has no config\.json"):
        run("inspect", tmp_path, "--traceback")


# ---------------------------------------------------------------------- plan: models of a user's own


def test_the_plan_of_a_sequential_is_its_layer_graph(plan, models):
    found = plan(f"{models}:small", "--input", "3,8,8")
    assert found["inputs"] == ["0: float32 (2, 3, 8, 8)"] and found["model"] == "Sequential"
    rows = [(r["name"], r["type"], r["parameters"], r["depth"], r["next"]) for r in found["layers"]]
    assert rows == [
        ("0", "conv", 3 * 4 * 9 + 4, 0.0, [1]),
        ("1", "norm", 8, 0.5, [2]),
        ("4", "linear", 4 * 36 * 5 + 5, 1.0, []),
    ]
    totals = {"layers": 3, "edges": 2, "blocks": 3, "scheduled": 845, "outside": 0, "frozen": 0, "parameters": 845}
    assert found["totals"] == totals
    assert found["frozen"] == found["outside"] == found["tied"] == []
    assert "optimizer" not in found and "decisions" not in found


def test_the_plan_names_every_edge_of_a_branch(plan, models):
    found = plan(f"{models}:Branches", "--input", "4")
    names = [row["name"] for row in found["layers"]]
    edges = {(row["name"], names[target]) for row in found["layers"] for target in row["next"]}
    assert edges == {("stem", "left"), ("stem", "right"), ("left", "head"), ("right", "head")}


def test_tied_frozen_and_idle_layers_are_told_apart(plan, models):
    found = plan(f"{models}:Tied", "--args", '{"width": 4}', "--input", "5", "--input-dtype", "long")
    assert {row["name"] for row in found["layers"]} == {"embed", "body.0", "body.1"}
    assert found["tied"] == [["embed.weight", "out.weight"]]
    assert found["frozen"] == [{"name": "frozen", "tensors": 2, "parameters": 20}]
    assert found["outside"] == [{"name": "idle", "tensors": 2, "parameters": 6}]
    totals = found["totals"]
    assert (totals["scheduled"], totals["outside"], totals["frozen"]) == (44 + 40, 6, 20)
    assert totals["parameters"] == 44 + 40 + 6 + 20
    blocks = [(block["name"], block["layers"], block["parameters"]) for block in found["blocks"]]
    assert sorted(blocks) == [("body.0", 1, 20), ("body.1", 1, 20), ("embed", 1, 44)]


def test_a_plan_reads_well_as_text(run, models):
    arguments = (
        "plan",
        f"{models}:Tied",
        "--input",
        "5",
        "--input-dtype",
        "long",
        "--optimizer",
        "adamw",
        "--lr",
        "1e-3",
    )
    status, out, _ = run(*arguments, "--total-steps", "10000")
    assert status == 0
    lines = out.splitlines()
    assert "  #  name    type       parameters  block   depth  edges to" in lines
    assert "  1  body.0  linear             42  body.0  0.50   0 2" in lines, out
    assert any(line.startswith("frozen: ") for line in lines) and "  embed.weight = out.weight" in lines
    assert "  decisions  20, before updates 0, 500, 1000, ..., 9500 (the first is 0)" in lines
    assert "  interval   500 updates; the last one 500" in lines
    assert "\x1b" not in out and run(*arguments, "--total-steps", "10000")[1] == out


def test_several_inputs_have_a_shape_and_a_kind_each(plan, models):
    shapes = ("--input", "6", "--input", "4", "--input-dtype", "long", "--input-dtype", "float")
    found = plan(f"{models}:Two", *shapes)
    assert found["inputs"] == ["0: int64 (2, 6)", "1: float32 (2, 4)"]
    assert {row["name"] for row in found["layers"]} == {"words", "image"}


def test_blocks_take_the_place_of_layers(run, models):
    _, out, _ = run("plan", f"{models}:Tied", "--input", "5", "--input-dtype", "long", "--blocks")
    assert "\nblocks\n" in out and "\nlayers\n" not in out


def test_large_models_need_no_memory_on_demand(plan, run):
    large = ("plan", "torch.nn:Linear", "--args", "[1000000, 1000000]", "--input", "1000000", "--meta", "--json")
    status, out, err = run(*large)  # four terabytes
    assert status == 0, err
    assert json.loads(out)["totals"]["scheduled"] == 10**12 + 10**6


def test_a_model_that_prints_does_not_spoil_the_plan(run, models):
    sys.modules.pop(models, None)
    status, out, err = run("plan", f"{models}:small", "--input", "3,8,8", "--json")
    assert status == 0 and json.loads(out) and err == "importing models\n"


def test_planning_leaves_random_numbers_as_they_were(run, models):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run("plan", f"{models}:small", "--input", "3,8,8")
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- plan: optimizer, decisions, picture


def test_parameter_groups_are_the_optimizers(plan, models):
    found = plan(*(f"{models}:Tied", "--input", "5", "--input-dtype", "long", "--optimizer", "adamw", "--lr", "1e-3"))[
        "optimizer"
    ]
    assert (found["class"], found["kind"]) == ("AdamW", "adamw")
    (group,) = found["groups"]
    assert (group["tensors"], group["parameters"], group["scheduled"], group["lr"]) == (7, 66 + 84 + 6, 66 + 84, 1e-3)
    assert group["settings"]["betas"] == [0.9, 0.999] and group["settings"]["weight_decay"] == 0.01


@pytest.mark.parametrize(("name", "kind"), [("sgd", "sgd"), ("sgdm", "sgd"), ("adam", "adam"), ("rmsprop", "other")])
def test_the_kind_of_optimizer_is_what_a_policy_sees(plan, models, name, kind):
    found = plan(f"{models}:small", "--input", "3,8,8", "--optimizer", name)["optimizer"]
    assert found["kind"] == kind
    assert found["groups"][0]["settings"].get("momentum", 0) == (0.9 if name == "sgdm" else 0)


@pytest.mark.parametrize("budget", [30, 31, 100, 10_000])
def test_the_decisions_planned_are_those_a_run_takes(plan, models, policy, budget):
    found = plan(f"{models}:Branches", "--input", "4", "--total-steps", budget, "--policy", policy)["decisions"]
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    graph = layer_graph(model, model(torch.zeros(2, 4)))
    core = DecisionCore(model, optimizer, graph, budget, CONFIG.decision)
    decided = []
    for update in range(budget):
        if core.decision_due:
            core.decide(0.0)
            decided.append(update)
        core.set_rates()
        core.note_update(torch.tensor(1.0))
    assert (found["decisions"], found["interval"]) == (len(decided), core.interval)
    assert found["last_interval"] == budget - decided[-1]
    assert found["training"] == TRAINING and found["min_lr"] == 1e-6


def test_without_a_policy_the_default_settings_are_planned(plan, models):
    found = plan(f"{models}:Branches", "--input", "4", "--total-steps", "10000")["decisions"]
    assert (found["policy"], found["interval"]) == (None, DecisionConfig().interval(10_000))


@pytest.mark.parametrize("level", [[], ["--blocks"]])
def test_a_picture_is_written(run, models, tmp_path, level):
    picture = tmp_path / "graph.png"
    assert run("plan", f"{models}:Branches", "--input", "4", "--png", picture, *level)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------- plan: models of transformers


def test_a_folder_of_transformers_needs_no_input(plan, bert):
    found = plan(bert)
    assert found["model"] == "BertForMaskedLM" and found["inputs"][0].startswith("input_ids: int64")
    tied = ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"]
    assert tied in [sorted(names) for names in found["tied"]]
    names = {block["name"] for block in found["blocks"]}
    assert {"bert.encoder.layer.0", "bert.encoder.layer.1"} <= names
    assert found["totals"]["scheduled"] == found["totals"]["parameters"]


def test_a_folder_without_weights_gives_the_same_plan(plan, bert, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    assert {**plan(tmp_path), "target": ""} == {**plan(bert), "target": ""}


def test_another_class_and_settings_change_the_model(plan, bert):
    found = plan(bert, "--auto-class", "AutoModelForSequenceClassification", "--args", '{"num_hidden_layers": 1}')
    names = {row["name"] for row in found["layers"]}
    assert found["model"] == "BertForSequenceClassification" and "classifier" in names
    assert not any(name.startswith("bert.encoder.layer.1") for name in names)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("name", "settings", "inputs"),
    [
        (
            "T5ForConditionalGeneration",
            {
                "model_type": "t5",
                "vocab_size": 50,
                "d_model": 16,
                "num_layers": 1,
                "d_ff": 16,
                "num_heads": 2,
                "d_kv": 8,
            },
            {"input_ids", "decoder_input_ids", "decoder_attention_mask"},
        ),
        (
            "ViTForImageClassification",
            {"model_type": "vit", "image_size": 16, "patch_size": 8, **SMALL},
            {"pixel_values"},
        ),
        (
            "CLIPModel",
            {
                "model_type": "clip",
                "text_config": {**SMALL, "vocab_size": 6, "eos_token_id": 2},
                "vision_config": {**SMALL, "image_size": 16, "patch_size": 8},
            },
            {"input_ids", "pixel_values"},
        ),
        (
            "WhisperForConditionalGeneration",
            {
                "model_type": "whisper",
                "vocab_size": 60,
                "pad_token_id": 1,
                "d_model": 16,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "max_source_positions": 20,
                "num_mel_bins": 8,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
            },
            {"input_features", "decoder_input_ids"},
        ),
    ],
)
def test_inputs_are_built_from_the_configuration(plan, tmp_path, name, settings, inputs):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **settings}))
    found = plan(tmp_path)
    assert found["model"] == name and {text.partition(":")[0] for text in found["inputs"]} == inputs
    assert found["totals"]["layers"] > 10


@pytest.mark.parametrize("model_type", ["bert", "unknown"])
@pytest.mark.parametrize("auto_class", [[], ["--auto-class", "AutoModel"]])
def test_code_beside_a_model_is_never_run(run, tmp_path, model_type, auto_class):
    trace, folder = tmp_path / "was here", tmp_path / "model"
    folder.mkdir()
    (folder / "custom.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    config = {"model_type": model_type, "auto_map": {"AutoConfig": "custom.C", "AutoModel": "custom.M"}, **SMALL}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    status, _, err = run("plan", folder, *auto_class)
    assert not trace.exists()
    assert status == (0 if model_type == "bert" else 1)
    if status:
        assert_one_line(err, "InvalidSettingError")


# ---------------------------------------------------------------------- plan: what cannot be planned


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (["no_such_module:Class"], "InvalidSettingError", "no_such_module cannot be imported (ModuleNotFoundError"),
        (["torch.nn:Linaer"], "InvalidSettingError", "Did you mean Linear"),
        (["MODELS:broken"], "InvalidSettingError", "RuntimeError: no such luck"),
        (["MODELS:text"], "InvalidSettingError", "gave a str; expected a torch.nn.Module"),
        (["MODELS:small"], "InvalidSettingError", "No --input is given for Sequential"),
        (
            ["MODELS:small", "--input", "4,8,8"],
            "InvalidSettingError",
            "does not take the sample batch 0: float32 (2, 4",
        ),
        (["MODELS:small", "--input", "3,-8"], "InvalidSettingError", "--input is '3,-8'"),
        (["MODELS:small", "--input", "3x8"], "InvalidSettingError", "expected whole numbers above 0 with commas"),
        (["MODELS:small", "--input", "3,8,8", "--input-dtype", "half"], "UnknownNameError", "input dtype 'half'"),
        (["MODELS:Two", "--input", "1", *["--input-dtype", "long"] * 2], "InvalidSettingError", "given 2 times for 1"),
        (["MODELS:Tied", "--args", "{"], "InvalidSettingError", "which is not JSON"),
        (["MODELS:Tied", "--args", "3"], "InvalidSettingError", "expected a JSON object or list"),
        (["MODELS:Tied", "--args", '{"depth": 3}'], "InvalidSettingError", "cannot be called with {'depth': 3}"),
        (["torch.nn:ReLU", "--input", "3"], "LayerGraphError", "no trainable parameter"),
        (["OK", "--optimizer", "adamx"], "UnknownNameError", "Did you mean 'adam"),
        (["OK", "--optimizer", "sgd", "--lr", "-1"], "InvalidSettingError", "--lr is -1.0"),
        (["OK", "--optimizer", "sgd", "--lr", "nan"], "InvalidSettingError", "--lr is nan"),
        (["OK", "--optimizer", "muon"], "InvalidSettingError", "choose another"),
        (
            ["OK", "--optimizer", "sgd", "--lr", "99", "--total-steps", "100"],
            "InvalidSettingError",
            "is 99; expected one",
        ),
        (["OK", "--total-steps", "0"], "InvalidSettingError", "budget is 0"),
        (["OK", "--total-steps", "5"], "InvalidSettingError", "smaller than num_decisions = 20"),
        (["OK", "--total-steps", "100", "--policy", "no/such/policy"], "PolicyFormatError", "No policy at"),
        (["OK", "--png", "no/such/folder/x.png"], "InvalidSettingError", "cannot be written"),
        (["OK", "--png", "x.unknown"], "InvalidSettingError", "cannot be written"),
        (["nobody/no-such-model"], "InvalidSettingError", "transformers has no configuration"),
        (
            ["BERT", "--auto-class", "AutoModelForNothing"],
            "InvalidSettingError",
            "no model class 'AutoModelForNothing'",
        ),
        (["BERT", "--auto-class", "Trainer"], "InvalidSettingError", "no model class 'Trainer'"),
        (["BERT", "--auto-class", "ViTModel"], "InvalidSettingError", "cannot be built from the configuration"),
        (["BERT", "--args", "[1]"], "InvalidSettingError", "expected an object of settings"),
    ],
)
def test_what_cannot_be_planned_is_one_line(run, models, bert, arguments, name, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    words = {"OK": [f"{models}:Branches", "--input", "4"], "BERT": [str(bert)]}
    given = [part for text in arguments for part in words.get(text, [text.replace("MODELS", models)])]
    __import__(models)
    status, out, err = run("plan", *given)
    assert (status, out) == (1, "") and expected in err
    assert_one_line(err, name)


@pytest.mark.parametrize(
    "arguments",
    [[], ["inspect"], ["plan"], ["unknown"], ["plan", "x:Y", "--lr", "1"], ["plan", "x:Y", "--policy", "p"]],
)
def test_words_that_make_no_command_end_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: python -m gns" in capsys.readouterr().err


# ---------------------------------------------------------------------- as a process


def test_the_command_runs_as_a_process(policy, root, tmp_path):
    (tmp_path / "mine.py").write_text(MODELS)
    words = {"plan": ["plan", "mine:small", "--input", "3,8,8"], "inspect": ["inspect", str(tmp_path)]}
    finished = {
        name: subprocess.run(
            [sys.executable, "-m", "gns", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root)},
            timeout=120,
        )
        for name, arguments in words.items()
    }
    assert finished["plan"].returncode == 0 and finished["plan"].stdout.startswith("mine:small: Sequential")
    assert finished["inspect"].returncode == 1
    assert_one_line(finished["inspect"].stderr, "PolicyFormatError")
