"""SQuAD: windows over paragraphs, answers found in them, and the published evaluation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from envs import EnvConfig, LearningRateEnv, get_task
from envs.passes import evaluate_split
from envs.tasks import squad
from envs.tasks.hub import load_hub_dataset
from envs.tasks.pretrained import load_tokenizer, locate
from envs.tasks.report import load_test_split
from envs.tasks.squad import Questions, answers, best_spans, exact_match, span_loss, word_f1
from gns import DecisionConfig, InvalidSettingError

BERT, ROBERTA = squad.ENCODER, "FacebookAI/roberta-base"
WINDOWS = [(BERT, 64, 16), (BERT, 48, 12), (BERT, 41, 0), (ROBERTA, 64, 16), (BERT, 384, 128)]
every_window = pytest.mark.parametrize(("encoder", "max_length", "stride"), WINDOWS)


def small(**settings):
    return get_task("squad", **{"batch_size": 8, "model": {"max_length": 64, "stride": 16}, **settings})


def windows_by_hand(tokenizer, question, paragraph, max_length, stride):
    """Windows of one question: ids, first and last character of each token of the paragraph, its first place."""
    asked = tokenizer(question.strip(), add_special_tokens=False)["input_ids"]
    encoded = tokenizer(paragraph, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
    end = tokenizer.sep_token_id
    before = [tokenizer.cls_token_id, *asked, end, *([] if tokenizer.cls_token == "[CLS]" else [end])]
    room = max_length - len(before) - 1
    start = 0
    while True:
        stop = min(start + room, len(tokens))
        yield [*before, *tokens[start:stop], end], offsets[start:stop], len(before)
        if stop == len(tokens):
            return
        start += room - stride


def one_hot(split):
    """Logits of a model that is certain of the right tokens."""
    outputs = torch.zeros(len(split), 3, split.inputs.shape[-1])
    for k in range(2):
        outputs[torch.arange(len(split)), k, split.targets[:, k]] = 10.0
    outputs[:, 2] = split.inputs[:, 2].float()
    return outputs


class Oracle(nn.Module):
    """Knows the answer to every window of a split by heart."""

    def __init__(self, split):
        super().__init__()
        self.known = {
            tuple(inputs[0, :length].tolist()): target
            for inputs, length, target in zip(split.inputs, split.lengths, split.targets, strict=True)
        }

    def forward(self, packed):
        """Return certain logits."""
        outputs = torch.zeros(packed.shape)
        outputs[:, 2] = packed[:, 2].float()
        for row, one in enumerate(packed):
            ids = one[0, one[1] >= 0].tolist()
            for k in range(2):
                outputs[row, k, self.known[tuple(ids)][k]] = 10.0
        return outputs


# ---------------------------------------------------------------------- windows


@every_window
def test_windows_are_those_cut_by_hand(encoder, max_length, stride):
    data = load_hub_dataset(squad.HUB_ID)["validation"]
    tokenizer = load_tokenizer(locate(encoder))
    split = squad.read("validation", encoder, max_length, stride)
    references: Questions = split.references
    assert split.inputs.shape == (len(split), 3, max_length) and split.inputs.dtype == torch.int32
    assert references.offsets.shape == (len(split), 2, max_length)
    row = 0
    for number, example in enumerate(data):
        answer, begin = example["answers"]["text"][0], example["answers"]["answer_start"][0]
        held = 0
        for ids, offsets, before in windows_by_hand(
            tokenizer, example["question"], example["context"], max_length, stride
        ):
            padding = max_length - len(ids)
            inside = range(before, before + len(offsets))
            assert references.question[row] == number and split.lengths[row] == len(ids)
            assert split.inputs[row, 0].tolist() == ids + [tokenizer.pad_token_id] * padding
            segments = [int(k >= before) if encoder == BERT else 0 for k in range(len(ids))]
            assert split.inputs[row, 1].tolist() == segments + [-1] * padding
            assert split.inputs[row, 2].tolist() == [int(k in inside) for k in range(max_length)]
            found = [tuple(pair) for pair in references.offsets[row, :, before : before + len(offsets)].T.tolist()]
            assert found[1:] == offsets[1:] and found[0][1] == offsets[0][1]
            space = example["context"][found[0][0] : offsets[0][0]]  # RoBERTa's tokens begin with one
            assert space == "" or (space == " " and encoder == ROBERTA)
            fits = offsets[0][0] <= begin and offsets[-1][1] >= begin + len(answer)
            start, end = split.targets[row].tolist()
            if fits:
                held += 1
                assert start in inside and end in inside and start <= end
                said = example["context"][references.offsets[row, 0, start] : references.offsets[row, 1, end]]
                assert said.strip() == answer and (said == answer or encoder == ROBERTA)
            else:
                assert (start, end) == (0, 0)
            row += 1
        assert held >= 1 or stride == 0
    assert row == len(split)
    several = np.bincount(references.question).max()
    assert several == 1 if max_length == 384 else several >= 2


def test_windows_overlap_by_the_stride():
    split = squad.read("validation", BERT, 48, 12)
    question = split.references.question
    tokens = [inputs[0, inputs[2] == 1].tolist() for inputs in split.inputs]
    pairs = np.flatnonzero(question[1:] == question[:-1])
    assert len(pairs) > 20
    for row in pairs:
        assert tokens[row][-12:] == tokens[row + 1][:12] and len(tokens[row + 1]) > 12


def test_every_question_keeps_its_paragraph_and_accepted_answers():
    split, data = squad.read("validation", BERT, 64, 16), load_hub_dataset(squad.HUB_ID)["validation"]
    references: Questions = split.references
    assert np.unique(references.question).tolist() == list(range(len(data)))
    assert list(references.contexts) == data["context"][:]
    assert [list(one) for one in references.answers] == [one["text"] for one in data["answers"]]
    assert len({id(text) for text in references.contexts}) == len(set(references.contexts))  # one copy of each


@pytest.mark.parametrize("size", [1, 7])
def test_questions_are_numbered_across_the_batches_that_tokens_are_made_in(monkeypatch, size):
    data = load_hub_dataset(squad.HUB_ID)
    several = {part: data[part].select(range(60)).flatten_indices() for part in data}
    monkeypatch.setattr(squad, "load_hub_split", lambda _, part, columns: several[part])
    batched = []

    def in_batches(data, tokenizer, about, encode):
        batched.append(about)
        return data.map(encode, batched=True, batch_size=size, remove_columns=data.column_names)

    whole = squad.read("validation", BERT, 48, 12)
    monkeypatch.setattr(squad, "tokenize", in_batches)
    split = squad.read("validation", BERT, 48, 12)
    assert batched and len(split) > 60
    np.testing.assert_array_equal(split.references.question, whole.references.question)
    assert torch.equal(split.inputs, whole.inputs) and torch.equal(split.targets, whole.targets)


def test_no_paragraph_has_questions_in_both_splits():
    data, published = small().training_data(), load_hub_dataset(squad.HUB_ID)["train"]
    train, reward = set(data.train.references.contexts), set(data.reward.references.contexts)
    assert not train & reward and train | reward == set(published["context"])
    assert len(reward) == round(0.1 * len(train | reward)) > 10
    whole = squad.read("train", BERT, 64, 16)
    assert len(data.train) + len(data.reward) == len(whole)
    rows = {}
    for split in (data.train, data.reward, whole):
        references = split.references
        assert np.unique(references.question).tolist() == list(range(len(references.contexts)))
        rows[id(split)] = sorted(
            (
                references.contexts[q],
                references.answers[q],
                inputs.numpy().tobytes(),
                offsets.tobytes(),
                *target.tolist(),
            )
            for q, inputs, offsets, target in zip(
                references.question, split.inputs, references.offsets, split.targets, strict=True
            )
        )
    assert sorted(rows[id(data.train)] + rows[id(data.reward)]) == rows[id(whole)]


def test_splits_are_the_same_when_read_anew():
    before = small().training_data()
    squad._training_data.cache_clear()
    again = small().training_data()
    for one, other in ((before.train, again.train), (before.reward, again.reward)):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
        assert one.references.answers == other.references.answers
    test = load_test_split(small())
    assert len(test.references.contexts) == 100 and torch.equal(test.inputs, load_test_split(small()).inputs)


@pytest.mark.parametrize(
    ("begin", "text", "expected"),
    [
        (4, "bb cc", (1, 2)),  # exactly tokens 1 and 2
        (5, "b", (1, 1)),  # inside a token
        (5, "b c", (1, 2)),  # from the middle of one to the middle of the next
        (0, "aaa", (0, 0)),  # token 0, which is not of the paragraph
        (7, "cc ddd", (2, 3)),
        (7, "cc ddd e", (0, 0)),  # runs out of the window
        (3, " bb", (0, 0)),  # begins before the window
    ],
)
def test_an_answers_tokens_are_those_it_touches(begin, text, expected):
    offsets = [(0, 3), (4, 6), (7, 9), (10, 13), (0, 0)]
    context = [False, True, True, True, False]
    assert squad._tokens_of_answer({"text": [text], "answer_start": [begin]}, context, offsets) == expected


def test_a_question_without_answers_points_at_the_first_token():
    offsets, context = [(0, 0), (0, 3)], [False, True]
    assert squad._tokens_of_answer({"text": [], "answer_start": []}, context, offsets) == (0, 0)
    assert squad._tokens_of_answer({"text": ["a"], "answer_start": [0]}, [False, False], offsets) == (0, 0)


# ---------------------------------------------------------------------- spans


def spans_by_hand(start, end, context):
    best = (0, 0, -math.inf)
    for first in range(len(start)):
        for last in range(first, min(first + 30, len(start))):
            if context[first] and context[last] and start[first] + end[last] > best[2]:
                best = (first, last, start[first] + end[last])
    return best


@pytest.mark.parametrize("length", [1, 2, 30, 31, 75])
def test_best_spans_equal_a_search_through_all(length):
    assert squad.LONGEST_ANSWER == 30
    generator = torch.Generator().manual_seed(length)
    outputs = torch.randn(40, 3, length, generator=generator)
    outputs[:, 2] = (torch.arange(length) >= length // 4).float()
    outputs[20:, 2] = (torch.rand(20, length, generator=generator) < 0.5).float()
    if length == 75:  # the best two tokens lie too far apart, or the wrong way round
        outputs[:10, 0, 20] += 8.0
        outputs[:10, 1, 50] += 8.0
        outputs[5:10, 0, 60] += 9.0
    found = best_spans(outputs)
    assert found.shape == (40, 3)
    for row in range(40):
        first, last, score = spans_by_hand(*(outputs[row, k].tolist() for k in range(3)))
        assert found[row, 2] == pytest.approx(score, rel=1e-6)
        if score > -math.inf:
            assert found[row, :2].tolist() == [first, last]
    if length == 75:
        assert found[:5, :2].tolist() != [[20.0, 50.0]] * 5  # 31 tokens


@pytest.mark.parametrize(("last", "allowed"), [(29, True), (30, False)])
def test_an_answer_has_at_most_thirty_tokens(last, allowed):
    outputs = torch.zeros(1, 3, 40)
    outputs[0, 0, 0] = outputs[0, 1, last] = 10.0
    outputs[0, 2] = 1.0
    assert (best_spans(outputs)[0].tolist() == [0.0, float(last), 20.0]) == allowed


def test_half_precision_logits_give_places_beyond_256():
    outputs = torch.zeros(1, 3, 384, dtype=torch.bfloat16)
    outputs[0, 2] = 1.0
    outputs[0, 0, 301] = outputs[0, 1, 303] = 4.0
    assert best_spans(outputs)[0].tolist() == [301.0, 303.0, 8.0]


def test_of_a_questions_windows_the_best_scored_one_answers():
    contexts = ("one two three four", "five six", "seven")
    offsets = np.zeros((6, 2, 3), dtype=np.int32)
    offsets[:, :, 1:] = [
        [[0, 4], [3, 7]],
        [[8, 14], [13, 18]],
        [[4, 8], [7, 13]],
        [[0, 5], [4, 8]],
        [[0, 5], [4, 8]],
        [[0, 0], [5, 0]],
    ]
    questions = Questions(np.array([0, 0, 0, 1, 1, 2]), offsets, contexts, (("x",), ("y",), ("z",)))

    def said(*spans):
        return answers(torch.tensor(spans, dtype=torch.float32), questions)

    nan, never = math.nan, -math.inf
    rest = [(1, 1, 0.0), (2, 2, 1.0), (1, 1, 0.0)]
    assert said((1, 1, 2.0), (1, 2, 5.0), (2, 2, -1.0), *rest) == ["three four", "six", "seven"]
    assert said((1, 1, 6.0), (1, 2, 5.0), (2, 2, -1.0), *rest) == ["one", "six", "seven"]
    assert said((1, 1, -6.0), (1, 2, -5.0), (1, 2, -1.0), *rest) == ["two three", "six", "seven"]
    assert said((1, 1, nan), (1, 1, -5.0), (0, 0, nan), *rest)[0] == "three"  # a score that is no number is the worst
    assert said((1, 1, never), (2, 2, -1e9), (0, 0, never), *rest)[0] == "four"
    assert said(*[(0, 0, nan)] * 6) == ["", "", ""]


def test_places_and_scores_are_told_apart_to_the_last_digit():
    offsets = np.stack([np.arange(384), np.arange(1, 385)]).astype(np.int32)[None].repeat(2, axis=0)
    context = "".join(chr(0x4E00 + k) for k in range(384))
    questions = Questions(np.array([0, 0]), offsets, (context,), (("x",),))
    for better in (0, 1):
        spans = torch.tensor([[301.0, 303.0, 100.125], [307.0, 309.0, 100.125]])
        spans[better, 2] += 2**-10
        assert answers(spans, questions) == [context[301:304] if better == 0 else context[307:310]]


def test_questions_are_told_apart_from_rows():
    split = load_test_split(small())
    texts = answers(best_spans(one_hot(split)), split.references)
    assert len(texts) == 100 < len(split)
    assert texts == [accepted[0] for accepted in split.references.answers]


# ---------------------------------------------------------------------- metrics and loss


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "f1"),
    [
        ("Denver Broncos", "Denver Broncos", 1.0, 1.0),
        ("the Denver Broncos!", "denver broncos", 1.0, 1.0),  # article, punctuation, case
        ("An apple, a day", "apple day", 1.0, 1.0),
        ("  denver \n broncos ", "Denver Broncos", 1.0, 1.0),
        ("U.S.A.", "USA", 1.0, 1.0),  # punctuation is dropped, not a space
        ("well-known", "wellknown", 1.0, 1.0),
        ("well known", "well-known", 0.0, 0.0),
        ("theatre", "atre", 0.0, 0.0),  # articles are whole words
        ("Broncos", "Denver Broncos", 0.0, 2 / 3),
        ("broncos denver", "denver broncos", 0.0, 1.0),  # order counts for the exact match alone
        ("denver denver", "denver", 0.0, 2 / 3),  # a word counts as often as in both
        ("10 million dollars", "about 10 million", 0.0, 2 / 3),
        ("Carolina", "Denver", 0.0, 0.0),
        ("", "Denver", 0.0, 0.0),
        ("the", "Denver", 0.0, 0.0),
        ("Denver", "the", 0.0, 0.0),
        ("", "", 1.0, 0.0),
        ("été", "Été", 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_published(answer, accepted, exact, f1):
    assert exact_match(answer, accepted) == exact
    assert word_f1(answer, accepted) == pytest.approx(f1)
    assert word_f1(accepted, answer) == pytest.approx(f1)


def test_an_answer_is_compared_with_the_accepted_one_that_suits_it_best():
    offsets = np.array([[[0, 4], [3, 9]]], dtype=np.int32)
    accepted = (("new york city", "york city", "city"),)
    questions = Questions(np.zeros(1, dtype=np.int64), offsets, ("new yorky",), accepted)
    split = squad.Split(torch.zeros(1, 3, 2), torch.zeros(1, 2), torch.ones(1), questions)
    spans = torch.tensor([[0.0, 1.0, 3.0]])
    task = get_task("squad")
    assert list(task.metrics) == ["f1", "exact_match"] and task.collect is best_spans
    assert task.metrics["exact_match"](spans, split) == 0.0
    assert task.metrics["f1"](spans, split) == pytest.approx(2 * 1 / (2 + 3))  # "new" of "new york city"


@pytest.mark.parametrize(("encoder", "max_length", "stride"), WINDOWS[:4])
def test_a_model_that_knows_every_token_answers_every_question_that_fits(encoder, max_length, stride):
    task = small(model={"encoder": encoder, "max_length": max_length, "stride": stride})
    for split in (task.training_data().reward, load_test_split(task)):
        outputs = one_hot(split)
        figures = {name: metric(task.collect(outputs), split) for name, metric in task.metrics.items()}
        fits = np.zeros(len(split.references.contexts), dtype=bool)
        fits[split.references.question[(split.targets > 0).any(dim=1).numpy()]] = True
        assert fits.mean() > 0.8 and (stride == 0 or fits.all())
        texts = answers(best_spans(outputs), split.references)
        for text, accepted, fit in zip(texts, split.references.answers, fits, strict=True):
            assert text.strip() == accepted[0] or not fit
        if stride:
            assert figures == {"f1": 1.0, "exact_match": 1.0}


def test_evaluation_in_order_of_length_gives_each_question_its_own_answer():
    task = small()
    for split in (task.training_data().reward, load_test_split(task)):
        assert not torch.equal(split.lengths, split.lengths.sort().values)
        for chunk in (None, 7):
            figures = evaluate_split(Oracle(split), task, split, chunk)
            assert figures.metrics == {"f1": 1.0, "exact_match": 1.0} and figures.loss < 0.01


def test_an_untrained_model_is_evaluated_in_any_order_alike():
    task, split = small(), load_test_split(small())
    torch.manual_seed(2)
    model = task.new_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
        spans = torch.cat([best_spans(model(split.inputs[row : row + 1])) for row in range(len(split))])
    texts = answers(spans, split.references)
    exact = np.mean(
        [max(exact_match(t, one) for one in own) for t, own in zip(texts, split.references.answers, strict=True)]
    )
    f1 = np.mean([max(word_f1(t, one) for one in own) for t, own in zip(texts, split.references.answers, strict=True)])
    assert 0.0 < f1 < 1.0
    assert evaluate_split(model, task, split).metrics == pytest.approx({"f1": f1, "exact_match": exact})


def test_logits_that_are_no_numbers_are_answered_by_nothing():
    task, split = small(), load_test_split(small())
    outputs = torch.full((len(split), 3, 64), torch.nan)
    outputs[:, 2] = split.inputs[:, 2].float()
    for metric in task.metrics.values():
        assert 0.0 <= metric(best_spans(outputs), split) <= 1.0


def test_the_loss_is_the_mean_over_first_and_last_token():
    outputs = torch.zeros(2, 3, 4)
    outputs[0, 0] = torch.tensor([1.0, 2.0, 0.0, -1.0])
    outputs[1, 1] = torch.tensor([0.0, 0.0, 3.0, 0.0])
    outputs[:, 2] = 100.0  # not a logit
    targets = torch.tensor([[1, 3], [0, 2]])
    first = [-2.0 + math.log(sum(math.exp(x) for x in (1.0, 2.0, 0.0, -1.0))), math.log(4)]
    last = [math.log(4), -3.0 + math.log(3 + math.exp(3.0))]
    assert float(span_loss(outputs, targets)) == pytest.approx((sum(first) / 2 + sum(last) / 2) / 2)


# ---------------------------------------------------------------------- training and settings


def test_an_episode_runs_to_its_end():
    config = EnvConfig(
        optimizers=None, budgets=(10, 10), decision=DecisionConfig(num_decisions=5), reward_probability=0.0
    )
    env = LearningRateEnv([small()], config)
    _, info = env.reset(seed=3)
    rng, terminated = np.random.default_rng(0), False
    while not terminated:
        *_, terminated, _, info = env.step(rng.uniform(-1, 1, 1))
    assert info["update"] == 10 and not info["diverged"] and math.isfinite(info["reward_loss"])
    assert 0.0 <= info["reward_metric"] <= 1.0


def test_a_model_learns_answers_by_heart():
    task = small()
    train = task.training_data().train
    inputs, targets = train.batch(torch.arange(8))
    torch.manual_seed(0)
    model = task.new_model().eval()
    optimizer = torch.optim.AdamW(task.parameter_groups(model), lr=5e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < 3.0 < losses[0]


@pytest.mark.parametrize(("max_length", "stride"), [(64, 50), (64, 60), (64, 64), (64, 100), (20, 2), (8, 2)])
def test_windows_that_would_not_move_on_are_refused(max_length, stride):
    with pytest.raises(InvalidSettingError, match=rf"max_length = {max_length}.*stride = {stride}"):
        small(model={"max_length": max_length, "stride": stride}).training_data()


@pytest.mark.parametrize("stride", [-1, 2.0, "8", None])
def test_a_stride_is_a_whole_number(stride):
    with pytest.raises(InvalidSettingError, match=f"stride is {stride!r}"):
        small(model={"max_length": 64, "stride": stride}).training_data()
