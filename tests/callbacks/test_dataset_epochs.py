"""A training dataset hears of every epoch, also of the one that a resumed run goes on with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import hf_tfopt as tfo
from hf_tfopt.callbacks.dataset_epochs import DatasetEpochs
from tests.invariants.cases import Columns
from tests.models import batch_for, tiny


class Heard(Dataset):
    """Rows that remember the epochs in which they were asked for."""

    def __init__(self) -> None:
        self.rows = batch_for(None, 8)
        self.epoch = -1
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(self.epoch)
        return {name: column[index] for name, column in self.rows.items()}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        num_train_epochs=3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", **options},
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


def test_datasets_without_epochs_are_left_alone(tmp_path: Path) -> None:
    data = Columns(batch_for(None, 8))
    trainer = tfo.TfoptTrainer(tiny("bert"), arguments(tmp_path), train_dataset=data)
    assert sum(isinstance(c, DatasetEpochs) for c in trainer.callback_handler.callbacks) == 1
    assert trainer.train().global_step == 12
