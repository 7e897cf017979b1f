"""Adapters of PEFT: what is trained is what is seen and scheduled; the base model stays as it is."""

import io

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from scheduler_loop import ByHand, T, Watch, lively_policy, make_scheduler
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

ADAPTERS = {
    "lora": lambda: LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.1),
    "dora": lambda: LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="SEQ_CLS"),
    "ia3": lambda: IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS"
    ),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"),
}


def adapted(kind: str) -> nn.Module:
    torch.manual_seed(4)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=3, **shape)
    return get_peft_model(BertForSequenceClassification(config), ADAPTERS[kind]())


def words(number: int) -> dict[str, Tensor]:
    """Batch of a stream that is a function of its number."""
    ids = torch.randint(1, 30, (8, 6), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Run:
    def __init__(self, kind: str) -> None:
        self.model = adapted(kind)
        head = [p for name, p in trained(self.model).items() if "modules_to_save" in name]
        rest = [p for name, p in trained(self.model).items() if "modules_to_save" not in name]
        self.optimizer = torch.optim.AdamW([{"params": rest}, {"params": head, "lr": 1e-3}], lr=1e-2)
        self.scheduler = make_scheduler(self.optimizer, self.model)
        self.watch = Watch(self.optimizer)

    def train(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            loss = self.model(**words(number)).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()  # the loss is in the model's output


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapters_rates_are_the_decision_cores_and_its_base_model_stays(kind):
    model = adapted(kind)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    by_hand, watch = ByHand(optimizer, model, lively_policy()), Watch(optimizer)
    before = {name: value.clone() for name, value in model.named_parameters()}
    torch.manual_seed(5)
    for number in range(T):
        loss = model(**words(number)).loss
        optimizer.zero_grad()
        loss.backward()
        by_hand.before(loss)
        optimizer.step()
        by_hand.after(loss)

    run = Run(kind)
    run.optimizer = torch.optim.AdamW(trained(run.model).values(), lr=1e-2)
    run.scheduler.remove()
    run.scheduler, run.watch = make_scheduler(run.optimizer, run.model), Watch(run.optimizer)
    torch.manual_seed(5)
    run.train(0, T)
    assert run.watch.rates == watch.rates and len(run.scheduler.history) == 5
    assert len({rates[0] for rates in watch.rates}) > 4
    for name, value in run.model.named_parameters():
        assert torch.equal(value, dict(model.named_parameters())[name])
        assert torch.equal(value, before[name]) is not (name in trained(run.model)), name


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_graph_holds_what_is_trained_and_nothing_else(kind):
    run = Run(kind)
    run.train(0, 1)
    in_graph = [name for names in run.scheduler.graph.parameters for name in names]
    assert sorted(in_graph) == sorted(trained(run.model))
    assert run.scheduler.graph.num_edges >= run.scheduler.graph.num_nodes - 1


def test_low_rank_layers_follow_one_another_and_know_that_they_are_of_attention():
    run = Run("lora")
    run.train(0, 1)
    graph = run.scheduler.graph
    query = "base_model.model.bert.encoder.layer.0.attention.self.query"
    down, up = graph.names.index(f"{query}.lora_A.default"), graph.names.index(f"{query}.lora_B.default")
    assert (down, up) in set(map(tuple, graph.edges.T.tolist()))
    assert graph.types[down] == graph.types[up] == "attention"
    assert "base_model.model.bert.encoder.layer.0" in graph.block_names


@pytest.mark.parametrize("n", [0, 1, 5, 12, T])
def test_a_run_goes_on_from_its_adapter_alone_to_the_last_bit(n):
    whole = Run("lora")
    torch.manual_seed(6)
    whole.train(0, T)
    first = Run("lora")
    torch.manual_seed(6)
    first.train(0, n)
    torch.save(
        {
            "adapter": get_peft_model_state_dict(first.model),
            "optimizer": first.optimizer.state_dict(),
            "scheduler": first.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        },
        file := io.BytesIO(),
    )
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second = Run("lora")  # the same base model, and a new adapter
    set_peft_model_state_dict(second.model, state["adapter"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["random"])
    second.train(n, T)
    assert first.watch.rates + second.watch.rates == whole.watch.rates
    assert all(torch.equal(p, trained(second.model)[name]) for name, p in trained(whole.model).items())
    assert whole.watch.rates[0][0] == pytest.approx(10 * whole.watch.rates[0][1])  # groups keep their ratio
