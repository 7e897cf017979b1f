"""SQuAD v1.1 (Rajpurkar et al., 2016), extractive question answering: the AutoLRS paper's task for BERT.

A question whose paragraph is longer than the encoder's window becomes several overlapping windows; each window is an
example. The reward split is a tenth of the training questions' paragraphs, the published development split is the test
split. Exact match and F1 follow the published evaluation: answers lower-cased, without punctuation and articles.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.tasks.base import FINE_TUNING, Split, Task, TrainingData, register_task
from envs.tasks.hub import load_hub_split
from envs.tasks.pretrained import load_tokenizer, locate
from envs.tasks.text import (
    BATCH_SIZE_IN_EVALUATION,
    TextModel,
    build_encoder,
    carve,
    decay_weights_only,
    pad,
    require_known_tokens,
    require_text_settings,
    rows_of,
    tokenize,
)
from gns.errors import InvalidSettingError

HUB_ID = "rajpurkar/squad"
ENCODER = "google-bert/bert-base-uncased"
LONGEST_ANSWER = 30  # tokens, as in the BERT paper's code
_REWARD_SHARE = 0.1


@dataclass(frozen=True)
class Questions:
    """What answers to N windows are compared with.

    :param question: int64 (N,), the question of each window, an index into ``answers``
    :param offsets: int32 (N, 2, max_length), first and last character (exclusive) of each token in its paragraph
    :param contexts: paragraph of each question
    :param answers: accepted answers to each question
    """

    question: np.ndarray
    offsets: np.ndarray
    contexts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]


class SpanModel(TextModel):
    """Start logits, end logits and 1 at tokens of the paragraph: float (B, 3, length) of packed (B, 3, length)."""

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits and the paragraph's tokens; logits of padding are as low as can be, out of any softmax."""
        answer = self.call(packed)
        padding, lowest = packed[:, 1] < 0, torch.finfo(answer.start_logits.dtype).min
        logits = [one.masked_fill(padding, lowest) for one in (answer.start_logits, answer.end_logits)]
        return torch.stack([*logits, packed[:, 2].to(logits[0].dtype)], dim=1)


def span_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of the cross-entropies of first and last token.

    :param outputs: (B, 3, length), see :class:`SpanModel`
    :param targets: int64 (B, 2), first and last token of the answer; 0, the special first token, where there is none
    """
    losses = [nn.functional.cross_entropy(outputs[:, k], targets[:, k]) for k in range(2)]
    return (losses[0] + losses[1]) / 2.0


def best_spans(outputs: Tensor) -> Tensor:
    """Return first token, last token and score of the best answer in each window, float (B, 3).

    Answers lie within the paragraph, end after they start, and have at most :data:`LONGEST_ANSWER` tokens.
    """
    start, end, context = outputs.float().unbind(dim=1)
    length = start.shape[-1]
    allowed = torch.ones(length, length, dtype=torch.bool, device=start.device).triu().tril(LONGEST_ANSWER - 1)
    inside = context > 0
    scores = start[:, :, None] + end[:, None, :]
    scores = scores.masked_fill(~(allowed & inside[:, :, None] & inside[:, None, :]), -torch.inf)
    best, place = scores.flatten(1).max(dim=1)
    return torch.stack([(place // length).float(), (place % length).float(), best], dim=1)


def answers(spans: Tensor, questions: Questions) -> list[str]:
    """Return the text answered to each question: of its windows' best spans the one with the highest score.

    :param spans: (N, 3), see :func:`best_spans`
    """
    found = spans.cpu().double().numpy()
    order = np.argsort(np.nan_to_num(found[:, 2], nan=-np.inf), kind="stable")  # a question's best window comes last
    window = dict(zip(questions.question[order].tolist(), order.tolist(), strict=True))
    texts = []
    for question, context in enumerate(questions.contexts):
        row = window[question]
        first, last = int(found[row, 0]), int(found[row, 1])
        texts.append(context[questions.offsets[row, 0, first] : questions.offsets[row, 1, last]])
    return texts


def normalise(text: str) -> list[str]:
    """Return the words of an answer as the published evaluation compares them."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def exact_match(answer: str, accepted: str) -> float:
    """1 where two answers are the same words, else 0."""
    return float(normalise(answer) == normalise(accepted))


def word_f1(answer: str, accepted: str) -> float:
    """Harmonic mean of the shares of words that two answers have in common."""
    one, other = normalise(answer), normalise(accepted)
    common = sum((Counter(one) & Counter(other)).values())
    return 2.0 * common / (len(one) + len(other)) if common else 0.0


def _mean_best(score: Callable[[str, str], float], spans: Tensor, split: Split) -> float:
    """Mean over questions of the score against the accepted answer that suits best."""
    questions: Questions = split.references
    texts = answers(spans, questions)
    best = [max(score(text, one) for one in accepted) for text, accepted in zip(texts, questions.answers, strict=True)]
    return float(np.mean(best))


