"""Made-up text data and tiny encoders in the Hub's layout: words in no order, RoBERTa and BERT of few weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [start + middle + end for start in "bdgklm" for middle in "aeiou" for end in ("n", "rt")]
TRAIN, REPORT = 1100, 110
QUESTIONS = 900, 100  # training and development
TEXT_TASKS = ("glue_", "squad")
REAL_VALUED = ("stsb",)


def make_text_hub(root: Path) -> None:
    """Write GLUE, SQuAD and two encoders under a data root."""
    from envs.tasks.glue import GLUE_TASKS

    rng = np.random.default_rng(1)
    made = sentences(rng)
    for task in GLUE_TASKS:
        parts = {"train": TRAIN, **dict.fromkeys(task.report, REPORT), "test": 20}
        for part, count in parts.items():
            columns: dict[str, Any] = {key: [next(made) for _ in range(count)] for key in task.keys}
            labels = np.arange(count) % max(task.classes, 2)
            columns["label"] = rng.uniform(0, 5, count).round(2) if task.name in REAL_VALUED else labels
            if part == "test":
                columns["label"] = np.full(count, -1)  # withheld, as GLUE's are
            write(root / "nyu-mll/glue" / task.name / f"{part}-00000-of-00001.parquet", columns)
    names = {task.name: ["train", *task.report, "test"] for task in GLUE_TASKS}
    (root / "nyu-mll/glue/README.md").write_text(card(names))
    for part, count in zip(("train", "validation"), QUESTIONS, strict=True):
        write(root / "rajpurkar/squad/plain_text" / f"{part}-00000-of-00001.parquet", squad(rng, made, count))
    (root / "rajpurkar/squad/README.md").write_text(card({"plain_text": ["train", "validation"]}))
    make_roberta(root / "FacebookAI/roberta-base")
    make_bert(root / "google-bert/bert-base-uncased")


def sentences(rng: np.random.Generator) -> Iterator[str]:
    """Sentences of 3 to 14 words, none twice."""
    seen = set()
    while True:
        text = " ".join(rng.choice(WORDS, rng.integers(3, 15))) + "."
        if text not in seen:
            seen.add(text)
            yield text


def squad(rng: np.random.Generator, made: Iterator[str], count: int) -> dict[str, list[Any]]:
    """Four questions to a paragraph of one to six sentences; answers of one to three words."""
    columns: dict[str, list[Any]] = {"id": [], "title": [], "context": [], "question": [], "answers": []}
    for number in range(count):
        if number % 4 == 0:
            paragraph = " ".join(next(made) for _ in range(rng.integers(1, 7)))
        words = paragraph.split(" ")
        first = int(rng.integers(len(words)))
        text = " ".join(words[first : first + int(rng.integers(1, 4))]).rstrip(".")
        begin = len(" ".join(words[:first])) + (first > 0)
        assert paragraph[begin : begin + len(text)] == text
        columns["id"].append(str(number))
        columns["title"].append("t")
        columns["context"].append(paragraph)
        columns["question"].append(next(made).replace(".", "?"))
        columns["answers"].append({"text": [text, "the " + text], "answer_start": [begin, begin]})
    return columns


def write(path: Path, columns: dict[str, Any]) -> None:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(path)


def card(configurations: dict[str, list[str]]) -> str:
    lines = ["---", "configs:"]
    for name, parts in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for part in parts:
            lines += [f"  - split: {part}", f"    path: {name}/{part}-*"]
    return "\n".join([*lines, "---", ""])


def make_roberta(folder: Path) -> None:
    """A RoBERTa with random weights and a byte-level BPE tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import RobertaConfig, RobertaForMaskedLM

    special = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=400, special_tokens=list(special.values()))
    backend._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = RobertaConfig(pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, **small(420, 450))
    save(folder, backend._tokenizer, RobertaForMaskedLM, config, {**special, "cls": "<s>", "sep": "</s>"})


def make_bert(folder: Path) -> None:
    """A BERT with random weights and a tokenizer of whole words."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertForMaskedLM

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    backend = BertWordPieceTokenizer(lowercase=True)
    backend.train_from_iterator([" ".join(WORDS) + " ."] * 3, vocab_size=300, special_tokens=list(special.values()))
    sep, cls = ((special[name], backend.token_to_id(special[name])) for name in ("sep", "cls"))
    backend._tokenizer.post_processor = BertProcessing(sep, cls)
    config = BertConfig(pad_token_id=0, type_vocab_size=2, **small(320, 450))
    save(folder, backend._tokenizer, BertForMaskedLM, config, special)


def small(vocabulary: int, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.1,  # so few weights need to be larger, or all inputs look alike
    }


def save(folder: Path, backend: Any, model: Callable[..., Any], config: Any, special: dict[str, str]) -> None:
    import torch
    from transformers import PreTrainedTokenizerFast

    names = {f"{name}_token": token for name, token in special.items()}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config).save_pretrained(folder)
