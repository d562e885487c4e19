"""Train every case on the same batches, cut one way; run alone or under torchrun.

`python splits.py OUT BATCH_SIZE ACCUMULATION CASE ...` writes {case: {loss, grad_norm ...}}.
"""

import json
import logging
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

import hf_tfopt as tfo
from tests.invariants.cases import Columns, all_cases
from tests.models import batch_for

NUM_STEPS = 3


class Rows(Columns):
    """Rows of token ids with a different number of labels in each."""

    def __init__(self, num_rows: int, seed: int = 0):
        super().__init__(batch_for(None, num_rows, seed))


def run(name: str, batch_size: int, accumulation: int, how: str = "tfopt") -> dict[str, Any]:
    """Losses, gradient norms, final weights and the evaluation loss of one short training."""
    case = all_cases()[name]
    model = case.model()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=NUM_STEPS,
            logging_steps=1,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=case.max_grad_norm,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        data = {
            "train_dataset": Columns(case.batch(24, 0)),
            "eval_dataset": Columns(case.batch(11, 1)),
        }
        if how == "tfopt":
            made = {"objective": case.objective(), "callbacks": case.callbacks()}
            trainer = tfo.TfoptTrainer(model, args, **made, **data)
        else:
            trainer = Trainer(model, args, **data)
        if how == "attach":
            trainer = tfo.attach(trainer, loss=tfo.loss_func("cross_entropy"))
        trainer.train()
        scores = trainer.evaluate()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    logged = {key for entry in steps for key in entry} - {"epoch", "step", "learning_rate"}
    return {
        **{key: [entry.get(key, math.nan) for entry in steps] for key in sorted(logged)},
        "weights": weights.double().square().sum().sqrt().item(),
        "projection": (weights.double() @ _direction(weights.numel())).item(),
        **{key: scores[key] for key in scores if _is_exact(key)},
    }


def _is_exact(key: str) -> bool:
    return key.startswith("eval_") and not key.endswith(("_runtime", "_second"))


def _direction(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def main(out: str, batch_size: str, accumulation: str, *names: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    results = {name: run(name, int(batch_size), int(accumulation)) for name in names}
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
