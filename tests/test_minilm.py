"""A real pretrained encoder through all of it: weights, tokens, layer graph, fine-tuning, an episode."""

import copy
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from minilm import bert_folder, roberta_folder
from safetensors.torch import load_file

from envs import EnvConfig, LearningRateEnv, TrainingRun, get_task
from envs.passes import evaluate_split
from envs.tasks import TrainingData, pretrained, text
from envs.tasks.text import SequenceClassifier, build_encoder
from gns import DecisionConfig, GNSPolicy, PolicyConfig, layer_graph

CLASSIFIER = "AutoModelForSequenceClassification"
PARAPHRASES = [
    ("A man is playing a guitar on stage.", "Someone plays the guitar in front of an audience."),
    ("The company reported higher profits this quarter.", "Quarterly earnings of the firm went up."),
    ("How do I reset my password?", "I forgot my login credentials and need new ones."),
]
PAIRS = [*PARAPHRASES, ("Short.", "The committee, which had met for days, postponed its decision until next spring.")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {"bert": bert_folder(), "roberta": roberta_folder(tmp_path_factory.mktemp("minilm") / "roberta")}


def classifier(folder, seed=0):
    torch.manual_seed(seed)
    return build_encoder(CLASSIFIER, folder, pretrained=True, num_labels=2)


def tokens(folder, *texts):
    tokenizer = pretrained.load_tokenizer(folder)
    return tokenizer(*map(list, texts), padding=True, return_tensors="pt", return_token_type_ids=True)


def graph_of(model, folder):
    encoded = tokens(folder, *zip(*PAIRS, strict=True))
    packed = torch.stack(
        [encoded["input_ids"], torch.where(encoded["attention_mask"] == 1, encoded["token_type_ids"], -1)], dim=1
    )
    logits = SequenceClassifier(model)(packed.to(torch.int32))
    return layer_graph(model, torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1, 1, 0])))


def small_task(folder, batch_size=8):
    return get_task("glue_mrpc", model={"encoder": folder, "max_length": 32}, batch_size=batch_size)


# ---------------------------------------------------------------------- weights


def test_all_weights_but_the_head_are_the_published_ones(folders):
    model, saved = classifier(folders["bert"]), load_file(Path(folders["bert"]) / "model.safetensors")
    assert sum(p.numel() for p in model.bert.parameters()) == 22_713_216
    assert sum(p.numel() for p in model.parameters()) == 22_713_216 + 2 * 384 + 2
    for name, weights in model.bert.named_parameters():
        assert torch.equal(weights, saved[name])
    assert "pooler.dense.weight" in dict(model.bert.named_parameters())
    source = pretrained.template(CLASSIFIER, folders["bert"], num_labels=2)
    assert source.fresh == {"classifier.bias", "classifier.weight"}


def test_paraphrases_are_closer_than_other_sentences(folders):
    model = classifier(folders["bert"]).eval()
    sentences = [sentence for pair in PARAPHRASES for sentence in pair]
    encoded = tokens(folders["bert"], sentences)
    with torch.no_grad():
        states, mask = model.bert(**encoded).last_hidden_state, encoded["attention_mask"][:, :, None]
    means = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
    similarity = means @ means.T
    for row in range(6):
        partner = row ^ 1
        others = [float(similarity[row, k]) for k in range(6) if k not in (row, partner)]
        assert similarity[row, partner] > 0.4 and similarity[row, partner] > max(others) + 0.2


def test_tokens_are_cut_and_padded_as_the_task_says_and_not_as_the_files_do(folders):
    # The tokenizer's file asks for 128 tokens, no more and no fewer.
    tokenizer = pretrained.load_tokenizer(folders["bert"])
    data = datasets.Dataset.from_dict({"sentence": ["Short.", "the same word " * 60]})

    def encode(batch):
        encoded = tokenizer(batch["sentence"], truncation=True, max_length=200, return_token_type_ids=True)
        return {"ids": encoded["input_ids"], "segments": encoded["token_type_ids"]}

    padded, lengths = text.pad(text.tokenize(data, tokenizer, "test", encode), {"ids": 0, "segments": -1}, 200)
    assert lengths.tolist() == [4, 182]
    assert tokenizer.decode(padded[0, 0, :4]) == "[CLS] short. [SEP]" and (padded[0, 1, 4:] == -1).all()


