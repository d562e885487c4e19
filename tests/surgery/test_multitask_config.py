"""What a task may be, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BertConfig

from hf_tfopt.surgery.multitask_config import MultitaskConfig
from tests.models import SIZES

TOPIC = {"problem": "single_label_classification", "num_labels": 3}


def test_a_configuration_is_what_was_saved(tmp_path: Path) -> None:
    labels = {1: "yes", 0: "no"}
    tasks = {"z": TOPIC, "a": {"problem": "token_classification", "id2label": labels}}
    config = MultitaskConfig(BertConfig(**SIZES), tasks)
    config.save_pretrained(tmp_path)
    opened = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(opened, MultitaskConfig)
    assert opened.to_diff_dict() == config.to_diff_dict()
    assert opened.tasks["a"] == {
        "problem": "token_classification",
        "num_labels": 2,
        "id2label": {0: "no", 1: "yes"},
    }
    assert opened.tasks["z"]["id2label"] == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert opened.get_text_config().hidden_size == SIZES["hidden_size"]
    assert opened.of_task("z").num_labels == 3 and opened.encoder.num_labels == 2


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("a", {}, "task 'a' has no problem; it is one of single_label"),
        ("a", {"problem": "regresion"}, "unknown problem of task 'a' 'regresion' .did you mean"),
        ("a", {**TOPIC, "num_label": 3}, "unknown setting of task 'a' 'num_label' .did you mean"),
        ("a", {"problem": TOPIC["problem"]}, "has 0 labels; say num_labels= or id2label="),
        ("a", {**TOPIC, "num_labels": 1}, "task 'a' .single_label_classification. has 1 labels"),
        ("a", {**TOPIC, "id2label": {0: "no", 1: "yes"}}, "3 labels, but id2label is for .0, 1."),
        ("a", {"problem": TOPIC["problem"], "id2label": {1: "x", 2: "y"}}, "is for .1, 2."),
        ("a.b", TOPIC, "a task cannot be called 'a.b'"),
        ("loss", TOPIC, "a task cannot be called 'loss'"),
        ("keys", TOPIC, "a task cannot be called 'keys'"),
        ("", TOPIC, "a task cannot be called ''"),
    ],
)
def test_tasks_that_cannot_be(name: str, task: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultitaskConfig(BertConfig(**SIZES), {name: task})


def test_a_regression_has_one_output_unless_told() -> None:
    tasks = {"a": {"problem": "regression"}, "b": {"problem": "regression", "num_labels": 2}}
    config = MultitaskConfig(BertConfig(**SIZES), tasks)
    assert [task["num_labels"] for task in config.tasks.values()] == [1, 2]
