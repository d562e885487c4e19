"""Train every tiny model on the same batches, cut one way; run alone or under torchrun.

`python splits.py OUT BATCH_SIZE ACCUMULATION [how]` writes {model: {loss, grad_norm ...}}.
"""

import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import hf_tfopt as tfo
from tests.models import TINY, batch_for, tiny

NUM_STEPS = 3


class Rows(Dataset):
    def __init__(self, num_rows: int, seed: int = 0):
        self.batch = batch_for(None, num_rows, seed)

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.batch.items()}


def run(name: str, batch_size: int, accumulation: int, how: str = "tfopt") -> dict[str, Any]:
    """Losses, gradient norms, final weights and the evaluation loss of one short training."""
    model = tiny(name)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=NUM_STEPS,
            logging_steps=1,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.5,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        data = {"train_dataset": Rows(24), "eval_dataset": Rows(11, seed=1)}
        if how == "tfopt":
            trainer = tfo.TfoptTrainer(model, args, **data)
        else:
            trainer = Trainer(model, args, **data)
        if how == "attach":
            trainer = tfo.attach(trainer, loss=tfo.loss_func("cross_entropy"))
        trainer.train()
        scores = trainer.evaluate()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {
        "loss": [entry["loss"] for entry in steps],
        "grad_norm": [entry["grad_norm"] for entry in steps],
        "weights": weights.double().square().sum().sqrt().item(),
        "projection": (weights.double() @ _direction(weights.numel())).item(),
        "eval_loss": scores["eval_loss"],
    }


def _direction(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def main(out: str, batch_size: str, accumulation: str, how: str = "tfopt") -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    results = {name: run(name, int(batch_size), int(accumulation), how) for name in TINY}
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
