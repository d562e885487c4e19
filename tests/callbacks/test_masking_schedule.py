from pathlib import Path
from typing import Any

import pytest
from transformers import DataCollatorForLanguageModeling, Trainer

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Callback
from tests.callbacks.runs import history_of
from tests.data.test_collators import examples, make_model, make_tokenizer
from tests.test_trainer import arguments


def trainer_of(folder: Path, schedule: Any, is_stock: bool = False, **options: Any) -> Trainer:
    tokenizer, data = make_tokenizer(), examples(64)
    args = arguments(
        folder, max_steps=6, per_device_train_batch_size=16, logging_steps=1, **options
    )
    model = make_model("bert", "sdpa")
    if is_stock:
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4)
        trainer = Trainer(model, args, train_dataset=data, data_collator=collator)
        return tfo.attach(trainer, curriculum=schedule)
    ours = tfo.MaskedLMCollator(tokenizer, probability=0.4)
    return tfo.TfoptTrainer(
        model, args, train_dataset=data, data_collator=ours, curriculum=schedule
    )


class Seen(Callback):
    """Stands behind the schedule, and notes the share of targets among the words of each step."""

    def __init__(self) -> None:
        super().__init__()
        self._shares: list[float] = []

    def collected(self, training: Any, batches: list[Any]) -> list[Any]:
        words = sum((b["input_ids"] >= 4).sum() for b in batches)  # and [MASK]
        targets = sum((b["labels"] != -100).sum() for b in batches)
        self._shares.append(float(targets / words))
        return batches


@pytest.mark.parametrize("is_stock", [False, True])
def test_the_rate_falls_with_the_steps(is_stock: bool, tmp_path: Path) -> None:
    schedule = tfo.MaskingSchedule(0.4, 0.1, end=0.5)
    trainer = trainer_of(tmp_path, schedule, is_stock)
    seen = Seen()
    trainer.add_callback(seen)
    trainer.train()
    expected = [0.4, 0.3, 0.2, 0.1, 0.1, 0.1]
    assert [e["masking_rate"] for e in history_of(trainer)] == pytest.approx(expected)
    # some 240 tokens a step, of which four deviations are 0.13
    assert seen._shares == pytest.approx(expected, abs=0.13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.5, 0.1), r"goes up to 0.5: give the collator probability=0.5"),
        ((0.3, 1.2), "probability is 1.2"),
        ((0.3, 0.1, 0.6, 0.5), "0 <= start <= end <= 1"),
        ((0.3, 0.1, 0.0, 1.0, "cosin"), "did you mean 'cosine'"),
    ],
)
def test_what_cannot_be(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, tfo.MaskingSchedule(*options)).train()


def test_a_collator_that_tells_no_rate(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tfo.MaskingSchedule(0.3, 0.1))
    trainer.callback_handler.callbacks = [
        c for c in trainer.callback_handler.callbacks if c is not trainer.data_collator
    ]
    trainer.data_collator = lambda rows: {}
    with pytest.raises(ValueError, match="give probability="):
        trainer.train()
