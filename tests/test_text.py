"""Text as tensors, pretrained encoders restored from memory, and batches of examples of one length."""

import copy
import json
import shutil
from dataclasses import replace
from itertools import pairwise

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kstest
from text_hub import card, write
from torch import nn

from envs import EnvConfig, LearningRateEnv, TrainingRun, get_task
from envs.data_order import group_by_length
from envs.tasks import glue, pretrained, squad, text
from envs.tasks.base import Split
from envs.tasks.hub import DataNotFoundError, load_hub_dataset
from envs.tasks.text import SequenceClassifier, TextModel, UnlabelledDataError, build_encoder
from gns import DecisionConfig, InvalidSettingError

ROBERTA, BERT = "FacebookAI/roberta-base", "google-bert/bert-base-uncased"
CLASSIFIER, SPANS = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"
COLA, MRPC, STSB = (next(task for task in glue.GLUE_TASKS if task.name == name) for name in ("cola", "mrpc", "stsb"))
HEADS = {
    (ROBERTA, CLASSIFIER): {"classifier.dense.", "classifier.out_proj."},
    (BERT, CLASSIFIER): {"bert.pooler.dense.", "classifier."},
    (ROBERTA, SPANS): {"qa_outputs."},
    (BERT, SPANS): {"qa_outputs."},
}
every_encoder = pytest.mark.parametrize("encoder", [ROBERTA, BERT])
every_head = pytest.mark.parametrize(("encoder", "auto_class"), HEADS)


def by_hand(tokenizer, texts, max_length):
    """Ids and segments of one example; tokens are dropped one by one from the end of the longer sentence."""
    parts = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(one)) for one in texts]
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    bert = tokenizer.cls_token == "[CLS]"
    between = [end] if bert else [end, end]
    special = 2 + len(between) * (len(parts) - 1)
    longer = 0 if len(parts) == 1 or len(parts[0]) > len(parts[1]) else 1
    while sum(map(len, parts)) + special > max_length:
        lengths = [len(part) for part in parts]
        tie = len(parts) == 2 and lengths[0] == lengths[1]
        parts[1 - longer if tie else int(np.argmax(lengths))].pop()
    ids = [begin, *parts[0]]
    segments = [0] * (len(ids) + 1)
    if len(parts) == 1:
        return [*ids, end], segments
    second = [*parts[1], end]
    ids += [*between, *second]
    return ids, segments + [1] * len(second) if bert else [0] * len(ids)


def saved_weights(hub, encoder):
    return load_file(hub / encoder / "model.safetensors")


def is_head(name, encoder, auto_class):
    return name.startswith(tuple(HEADS[encoder, auto_class]))


def built(seed, encoder, auto_class=CLASSIFIER, pretrained=True, **settings):
    torch.manual_seed(seed)
    if auto_class == CLASSIFIER:
        settings = {"num_labels": 2, **settings}
    return build_encoder(auto_class, encoder, pretrained, **settings)


