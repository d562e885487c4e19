"""Linear regression whose gradient noise is known; alone, or under torchrun for two processes.

`python noise_run.py OUT FOLDER` writes what two processes measure, and what there was to measure.
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
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import Trainer

import hf_tfopt as tfo
from tests.callbacks import distributed_run
from tests.callbacks.runs import history_of
from tests.test_trainer import arguments

SIZE = 20
NOISE = 2.0  # standard deviation of y around its mean
AWAY = 0.5  # what every weight is away from the best one


class Regression(nn.Module):
    """½·(w·x - y)² with w = 0, which a learning rate of 0 leaves there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))
        self.seen: list[Tensor] = []  # of every micro-batch, the gradient of every example

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        residual = x @ self.weight - y
        self.seen.append((residual.detach()[:, None] * x).double())
        return {"loss": 0.5 * residual.square().mean()}


def truth() -> tuple[float, float]:
    """‖G‖² and tr Σ, of x ~ N(0, 1): g = x·(x·d - ε), so tr Σ = (p + 1)·‖d‖² + p·σ²."""
    square = SIZE * AWAY**2
    return square, (SIZE + 1) * square + SIZE * NOISE**2


def data(num_rows: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, SIZE, generator=generator)
    y = x @ torch.full((SIZE,), AWAY) + NOISE * torch.randn(num_rows, generator=generator)
    return TensorDataset(x, y)


def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}


def trainer_of(folder: Path, monitor: Any, num_rows: int = 64, seed: int = 0, **options: Any):
    """A stock Trainer, with `attach` to hear of our callbacks; its loss is the model's."""
    settings = {
        "max_steps": -1,
        "num_train_epochs": 1,
        "learning_rate": 0.0,
        "remove_unused_columns": False,
        "gradient_accumulation_steps": 2,
        **options,
    }
    rows = data(num_rows, seed)
    trainer = Trainer(
        Regression(), arguments(folder, **settings), train_dataset=rows, data_collator=collate
    )
    trainer.add_callback(monitor)
    monitor.join(trainer)
    return trainer


def measured(trainer: Trainer) -> list[list[float]]:
    """‖G‖² and tr Σ as logged."""
    return [[e["gradient_signal"], e["gradient_variance"]] for e in history_of(trainer)]


def alone_and_together(folder: Path, accumulation: int) -> dict[str, Any]:
    """What is logged in one step, and the gradients of all examples of all processes."""
    options = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.01}
    trainer = trainer_of(folder, tfo.NoiseScale(every=1), max_steps=1, **options)
    trainer.train()
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, [micro.tolist() for micro in trainer.model.seen])
    return {"found": measured(trainer)[0], "gradients": every}


def main(out: str, folder: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {
        f"regression {n}": alone_and_together(Path(folder), n) for n in (1, 2)
    }
    for kind in ("ddp", "fsdp2"):
        logs = distributed_run.run("noise_scale", kind, Path(folder))["logs"]
        keys = ("gradient_signal", "gradient_variance")
        results[kind] = [[entry[key] for key in keys] for entry in logs]
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
