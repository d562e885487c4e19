"""A training dataset hears of every epoch, also of the one that a resumed run goes on with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import hf_tfopt as tfo
from hf_tfopt.callbacks.dataset_epochs import DatasetEpochs
from tests.data.test_collators import SIZES, examples, make_tokenizer
from tests.invariants.cases import Columns
from tests.models import batch_for, tiny


class Heard(Dataset):
    """Rows that remember the epochs in which they were asked for."""

    def __init__(self) -> None:
        self.rows = batch_for(None, 8)
        self.epoch = -1
        self.asked: list[int] = []
        self.told: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(self.epoch)
        return {name: column[index] for name, column in self.rows.items()}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", "num_train_epochs": 3, **options},
    )


@pytest.mark.parametrize("kind", [Trainer, tfo.TfoptTrainer])
def test_every_epoch_and_the_one_gone_on_with(kind: type[Trainer], tmp_path: Path) -> None:
    callbacks = [DatasetEpochs()] if kind is Trainer else []
    first = Heard()
    options = {"save_strategy": "steps", "save_steps": 6}
    args = arguments(tmp_path, **options)
    kind(tiny("bert"), args, train_dataset=first, callbacks=callbacks).train()
    assert first.asked == [0] * 8 + [1] * 8 + [2] * 8
    resumed = Heard()  # in the middle of the second epoch
    trainer = kind(tiny("bert"), arguments(tmp_path), train_dataset=resumed, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.asked[-12:] == [1] * 4 + [2] * 8
    assert set(resumed.asked) == {1, 2}


def test_the_host_alone_forgets_the_epoch_that_is_resumed(tmp_path: Path) -> None:
    """What it is for; when this fails, accelerate was mended and the docstring must say so."""
    args = arguments(tmp_path, save_strategy="steps", save_steps=6)
    Trainer(tiny("bert"), args, train_dataset=Heard()).train()
    resumed = Heard()
    trainer = Trainer(tiny("bert"), arguments(tmp_path), train_dataset=resumed)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert set(resumed.asked) == {-1, 2}


def test_the_epoch_that_the_host_goes_on_with_counts(tmp_path: Path) -> None:
    """Epochs of other lengths than those of the checkpoint, whose own number is then another."""
    args = arguments(tmp_path, save_strategy="steps", save_steps=6)
    Trainer(tiny("bert"), args, train_dataset=Heard()).train()
    resumed = Heard()
    args = arguments(tmp_path, gradient_accumulation_steps=2, num_train_epochs=4)
    trainer = tfo.TfoptTrainer(tiny("bert"), args, train_dataset=resumed)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.asked == [3] * 8
    assert set(resumed.told) == {3}


def test_evaluation_on_the_training_rows_leaves_their_epoch(tmp_path: Path) -> None:
    data = Heard()
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer = tfo.TfoptTrainer(tiny("bert"), args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert (data.asked.count(1), data.asked.count(2)) == (8, 8)


def test_evaluation_is_of_one_epoch_also_where_workers_live_on(tmp_path: Path) -> None:
    data = Heard()
    args = arguments(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer = tfo.TfoptTrainer(tiny("bert"), args, eval_dataset=data)
    trainer.evaluate()
    trainer.evaluate()
    assert data.told == [0, 0]


class HeardMasks(TrainerCallback):
    """The epochs whose masks a collator gives."""

    def __init__(self, collator: Any):
        self.collator = collator
        self.epochs: list[int] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epochs.append(self.collator._clock.epoch)


def test_a_collator_in_a_stock_trainer_counts_the_passes_over_a_stream(tmp_path: Path) -> None:
    """The host takes the pass to be as long as the run, and `state.epoch` to be a share of it."""
    model, stream = BertForMaskedLM(BertConfig(**SIZES)), examples(6).to_iterable_dataset()
    collator = tfo.MaskedLMCollator(make_tokenizer())
    heard = HeardMasks(collator)
    args = arguments(tmp_path, max_steps=10)
    Trainer(model, args, collator, stream, callbacks=[collator, heard]).train()
    assert heard.epochs == [0, 1, 2, 3]


def test_datasets_without_epochs_are_left_alone(tmp_path: Path) -> None:
    data = Columns(batch_for(None, 8))
    trainer = tfo.TfoptTrainer(tiny("bert"), arguments(tmp_path), train_dataset=data)
    assert sum(isinstance(c, DatasetEpochs) for c in trainer.callback_handler.callbacks) == 1
    assert trainer.train().global_step == 12
