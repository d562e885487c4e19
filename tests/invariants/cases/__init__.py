"""What the equivalence tests train: each module here has a table `CASES` of name -> Case."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from hf_tfopt.objectives.base import Objective


class Case(NamedTuple):
    """One model and objective, to be trained on the same rows cut in every way.

    Args:
        model: makes it, with the same weights at every call and no dropout.
        batch: (number of rows, seed) -> the columns of so many rows.
        objective: makes it (and its teacher), the same at every call.
        learning_rate: of plain SGD.
        callbacks: makes them.
        max_grad_norm: of the host's own clipping; 0: none.
    """

    model: Callable[[], Any]
    batch: Callable[[int, int], dict[str, torch.Tensor]]
    objective: Callable[[], Objective]
    learning_rate: float = 0.1
    callbacks: Callable[[], list[TrainerCallback]] = list
    max_grad_norm: float = 0.5


class Columns(Dataset):
    """A batch's columns as a dataset of rows."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def __len__(self) -> int:
        return len(next(iter(self.batch.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.batch.items()}


def all_cases() -> dict[str, Case]:
    """The tables of every module of this folder, together."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    tables = [import_module(f"{__name__}.{name}").CASES for name in names]
    return {name: case for table in tables for name, case in table.items()}