def same(one, other):
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def outspoken(model):
    """The model with weights so large that attention is far from uniform and logits are of order one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def own_glue(tmp_path, monkeypatch, name, **columns):
    """Make these columns the training split of a GLUE task; ``datasets`` gets a cache of its own."""
    write(tmp_path / "nyu-mll/glue" / name / "train-00000-of-00001.parquet", columns)
    (tmp_path / "nyu-mll/glue/README.md").write_text(card({name: ["train"]}))
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---------------------------------------------------------------------- tokens


@every_encoder
@pytest.mark.parametrize(("task", "max_length"), [(COLA, 9), (COLA, 40), (MRPC, 16), (MRPC, 17), (MRPC, 64)])
def test_padded_examples_are_each_example_tokenised_on_its_own(encoder, task, max_length):
    data = load_hub_dataset(glue.HUB_ID, task.name)["validation"]
    tokenizer = pretrained.load_tokenizer(pretrained.locate(encoder))
    split = glue.read(task, "validation", encoder, max_length)
    assert split.inputs.shape == (len(data), 2, max_length) and split.inputs.dtype == torch.int32
    assert split.lengths.dtype == torch.int64 and split.references is None
    for row, example in enumerate(data):
        ids, segments = by_hand(tokenizer, [example[key] for key in task.keys], max_length)
        padding = max_length - len(ids)
        assert split.lengths[row] == len(ids)
        assert split.inputs[row, 0].tolist() == ids + [tokenizer.pad_token_id] * padding
        assert split.inputs[row, 1].tolist() == segments + [-1] * padding
    cut = float((split.lengths == max_length).float().mean())
    assert cut > 0.2 if max_length < 40 else cut < 0.2


def test_bert_tells_the_second_sentence_from_the_first_and_roberta_does_not():
    segments = {encoder: glue.read(MRPC, "validation", encoder, 64).inputs[:, 1] for encoder in (ROBERTA, BERT)}
    assert (segments[BERT] == 1).any(dim=1).all() and not (segments[ROBERTA] == 1).any()


@every_encoder
def test_empty_sentences_are_special_tokens_alone_and_can_be_learned_from(hub, tmp_path, monkeypatch, encoder):
    own_glue(tmp_path, monkeypatch, "mrpc", sentence1=["", "", "ban"], sentence2=["", "ban", ""], label=[0, 1, 0])
    split = glue.read(MRPC, "train", str(hub / encoder), 16)
    tokenizer = pretrained.load_tokenizer(str(hub / encoder))
    special = 3 if encoder == BERT else 4
    assert split.lengths[0] == special
    assert set(split.inputs[0, 0, :special].tolist()) == {tokenizer.cls_token_id, tokenizer.sep_token_id}
    model = SequenceClassifier(built(0, str(hub / encoder)))
    loss = nn.functional.cross_entropy(model(split.batch(torch.arange(3))[0]), split.targets)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_text_that_looks_like_special_tokens_does_not_break_a_batch(hub, tmp_path, monkeypatch):
    odd = ["<pad> <pad> ban </s>", "[PAD] [SEP] \x00 \t", "😀 ñ 漢字 \u202e", "ban " * 3000]
    own_glue(tmp_path, monkeypatch, "cola", sentence=odd, label=[0, 1, 0, 1])
    for encoder in (ROBERTA, BERT):
        split = glue.read(COLA, "train", str(hub / encoder), 64)
        logits = SequenceClassifier(built(0, str(hub / encoder))).eval()(split.batch(torch.arange(4))[0])
        assert split.lengths[3] == 64 and torch.isfinite(logits).all()


# ---------------------------------------------------------------------- cache


def test_tokens_come_from_the_cache_until_tokenizer_or_purpose_change():
    data = load_hub_dataset(glue.HUB_ID, "cola")["validation"]
    calls = []

    def tokens(encoder, about):
        tokenizer = pretrained.load_tokenizer(pretrained.locate(encoder))

        def encode(batch):
            calls.append(len(batch["sentence"]))
            return {"ids": tokenizer(batch["sentence"], truncation=True, max_length=9)["input_ids"]}

        calls.clear()
        found = text.tokenize(data, tokenizer, about, encode)
        assert found.column_names == ["ids"]
        return list(found["ids"]), sum(calls)

    first, encoded = tokens(ROBERTA, "test of the cache")
    assert encoded == len(data) == 110
    pretrained.load_tokenizer(pretrained.locate(ROBERTA))("ban", truncation=True, max_length=5, padding="max_length")
    assert tokens(ROBERTA, "test of the cache") == (first, 0)
    assert tokens(ROBERTA, "another test of the cache") == (first, 110)
    other, encoded = tokens(BERT, "test of the cache")
    assert encoded == 110 and other != first
    assert tokens(BERT, "test of the cache") == (other, 0) and tokens(ROBERTA, "test of the cache") == (first, 0)


def test_a_split_read_again_is_not_tokenised_again(monkeypatch):
    calls = []

    def counted(data, tokenizer, about, encode):
        return text.tokenize(data, tokenizer, about, lambda batch: calls.append(about) or encode(batch))

    for module in (glue, squad):
        monkeypatch.setattr(module, "tokenize", counted)

    def encoded(read, *arguments):
        calls.clear()
        split = read(*arguments)
        return split.inputs, bool(calls)

    first, called = encoded(glue.read, MRPC, "validation", ROBERTA, 57)
    assert called
    for other in ((MRPC, "validation", ROBERTA, 58), (MRPC, "validation", BERT, 57), (MRPC, "train", ROBERTA, 57)):
        assert encoded(glue.read, *other)[1]
    again, called = encoded(glue.read, MRPC, "validation", ROBERTA, 57)
    assert torch.equal(again, first) and not called
    assert [encoded(squad.read, "validation", BERT, 59, stride)[1] for stride in (5, 6, 5)] == [True, True, False]


# ---------------------------------------------------------------------- tensors


def test_lists_are_padded_each_with_its_own_value():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 9, n).tolist() for n in rng.integers(0, 6, 40)]
    negative = [[-value for value in one] for one in lists]
    parts = [{"a": lists[:7], "b": negative[:7]}, {"a": lists[7:], "b": negative[7:]}]
    whole = datasets.concatenate_datasets([datasets.Dataset.from_dict(part) for part in parts])
    padded, lengths = text.pad(whole, {"b": 77, "a": -5}, 6)
    assert lengths.tolist() == [len(one) for one in lists] and 0 in lengths and 5 in lengths
    for row, (a, b) in enumerate(zip(lists, negative, strict=True)):
        assert padded[row].tolist() == [b + [77] * (6 - len(b)), a + [-5] * (6 - len(a))]
    assert padded.dtype == torch.int32 and lengths.dtype == torch.int64


@pytest.mark.parametrize(("examples", "share"), [(1100, 0.1), (87, 0.25), (3, 0.01)])
def test_carving_parts_all_rows_in_two_the_same_way_each_time(examples, share):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train, reward = text.carve(range(examples), share)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(reward) == max(1, round(share * examples))
    assert sorted([*train.tolist(), *reward.tolist()]) == list(range(examples))
    assert all(torch.equal(part, part.sort().values) for part in (train, reward))
    assert all(torch.equal(a, b) for a, b in zip(text.carve(range(examples), share), (train, reward), strict=True))
    if len(reward) > 1:  # drawn, not cut off one end
        assert reward.min() > 0 or reward.max() >= len(reward)
        assert reward.diff().max() > 1


def test_rows_keep_inputs_targets_and_lengths_together():
    split = Split(torch.arange(12).reshape(6, 2), torch.arange(6) * 10, torch.arange(6) + 1, "not these")
    part = text.rows_of(split, torch.tensor([4, 1]), "these")
    assert part.inputs.tolist() == [[8, 9], [2, 3]] and part.targets.tolist() == [40, 10]
    assert part.lengths.tolist() == [5, 2] and part.references == "these"


def test_a_batch_leaves_out_padding_that_none_of_its_rows_needs():
    split = get_task("glue_mrpc").training_data().train
    rows = split.lengths.argsort()[:9]
    inputs, targets = split.batch(rows)
    longest = int(split.lengths[rows].max())
    assert longest < int(split.lengths.max()) < split.inputs.shape[-1] == 128
    assert torch.equal(inputs, split.inputs[rows][:, :, :longest]) and torch.equal(targets, split.targets[rows])
    assert (split.inputs[rows][:, 1, longest:] == -1).all()


@pytest.mark.parametrize("task", [MRPC, STSB], ids=["classes", "scores"])
@every_encoder
def test_withheld_labels_are_named(task, encoder):
    with pytest.raises(UnlabelledDataError, match=rf"20 of 20.*'test'.*nyu-mll/glue \({task.name}\).*label -1"):
        glue.read(task, "test", encoder, 32)


def test_one_withheld_label_is_enough():
    text.require_labels(np.array([0, 1, 2]), "here")
    text.require_labels(np.array([0.0, 2.5]), "here")
    with pytest.raises(UnlabelledDataError, match="1 of 3 examples of here"):
        text.require_labels(np.array([0, -1, 2]), "here")


# ---------------------------------------------------------------------- models on packed examples


@every_encoder
@pytest.mark.parametrize("classes", [1, 3])
def test_padding_changes_no_logit(encoder, classes):
    split = glue.read(MRPC, "validation", encoder, 64)
    model = outspoken(SequenceClassifier(built(1, encoder, num_labels=classes)))
    rows = split.lengths.argsort()[:: len(split) // 15]
    with torch.no_grad():
        together = model(split.inputs[rows])
        alone = torch.cat([model(split.inputs[row : row + 1, :, : split.lengths[row]]) for row in rows])
        trimmed = model(split.batch(rows)[0])
    assert together.shape == ((len(rows),) if classes == 1 else (len(rows), classes))
    assert split.lengths[rows].unique().numel() > 5 and together.std() > 0.05
    torch.testing.assert_close(together, alone, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(trimmed, alone, rtol=0.0, atol=1e-5)


@every_encoder
def test_padding_changes_no_span_logit(encoder):
    split = squad.read("validation", encoder, 64, 16)
    model = outspoken(squad.SpanModel(built(1, encoder, SPANS)))
    rows = split.lengths.argsort()[:: len(split) // 10]
    with torch.no_grad():
        together = model(split.inputs[rows])
        for row, outputs in zip(rows.tolist(), together, strict=True):
            length = int(split.lengths[row])
            alone = model(split.inputs[row : row + 1, :, :length])[0]
            torch.testing.assert_close(outputs[:, :length], alone, rtol=0.0, atol=1e-5)
            assert torch.equal(outputs[2], split.inputs[row, 2].float())
    assert together[:, :2].std() > 0.05


@every_encoder
def test_the_model_is_called_as_transformers_calls_it(encoder, hub):
    split = glue.read(MRPC, "validation", encoder, 64)
    model = outspoken(SequenceClassifier(built(1, encoder)))
    data = load_hub_dataset(glue.HUB_ID, "mrpc")["validation"][:8]
    tokenizer = pretrained.load_tokenizer(pretrained.locate(encoder))
    encoded = tokenizer(
        data["sentence1"], data["sentence2"], padding=True, return_tensors="pt", return_token_type_ids=encoder == BERT
    )
    with torch.no_grad():
        expected = model.model(**encoded).logits
        unmasked = model.model(input_ids=encoded["input_ids"]).logits
        found = model(split.inputs[:8])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert (unmasked - expected).abs().max() > 1e-3  # mask and segments matter to this model


@every_encoder
def test_segments_reach_models_that_have_them(encoder):
    inputs = glue.read(MRPC, "validation", encoder, 64).inputs[:6]
    model = outspoken(SequenceClassifier(built(1, encoder)))
    flat, swapped = inputs.clone(), inputs.clone()
    flat[:, 1] = flat[:, 1].clamp(max=0)
    swapped[:, 1] = torch.where(inputs[:, 1] >= 0, 1 - inputs[:, 1], -1)
    with torch.no_grad():
        logits = [model(packed) for packed in (inputs, flat, swapped)]
    assert model.segments == (encoder == BERT)
    for other in logits[1:]:
        difference = (other - logits[0]).abs().max(dim=1).values
        assert (difference > 1e-3).all() if encoder == BERT else (difference == 0).all()


def test_a_model_without_segments_in_its_configuration_is_given_none():
    class Plain(nn.Module):
        config = object()

        def forward(self, input_ids, attention_mask):
            return input_ids, attention_mask

    packed = torch.tensor([[[5, 6, 0], [0, 1, -1]]], dtype=torch.int32)
    ids, mask = TextModel(Plain()).call(packed)
    assert ids.tolist() == [[5, 6, 0]] and mask.tolist() == [[1, 1, 0]] and ids.dtype == torch.int64


# ---------------------------------------------------------------------- pretrained weights


@pytest.mark.parametrize("cache", ["cold", "warm"])
@every_head
def test_building_restores_the_saved_weights_exactly_and_draws_the_head(hub, encoder, auto_class, cache):
    pretrained.template.cache_clear()
    first = built(3, encoder, auto_class)
    after_first = torch.get_rng_state()
    if cache == "cold":
        pretrained.template.cache_clear()
    second = built(3, encoder, auto_class)
    assert torch.equal(torch.get_rng_state(), after_first)  # as many numbers drawn
    other = built(4, encoder, auto_class)
    saved = saved_weights(hub, encoder)
    for name, weights in second.named_parameters():
        assert torch.equal(weights, first.get_parameter(name))
        if is_head(name, encoder, auto_class):
            assert name not in saved
            assert torch.equal(weights, other.get_parameter(name)) == name.endswith("bias")
        else:
            assert torch.equal(weights, saved[name]) and torch.equal(weights, other.get_parameter(name))
            assert weights.data_ptr() != first.get_parameter(name).data_ptr()
    restored = [name for name, _ in second.named_parameters() if not is_head(name, encoder, auto_class)]
    assert len(restored) > 30 and all(name in saved for name in restored)


@every_encoder
def test_loading_a_template_leaves_global_random_numbers_alone(encoder):
    pretrained.template.cache_clear()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    pretrained.template(CLASSIFIER, pretrained.locate(encoder), num_labels=2)
    assert torch.equal(torch.get_rng_state(), before)


@every_encoder
def test_training_a_model_leaves_its_template_untouched(encoder):
    source = pretrained.template(CLASSIFIER, pretrained.locate(encoder), num_labels=2)
    kept = copy.deepcopy(source.model)
    untrained = built(6, encoder)
    run = TrainingRun(
        get_task("glue_mrpc", batch_size=8, model={"encoder": encoder, "max_length": 32}), "adamw", 0.1, 0
    )
    start = copy.deepcopy(run.model)
    for _ in range(3):
        run.compute_gradient()
        run.apply_update()
    assert not any(torch.equal(a, b) for a, b in zip(run.model.parameters(), start.parameters(), strict=True))
    again = pretrained.template(CLASSIFIER, pretrained.locate(encoder), num_labels=2)
    assert again is source and same(source.model, kept) and same(built(6, encoder), untrained)
    assert all(parameter.grad is None for parameter in source.model.parameters())


def test_the_second_build_does_not_touch_the_disk(hub, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(hub / ROBERTA, folder)
    first = built(2, str(folder))
    shutil.rmtree(folder)
    assert same(built(2, str(folder)), first)
    with pytest.raises(DataNotFoundError):  # other settings: another template
        built(2, str(folder), num_labels=5)


def test_models_of_one_template_are_the_same_wherever_it_is_read_from(hub, tmp_path):
    shutil.copytree(hub / BERT, tmp_path / "encoder")
    for place in (str(tmp_path / "encoder"), f"{tmp_path}/encoder/", f"{BERT}/", str(hub / BERT)):
        assert same(built(2, place), built(2, BERT))


@every_head
def test_an_untrained_encoder_is_all_drawn(hub, encoder, auto_class):
    drawn, again, other = (built(seed, encoder, auto_class, pretrained=False) for seed in (3, 3, 4))
    restored, saved = built(3, encoder, auto_class), saved_weights(hub, encoder)
    shapes = [{name: weights.shape for name, weights in model.named_parameters()} for model in (drawn, restored)]
    assert shapes[0] == shapes[1] and same(drawn, again)
    for name, weights in drawn.named_parameters():
        if weights.ndim > 1:
            assert not torch.equal(weights, other.get_parameter(name))
            assert name not in saved or not torch.equal(weights, saved[name])


@pytest.mark.parametrize("pretrained_weights", [True, False])
@every_head
def test_the_head_is_drawn_with_the_initializer_range_of_the_configuration(
    hub, tmp_path, encoder, auto_class, pretrained_weights
):
    shutil.copytree(hub / encoder, tmp_path / "encoder")
    file = tmp_path / "encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "initializer_range": 0.3}))
    drawn = []
    for seed in range(60):
        model = built(seed, str(tmp_path / "encoder"), auto_class, pretrained_weights)
        head = {name: p for name, p in model.named_parameters() if is_head(name, encoder, auto_class)}
        assert all((weights == 0).all() for name, weights in head.items() if name.endswith("bias"))
        drawn += [weights.detach().flatten() for name, weights in head.items() if name.endswith("weight")]
    numbers = torch.cat(drawn).numpy()
    assert len(numbers) >= 60 * 32 and len(np.unique(numbers)) > 0.99 * len(numbers)
    assert kstest(numbers / 0.3, "norm").pvalue > 0.01


def test_templates_and_models_keep_the_settings_apart():
    two, three = built(1, ROBERTA, num_labels=2), built(1, ROBERTA, num_labels=3)
    assert two.classifier.out_proj.out_features == 2 and three.classifier.out_proj.out_features == 3
    assert built(1, ROBERTA, num_labels=2).classifier.out_proj.out_features == 2


def test_reading_a_model_reports_nothing_and_leaves_logging_as_it_was(capfd):
    from transformers.utils import logging as hf_logging

    pretrained.template.cache_clear()
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    built(0, BERT)
    built(0, BERT, pretrained=False)
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""


# ---------------------------------------------------------------------- what is missing is named


def test_a_folder_under_the_data_root_comes_before_the_hub(hub, tmp_path, monkeypatch):
    assert pretrained.locate(ROBERTA) == str(hub / ROBERTA)
    assert pretrained.locate(str(tmp_path)) == str(tmp_path)
    assert pretrained.locate("nobody/nothing") == "nobody/nothing"
    monkeypatch.delenv("GNS_DATA_ROOT")
    assert pretrained.locate(ROBERTA) == ROBERTA


@pytest.mark.parametrize("encoder", [ROBERTA, BERT])
def test_missing_weights_are_named_with_the_ways_out(hub, tmp_path, monkeypatch, encoder):
    shutil.copytree(hub / encoder, tmp_path / "some" / "encoder")
    (tmp_path / "some" / "encoder" / "model.safetensors").unlink()
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataNotFoundError) as caught:
        built(0, "some/encoder")
    for words in ("No weights for 'some/encoder'", "$GNS_DATA_ROOT/some/encoder", "holds some/encoder/", "network"):
        assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert built(0, "some/encoder", pretrained=False) is not None  # the configuration is there
    assert pretrained.load_tokenizer(pretrained.locate("some/encoder")) is not None


def test_a_missing_or_damaged_configuration_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    shutil.copytree(hub / BERT, tmp_path / "some/encoder")
    (tmp_path / "some/encoder/config.json").write_text("{")
    for trained in (True, False):
        with pytest.raises(DataNotFoundError, match=r"some/encoder.*config\.json.*GNS_DATA_ROOT"):
            built(0, "some/encoder", pretrained=trained)
    (tmp_path / "some/encoder/config.json").unlink()
    with pytest.raises(DataNotFoundError, match=r"No configuration for .*some/encoder"):
        built(0, "some/encoder", pretrained=False)


def test_a_tokenizer_whose_words_are_missing_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    shutil.copytree(hub / BERT, tmp_path / "some/encoder")
    (tmp_path / "some/encoder/tokenizer.json").unlink()
    with pytest.raises(DataNotFoundError) as caught:
        pretrained.load_tokenizer(pretrained.locate("some/encoder"))
    for words in ("No tokenizer for 'some/encoder'", "$GNS_DATA_ROOT/some/encoder", "network"):
        assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("root", ["set", "unset"])
@pytest.mark.parametrize("encoder", ["FacebookAI/roberta-bse", "/no/such/folder", "two words/and more"])
def test_an_encoder_that_is_nowhere_is_named_with_the_ways_out(hub, monkeypatch, encoder, root):
    if root == "unset":
        monkeypatch.delenv("GNS_DATA_ROOT")
    looked = f"no folder $GNS_DATA_ROOT/{encoder}" if root == "set" else "GNS_DATA_ROOT is not set"
    for what, load in (
        ("tokenizer", lambda: pretrained.load_tokenizer(pretrained.locate(encoder))),
        ("weights", lambda: built(0, encoder)),
        ("configuration", lambda: built(0, encoder, pretrained=False)),
    ):
        with pytest.raises(DataNotFoundError) as caught:
            load()
        for words in (f"No {what} for '{encoder}'", looked, "GNS_DATA_ROOT", "network"):
            assert words in str(caught.value)


def test_an_error_is_not_remembered(hub, tmp_path):
    place = str(tmp_path / "later")
    for load in (lambda: pretrained.load_tokenizer(place), lambda: built(0, place)):
        with pytest.raises(DataNotFoundError):
            load()
    shutil.copytree(hub / ROBERTA, place)
    assert len(pretrained.load_tokenizer(place)) == len(pretrained.load_tokenizer(pretrained.locate(ROBERTA)))
    assert same(built(0, place), built(0, ROBERTA))


# ---------------------------------------------------------------------- weight decay


@every_head
def test_weights_of_layers_and_embeddings_decay_and_nothing_else(encoder, auto_class):
    model = TextModel(built(0, encoder, auto_class))
    decaying, fixed = text.decay_weights_only(model)
    assert set(decaying) == {"params"} and fixed["weight_decay"] == 0.0
    kinds = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kinds[parameter] = (type(module), name)
    expected = {p for p, (kind, name) in kinds.items() if name == "weight" and kind in (nn.Linear, nn.Embedding)}
    rest = {p for p, (kind, name) in kinds.items() if name == "bias" or kind is nn.LayerNorm}
    assert set(decaying["params"]) == expected and set(fixed["params"]) == rest and not expected & rest
    assert len(decaying["params"]) + len(fixed["params"]) == len(list(model.parameters())) == len(kinds)


def test_frozen_parameters_are_given_to_no_optimizer():
    model = TextModel(built(0, BERT))
    model.model.bert.requires_grad_(False)
    groups = text.decay_weights_only(model)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_adamw_shrinks_matrices_and_neither_biases_nor_norms():
    run = TrainingRun(get_task("glue_mrpc", batch_size=8, model={"max_length": 32}), "adamw", 0.5, seed=0)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.01, 0.0]
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    run.compute_gradient()
    for parameter in run.model.parameters():
        parameter.grad.zero_()
    run.apply_update()
    for old, parameter in zip(before, run.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.5 * 0.01) if parameter.ndim > 1 else old)


@pytest.mark.parametrize("mode", ["profile", "recursive", "anchored"])
def test_the_environment_keeps_the_ratio_of_the_groups_rates(mode):
    def groups(model):
        decaying, fixed = text.decay_weights_only(model)
        return [decaying, {**fixed, "lr": 3e-4}]

    task = replace(get_task("glue_mrpc", batch_size=4, model={"max_length": 16}), parameter_groups=groups)
    config = EnvConfig(
        optimizers=None, budgets=(8, 8), decision=DecisionConfig(mode=mode, num_decisions=4), reward_probability=0.0
    )
    env = LearningRateEnv([task], config)
    env.reset(seed=1, options={"learning_rate": 1e-3})
    rng, rates, terminated = np.random.default_rng(2), [], False
    while not terminated:
        *_, terminated, _, _ = env.step(rng.uniform(-0.5, 0.5, 1))
        rates.append([group["lr"] for group in env.run.optimizer.param_groups])
    assert len({rate for rate, _ in rates}) == 4
    assert [other / rate for rate, other in rates] == pytest.approx([0.3] * 4)
    assert [group["weight_decay"] for group in env.run.optimizer.param_groups] == [0.01, 0.0]


# ---------------------------------------------------------------------- batches of examples of one length


def passes(task, seed, updates, monkeypatch):
    """Rows of the batches that a run trains on."""
    run = TrainingRun(task, "adamw", 1e-4, seed=seed)
    seen, batch = [], Split.batch

    def recording(split, rows):
        if split is run._train:
            seen.append(rows.clone())
        return batch(split, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Split, "batch", recording)
        for _ in range(updates):
            run.compute_gradient()
    return seen


def test_a_pass_uses_every_row_at_most_once_and_needs_little_padding(monkeypatch):
    task = get_task("glue_mrpc", batch_size=9, model={"max_length": 64})
    lengths = task.training_data().train.lengths
    seen = passes(task, 5, 110, monkeypatch)
    assert torch.cat(seen).unique().numel() == 990 == len(lengths)
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in seen)
    shuffled = torch.randperm(990, generator=torch.Generator().manual_seed(0)).split(9)
    at_random = sum(int(lengths[rows].max()) * len(rows) for rows in shuffled)
    needed = int(lengths.sum())
    assert padded - needed < 0.1 * (at_random - needed)


def test_passes_differ_and_follow_the_seed(monkeypatch):
    task = get_task("glue_mrpc", batch_size=90, model={"max_length": 16})
    seen = torch.cat(passes(task, 5, 33, monkeypatch)).reshape(3, -1)
    assert all(torch.equal(rows.sort().values, torch.arange(990)) for rows in seen)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    sets = [{frozenset(rows.tolist()) for rows in one.reshape(11, 90)} for one in seen]
    assert sets[0] != sets[1]
    again, other = (torch.cat(passes(task, seed, 11, monkeypatch)) for seed in (5, 6))
    assert torch.equal(again, seen[0]) and not torch.equal(other, seen[0])


@pytest.mark.parametrize(("examples", "size"), [(990, 8), (400, 8), (990, 32), (7, 7), (130, 1), (5, 2)])
def test_batches_of_a_stretch_are_sorted_by_length_and_then_shuffled(examples, size):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 60, (examples,), generator=generator)
    order = torch.randperm(examples, generator=generator)
    grouped = group_by_length(order, lengths, size, generator)
    assert len(grouped) == examples // size * size == grouped.unique().numel()
    for start in range(0, len(grouped), 50 * size):
        stretch = grouped[start : start + 50 * size]
        assert set(stretch.tolist()) == set(order[: len(grouped)][start : start + 50 * size].tolist())
        batches = [lengths[rows] for rows in stretch.split(size)]
        assert all((rows.diff() <= 0).all() for rows in batches)
        tops = [int(rows.max()) for rows in batches]
        by_length = sorted(batches, key=lambda rows: (int(rows.max()), int(rows.min())))
        assert all(a.max() <= b.min() for a, b in pairwise(by_length))
        if len(tops) > 5:
            assert tops != sorted(tops) and tops != sorted(tops, reverse=True)


def test_a_run_on_text_goes_back_across_the_end_of_a_pass():
    run = TrainingRun(get_task("glue_mrpc", batch_size=400, model={"max_length": 16}), "adamw", 1e-3, seed=8)

    def losses(updates):
        return [run.compute_gradient().item() for _ in range(updates)]

    for _ in range(3):
        go_back = run.position()
        first = losses(4)
        go_back()
        assert losses(4) == first and len(set(first)) == 4
        losses(1)


@pytest.mark.parametrize("batch_size", [990, 5000])
def test_a_batch_of_text_is_at_most_the_whole_training_split(batch_size, monkeypatch):
    task = get_task("glue_mrpc", batch_size=batch_size, model={"max_length": 16})
    for rows in passes(task, 1, 2, monkeypatch):
        assert torch.equal(rows.sort().values, torch.arange(990))


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("max_length", [0, -1, 3, 64.0, "64", True, None])
def test_a_length_that_holds_no_sentences_is_refused(max_length):
    with pytest.raises(InvalidSettingError, match="max_length is"):
        get_task("glue_mrpc", model={"max_length": max_length}).training_data()


@pytest.mark.parametrize(("encoder", "positions"), [(ROBERTA, 448), (BERT, 450)])
def test_an_encoder_is_asked_for_no_more_positions_than_it_has(encoder, positions):
    assert build_encoder(CLASSIFIER, encoder, True, max_length=positions)
    for pretrained_weights in (True, False):
        with pytest.raises(InvalidSettingError, match=f"max_length is {positions + 1}; expected at most {positions}"):
            build_encoder(CLASSIFIER, encoder, pretrained_weights, max_length=positions + 1)


@pytest.mark.parametrize("wrong", ["false", 1, None])
def test_pretrained_is_true_or_false(wrong):
    with pytest.raises(InvalidSettingError, match="pretrained is"):
        build_encoder(CLASSIFIER, BERT, wrong)


@pytest.mark.parametrize("encoder", ["", None, 3])
def test_an_encoder_has_a_name(encoder):
    with pytest.raises(InvalidSettingError, match="encoder is"):
        get_task("glue_mrpc", model={"encoder": encoder}).training_data()


def test_a_folder_without_a_vocabulary_is_refused(hub, tmp_path):
    shutil.copytree(hub / BERT, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    with pytest.raises(DataNotFoundError, match="No tokenizer"):
        get_task("glue_mrpc", model={"encoder": str(tmp_path / "bare")}).training_data()


def test_damaged_weights_are_named(hub, tmp_path):
    shutil.copytree(hub / BERT, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataNotFoundError, match="No weights"):
        build_encoder(CLASSIFIER, str(tmp_path / "cut"), True)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_head_that_was_trained_before_is_drawn_anew(tmp_path, classes):
    torch.manual_seed(0)
    build_encoder(CLASSIFIER, BERT, True, num_labels=classes).save_pretrained(tmp_path / "tuned")
    one, other = (seeded(1, str(tmp_path / "tuned")), seeded(2, str(tmp_path / "tuned")))
    assert one.classifier.out_features == 2 and not torch.equal(one.classifier.weight, other.classifier.weight)
    assert torch.equal(one.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


def seeded(seed, encoder):
    torch.manual_seed(seed)
    return build_encoder(CLASSIFIER, encoder, True, num_labels=2)


def test_models_from_a_configuration_are_in_single_precision(hub, tmp_path):
    shutil.copytree(hub / BERT, tmp_path / "half")
    file = tmp_path / "half" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "bfloat16"}))
    for pretrained_weights in (True, False):
        model = build_encoder(CLASSIFIER, str(tmp_path / "half"), pretrained_weights)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_data_root_of_other_files_gives_other_data(hub, tmp_path, monkeypatch):
    before = load_hub_dataset(glue.HUB_ID, "mrpc")["train"]["sentence1"][:]
    for folder in ("one", "other"):
        write(
            tmp_path / folder / "nyu-mll/glue/mrpc/train-00000-of-00001.parquet",
            {"sentence1": [folder], "sentence2": ["x"], "label": [0]},
        )
        (tmp_path / folder / "nyu-mll/glue/README.md").write_text(card({"mrpc": ["train"]}))
        monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path / folder))
        assert load_hub_dataset(glue.HUB_ID, "mrpc")["train"]["sentence1"][:] == [folder]
    monkeypatch.setenv("GNS_DATA_ROOT", str(hub))
    assert load_hub_dataset(glue.HUB_ID, "mrpc")["train"]["sentence1"][:] == before


def test_what_the_training_split_repeats_is_not_in_the_reward_split():
    contents = [number % 40 for number in range(100)]  # 20 three times, 20 twice
    train, reward = text.carve(contents, 0.3)
    assert sorted([*train.tolist(), *reward.tolist()]) == list(range(100))
    assert not {contents[row] for row in train.tolist()} & {contents[row] for row in reward.tolist()}