def test_roberta_with_berts_weights_computes_what_bert_does(folders):
    encoded = tokens(folders["bert"], *zip(*PAIRS, strict=True))
    assert all(torch.equal(tokens(folders["roberta"], *zip(*PAIRS, strict=True))[k], encoded[k]) for k in encoded)
    mask = encoded["attention_mask"].bool()
    assert not mask.all() and (encoded["token_type_ids"] == 1).any(dim=1).all()
    states = {}
    for kind, folder in folders.items():
        model = pretrained.template("AutoModel", folder).new().eval()
        assert type(model).__name__ == {"bert": "BertModel", "roberta": "RobertaModel"}[kind]
        assert sum(p.numel() for p in model.parameters()) == 22_713_216 + (384 if kind == "roberta" else 0)
        with torch.no_grad():
            states[kind] = model(**encoded)
            flat = model(**{**encoded, "token_type_ids": torch.zeros_like(encoded["token_type_ids"])})
        assert (flat.last_hidden_state - states[kind].last_hidden_state)[mask].abs().max() > 0.05
    for part in ("last_hidden_state", "pooler_output"):
        one, other = (getattr(states[kind], part) for kind in ("bert", "roberta"))
        if part == "last_hidden_state":
            one, other = one[mask], other[mask]
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-5)
    assert states["bert"].last_hidden_state[mask].std() > 0.1


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("bert", ["bert.pooler.dense", "classifier"]),
        ("roberta", ["classifier.dense", "classifier.out_proj"]),  # a head of its own, and no pooler
    ],
)
def test_the_layer_graph_of_a_classifier_holds_every_layer(folders, kind, last):
    model = classifier(folders[kind])
    graph = graph_of(model, folders[kind])
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert graph.num_nodes == len(owners) == 54 > 50 and set(graph.names) == owners
    assert sum(graph.sizes) == sum(p.numel() for p in model.parameters())
    assert list(graph.names[-2:]) == last and graph.types[-1] == "linear"
    edges = {(graph.names[a], graph.names[b]) for a, b in graph.edges.T}
    layer = f"{kind}.encoder.layer.3"
    for projection in ("query", "key", "value"):
        assert (f"{layer}.attention.self.{projection}", f"{layer}.attention.output.dense") in edges
        assert (f"{kind}.encoder.layer.2.output.LayerNorm", f"{layer}.attention.self.{projection}") in edges
    assert (f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm") in edges  # the residual
    assert tuple(last) in edges and graph.types.count("embedding") == 3 and graph.types.count("norm") == 13
    assert graph_of(classifier(folders[kind], seed=1), folders[kind]) == graph


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_fine_tuning_lowers_the_loss_and_leaves_the_template_untouched(folders, kind):
    task = small_task(folders[kind])
    data = task.training_data()
    eight = text.rows_of(data.train, torch.arange(8))
    assert eight.targets.unique().numel() == 2
    fixed = replace(task, load_training_data=lambda **_: TrainingData(eight, eight))
    source = pretrained.template(CLASSIFIER, folders[kind], num_labels=2)
    kept = copy.deepcopy(source.model.state_dict())
    run = TrainingRun(fixed, "adamw", 1e-4, seed=0)
    untrained = copy.deepcopy(run.model.state_dict())
    before = evaluate_split(run.model, fixed, eight)
    for _ in range(8):
        run.compute_gradient()
        run.apply_update()
    after = evaluate_split(run.model, fixed, eight)
    assert after.loss < 0.9 * before.loss
    assert pretrained.template(CLASSIFIER, folders[kind], num_labels=2) is source
    assert all(torch.equal(kept[name], weights) for name, weights in source.model.state_dict().items())
    again = TrainingRun(fixed, "adamw", 1e-4, seed=0).model.state_dict()
    assert all(torch.equal(untrained[name], weights) for name, weights in again.items())


def test_an_untrained_policy_drives_an_episode_to_its_end(folders):
    task = small_task(folders["bert"], batch_size=4)
    data = task.training_data()
    few = TrainingData(data.train, text.rows_of(data.reward, torch.arange(8)))
    decision = DecisionConfig(num_decisions=5)
    torch.manual_seed(0)
    policy = GNSPolicy(PolicyConfig(decision=decision))
    config = EnvConfig(optimizers=None, budgets=(10, 10), decision=decision, reward_probability=0.0)
    env = LearningRateEnv([replace(task, load_training_data=lambda **_: few)], config)
    instance, info = env.reset(seed=1)
    assert len(instance.nodes) == 54 and info["optimizer"] == "adamw"
    actions, terminated = [], False
    while not terminated:
        assert env.observation_space.contains(instance)
        actions.append(policy.act(env.observation))
        instance, _, terminated, _, info = env.step(np.array([actions[-1]]))
    assert len(actions) == 5 and all(-1.0 <= action <= 1.0 for action in actions)
    assert info["update"] == 10 == len(env.rates) and not info["diverged"] and np.isfinite(info["reward_loss"])
