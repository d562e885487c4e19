"""Short trainings whose batches are planned; run alone or under torchrun.

`python planned_run.py OUT BATCH_SIZE ACCUMULATION` writes what `run` gives for every plan.
"""

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.data.batch_plan import BatchPlan
from hf_tfopt.data.batch_size_warmup import BatchSizeWarmup
from hf_tfopt.data.token_budget import TokenBudget
from tests.callbacks.runs import weights_of
from tests.models import VOCABULARY, tiny
from tests.test_trainer import arguments, losses

NUM_ROWS = 49
PLANS: dict[str, Callable[[], BatchPlan]] = {
    "token_budget": lambda: TokenBudget(64, seed=1),
    "batch_size_warmup": lambda: BatchSizeWarmup(4, 3, seed=1),
}


def rows(num_rows: int = NUM_ROWS, seed: int = 0) -> datasets.Dataset:
    """Token ids of 2 to 20 in a row, most of them few; the first is the row's number."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(2 + random.geometric(0.2, num_rows), 20)
    ids = [[5 + row, *random.integers(5, VOCABULARY, n - 1)] for row, n in enumerate(lengths)]
    return datasets.Dataset.from_dict({"input_ids": ids})


def padded(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator; every second token is a target."""
    ids = [torch.tensor(feature["input_ids"]) for feature in features]
    targets = [row.where(torch.arange(len(row)) % 2 == 0, -100) for row in ids]
    masks = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(masks, batch_first=True),
        "labels": pad_sequence(targets, batch_first=True, padding_value=-100),
    }


class Seen:
    """A collator that notes the rows of every batch it makes."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.batches.append([feature["input_ids"][0] - 5 for feature in features])
        return padded(features)


def trainer_for(
    folder: str | Path, plan: BatchPlan, collator: Any = padded, **options: Any
) -> Trainer:
    """A Trainer of a tiny BERT on `rows`, whose batches are planned."""
    settings = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-3,
        **options,
    }
    return tfo.TfoptTrainer(
        tiny("bert"),
        arguments(Path(folder), **settings),
        train_dataset=rows(),
        data_collator=collator,
        sampler=plan,
    )


def run(name: str, batch_size: int, accumulation: int) -> dict[str, Any]:
    """Losses, gradient norms and weights of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(
            folder,
            PLANS[name](),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
        )
        trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
    weights = weights_of(trainer.model).double()
    return {"losses": losses(trainer), "norms": norms, "weights": weights.norm().item()}


def main(out: str, batch_size: str, accumulation: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    results = {name: run(name, int(batch_size), int(accumulation)) for name in PLANS}
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
