"""Batches of rows of different tasks: what is where, and what is refused."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hf_tfopt.data.multitask_collator import MultitaskCollator

TASKS = {
    "topic": {"problem": "single_label_classification", "num_labels": 3},
    "score": {"problem": "regression", "num_labels": 1},
    "tags": {"problem": "multi_label_classification", "num_labels": 2},
    "words": {"problem": "token_classification", "num_labels": 5},
}
ROWS = [
    {"task": "words", "input_ids": [5, 6, 7], "attention_mask": [1] * 3, "labels": [-100, 4, 0]},
    {"task": "topic", "input_ids": [5, 6], "attention_mask": [1] * 2, "label": 2},
    {"task": "score", "input_ids": [8], "attention_mask": [1], "labels": 0.5, "text": "eight"},
    {"task": "tags", "input_ids": [9] * 4, "attention_mask": [1] * 4, "labels": [1, 0]},
]
NONE = math.nan


def tokenizer(**options: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
        **options,
    )


def test_a_batch_by_hand() -> None:
    batch = MultitaskCollator(tokenizer(), TASKS)(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "task", "labels", "label_values"}
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [5, 6, 0, 0], [8, 0, 0, 0], [9] * 4]
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 2, 1, 4]
    assert batch["task"].tolist() == [3, 2, 0, 1]  # score, tags, topic, words
    ignored = [-100] * 4
    assert batch["labels"].tolist() == [
        [-100, 4, 0, -100],
        [2, -100, -100, -100],
        ignored,
        ignored,
    ]
    expected = torch.tensor([[NONE, NONE], [NONE, NONE], [0.5, NONE], [1.0, 0.0]])
    torch.testing.assert_close(batch["label_values"], expected, equal_nan=True)


def test_padding_on_the_left_moves_the_labels_of_tokens_alone() -> None:
    batch = MultitaskCollator(tokenizer(padding_side="left"), TASKS)(ROWS)
    assert batch["labels"][:2].tolist() == [[-100, -100, 4, 0], [2, -100, -100, -100]]
    assert batch["input_ids"][0].tolist() == [0, 5, 6, 7]


def test_without_token_tasks_labels_are_narrow_and_widths_can_be_rounded() -> None:
    tasks = {"topic": TASKS["topic"]}
    batch = MultitaskCollator(tokenizer(), tasks, pad_to_multiple_of=8)([ROWS[1]])
    assert batch["input_ids"].shape == (1, 8)
    assert batch["labels"].tolist() == [[2]] and batch["label_values"].shape == (1, 1)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("topic", {"label": 3}, r"label 3 of task 'topic' is not a whole number in \[0, 3\)"),
        ("topic", {"label": -1}, "label -1 of task 'topic'"),
        ("topic", {"label": 1.0}, "label 1.0 of task 'topic'"),
        ("topic", {"label": [1, 2]}, r"labels of shape \(2,\); expected are 1"),
        ("topic", {"label": None}, "a row of task 'topic' has no labels, only"),
        ("words", {"labels": [0, 5, 0]}, "label 5 of task 'words'"),
        ("words", {"labels": [0, 1]}, r"labels of shape \(2,\); expected are 3"),
        ("tags", {"labels": [0, 2]}, r"label 2 of task 'tags' .* is not in \[0, 1\]"),
        ("tags", {"labels": 1}, "expected are 2"),
        ("score", {"labels": math.inf}, "label inf of task 'score' .* is not a finite number"),
        ("score", {"labels": math.nan}, "label nan of task 'score'"),
        ("score", {"task": "scores"}, "unknown task 'scores' .did you mean 'score'"),
        ("score", {"attention_mask": [1], "token_type_ids": [0]}, None),
    ],
)
def test_rows_that_do_not_fit(task: str, change: dict[str, object], message: str | None) -> None:
    rows = [{**row, **change} if row["task"] == task else row for row in ROWS]
    collator = MultitaskCollator(tokenizer(), TASKS)
    if message is None:  # not one of the tokenizer's inputs: left out
        assert "token_type_ids" not in collator(rows)
        return
    with pytest.raises(ValueError, match=message):
        collator(rows)


def test_rows_without_a_task_and_of_different_kinds() -> None:
    collator = MultitaskCollator(tokenizer(), TASKS)
    with pytest.raises(ValueError, match="a row has no task, only input_ids"):
        collator([{"input_ids": [1]}])
    kinds = [ROWS[1], {"task": "score", "input_ids": [3], "labels": 1.0}]
    with pytest.raises(ValueError, match="tokenize all tasks in the same way"):
        collator(kinds)
    with pytest.raises(ValueError, match="no tasks"):
        MultitaskCollator(tokenizer(), {})
