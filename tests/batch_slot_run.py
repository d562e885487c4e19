"""Short trainings on rows that can be told apart; run alone or under torchrun.

`python batch_slot_run.py OUT FOLDER` writes, for every process, what `run` gives in every way.
"""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Callback
from hf_tfopt.callbacks.training import Training
from tests.callbacks.runs import weights_of
from tests.models import VOCABULARY, tiny
from tests.test_trainer import arguments, losses

NUM_ROWS = 61
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}


class Numbered(Dataset):
    """Rows of 8 tokens, of which the first is the row's number."""

    def __init__(self, num_rows: int = NUM_ROWS):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(5, VOCABULARY, (num_rows, 8), generator=generator)
        self.ids[:, 0] = torch.arange(num_rows)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Noted(Callback):
    """Notes the rows of every micro-batch of every step, where the training gets them."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[list[list[int]]] = []

    def collected(self, training: Training, batches: list[Any]) -> list[Any]:
        """One more step."""
        self._steps.append([batch["input_ids"][:, 0].tolist() for batch in batches])
        return batches

    @property
    def steps(self) -> list[list[list[int]]]:
        """Of each step, of each micro-batch, the rows."""
        return self._steps


def curriculum() -> tfo.DifficultyCurriculum:
    """Ready for everything in the middle of the second epoch of steps of 16 rows.

    As of a model on several devices, the second process's scores are not quite the first one's.
    """
    noise = int(os.environ.get("RANK", "0")) * torch.arange(NUM_ROWS) % 7

    def score(data: Numbered) -> torch.Tensor:
        return data.ids[:, 1] % 40 + 0.01 * noise

    return tfo.DifficultyCurriculum(score, 6, 0.1, seed=3)


def trainer_for(folder: Path, sampler: Any, **options: Any) -> tuple[Any, Noted]:
    noted = Noted()
    settings = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-3,
        **options,
    }
    args = arguments(folder, **settings)
    given = {"train_dataset": Numbered(), "sampler": sampler, "callbacks": [noted]}
    return tfo.TfoptTrainer(tiny("bert"), args, **given), noted


def told(trainer: Any, noted: Noted) -> dict[str, Any]:
    return {
        "steps": noted.steps,
        "losses": losses(trainer),
        "weights": weights_of(trainer.model).double().norm().item(),
        "max_steps": trainer.state.max_steps,
    }


def run(way: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Three epochs of a curriculum."""
    trainer, noted = trainer_for(folder, curriculum(), **WAYS[way], **options)
    trainer.train()
    return told(trainer, noted)


def resumed(folder: Path, step: int, **options: Any) -> dict[str, Any]:
    """The same, gone on with after a checkpoint."""
    trainer, noted = trainer_for(folder, curriculum(), **options)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    return told(trainer, noted)


def main(out: str, folder: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    half: dict[str, Any] = {"gradient_accumulation_steps": 2, "optim": "sgd"}
    saving = {"save_strategy": "steps", "save_steps": 6}
    results: dict[str, Any] = {way: run(way, Path(folder), **half, **saving) for way in WAYS}
    results["resumed"] = resumed(Path(folder), 6, **half)
    trainer, _ = trainer_for(Path(folder), curriculum(), **half)
    around: Any = trainer.get_train_dataloader().batch_sampler
    results["around"] = [type(around).__name__, around.num_processes, around.process_index]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, results)
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