def read(part: str, encoder: str, max_length: int, stride: int) -> Split:
    """Return the windows of one published split.

    :param stride: tokens that neighbouring windows share
    :raises DataNotFoundError: if data or tokenizer are nowhere to be had
    :raises InvalidSettingError: if windows leave too little room beside the longest question
    """
    require_text_settings(encoder, max_length)
    if not isinstance(stride, int) or stride < 0:
        raise InvalidSettingError(f"stride is {stride!r}; expected a whole number, 0 or more.")
    data = load_hub_split(HUB_ID, part, ("question", "context", "answers"))
    tokenizer = load_tokenizer(locate(encoder))
    encode = partial(_windows, tokenizer, max_length, stride)
    encoded = tokenize(data, tokenizer, f"windows of {max_length} tokens, {stride} shared", encode)
    columns = {"ids": tokenizer.pad_token_id, "segments": -1, "context": 0}
    inputs, lengths = pad(encoded, columns, max_length)
    require_known_tokens(inputs, encoder)
    offsets, _ = pad(encoded, {"first": 0, "last": 0}, max_length)
    targets = torch.stack([torch.from_numpy(np.asarray(encoded[name], dtype=np.int64)) for name in ("start", "end")], 1)
    # Rows of a batch are numbered within it: a new question begins where a window says so.
    question = np.cumsum(np.asarray(encoded["opens"])) - 1
    shared: dict[str, str] = {}  # questions on one paragraph share its text in memory
    contexts = tuple(shared.setdefault(text, text) for text in data["context"])
    accepted = tuple(tuple(entry["text"]) for entry in data["answers"])
    references = Questions(question, offsets.numpy(), contexts, accepted)
    return Split(inputs, targets, lengths, references)


def _windows(tokenizer: Any, max_length: int, stride: int, batch: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Cut questions and paragraphs into windows, and find the answer's tokens in each."""
    questions = [question.strip() for question in batch["question"]]
    longest = max(len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"])
    room = max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if stride >= room:
        raise InvalidSettingError(
            f"Windows of max_length = {max_length} tokens leave {room} beside a question of {longest}; expected more "
            f"than stride = {stride}, the tokens that neighbouring windows share. Raise max_length or lower stride."
        )
    encoded = tokenizer(
        questions,
        batch["context"],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    columns: dict[str, list[Any]] = {name: [] for name in ("context", "first", "last", "start", "end", "opens")}
    samples = encoded["overflow_to_sample_mapping"]
    for window, sample in enumerate(samples):
        context = [part == 1 for part in encoded.sequence_ids(window)]
        offsets = encoded["offset_mapping"][window]
        start, end = _tokens_of_answer(batch["answers"][sample], context, offsets)
        columns["context"].append([int(inside) for inside in context])
        columns["first"].append([first for first, _ in offsets])
        columns["last"].append([last for _, last in offsets])
        columns["start"].append(start)
        columns["end"].append(end)
        columns["opens"].append(int(window == 0 or samples[window - 1] != sample))
    return {"ids": encoded["input_ids"], "segments": encoded["token_type_ids"], **columns}


def _tokens_of_answer(
    answer: Mapping[str, list[Any]], context: list[bool], offsets: list[tuple[int, int]]
) -> tuple[int, int]:
    """First and last token of the first accepted answer; (0, 0) where the window does not hold all of it."""
    if not answer["text"]:
        return 0, 0
    begin = answer["answer_start"][0]
    finish = begin + len(answer["text"][0])
    inside = [k for k, is_context in enumerate(context) if is_context]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < finish:
        return 0, 0
    covering = [k for k in inside if offsets[k][1] > begin and offsets[k][0] < finish]
    return (covering[0], covering[-1]) if covering else (0, 0)


@lru_cache(maxsize=2)
def _training_data(encoder: str, max_length: int, stride: int) -> TrainingData:
    """Windows by question: no paragraph has questions on both sides of the cut."""
    whole = read("train", encoder, max_length, stride)
    paragraphs: dict[str, int] = {}
    paragraph = np.array([paragraphs.setdefault(text, len(paragraphs)) for text in whole.references.contexts])
    parts = [rows.numpy() for rows in carve(list(paragraphs), _REWARD_SHARE)]
    train, reward = (_some_questions(whole, np.flatnonzero(np.isin(paragraph, part))) for part in parts)
    return TrainingData(train, reward)


def _some_questions(whole: Split, kept: np.ndarray) -> Split:
    """Return the windows of some questions, renumbered."""
    questions: Questions = whole.references
    rows = np.flatnonzero(np.isin(questions.question, kept))
    references = Questions(
        np.searchsorted(kept, questions.question[rows]),
        questions.offsets[rows],
        tuple(questions.contexts[k] for k in kept),
        tuple(questions.answers[k] for k in kept),
    )
    return rows_of(whole, torch.from_numpy(rows), references)


def _test_split(encoder: str, max_length: int, stride: int) -> Split:
    return read("validation", encoder, max_length, stride)


def build_span_model(encoder: str, pretrained: bool, max_length: int, stride: int) -> nn.Module:
    """Return an encoder with a new head that points at answers; ``stride`` matters to the data alone."""
    return SpanModel(build_encoder("AutoModelForQuestionAnswering", encoder, pretrained, max_length))


SQUAD = register_task(
    Task(
        name="squad",
        load_training_data=_training_data,
        build_model=build_span_model,
        model={"encoder": ENCODER, "pretrained": True, "max_length": 384, "stride": 128},
        data_settings=("encoder", "max_length", "stride"),
        batch_size=32,
        epochs=2,
        optimizer="adamw",
        learning_rates=dict(FINE_TUNING),
        parameter_groups=decay_weights_only,
        clip_norm=1.0,
        loss=span_loss,
        metrics={"f1": partial(_mean_best, word_f1), "exact_match": partial(_mean_best, exact_match)},
        collect=best_spans,
        evaluation_batch_size=BATCH_SIZE_IN_EVALUATION,
    ),
    _test_split,
)
