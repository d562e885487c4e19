"""Short trainings for the tests of callbacks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

import hf_tfopt as tfo
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments

# What is told of the machine, not of the run: it is not the same twice.
OF_THE_MACHINE = ("time/", "memory/", "train_", "eval_runtime", "eval_samples", "eval_steps")


class Reporter(TrainerCallback):
    """Stands for a tracker."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.seen.append(dict(logs))


def trainer_with(
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    how: str = "tfopt",
    model: Any = None,
    num_rows: int = 32,
    lr: float = 1e-3,
    **options: Any,
) -> Trainer:
    """A Trainer of a tiny BERT for four steps of 2 × 4 rows, constructed or attached to."""
    model = tiny("bert") if model is None else model
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "constant",
        **options,
    }
    if any(getattr(callback, "needs_unclipped", False) for callback in callbacks):
        settings["max_grad_norm"] = 0.0
    data = {"train_dataset": Rows(num_rows), "eval_dataset": Rows(8, seed=1)}
    args = arguments(folder, **settings)
    optimizer = tfo.optimizer("adamw", lr=lr, weight_decay=0.01)
    if how == "tfopt":
        return tfo.TfoptTrainer(
            model, args, callbacks=list(callbacks), optimizer_cls_and_kwargs=optimizer, **data
        )
    trainer = Trainer(model, args, optimizer_cls_and_kwargs=optimizer, **data)
    return tfo.attach(trainer, callbacks=callbacks)


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    """All weights, in a vector."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def history_of(trainer: Trainer) -> list[dict[str, Any]]:
    """The logs of training, without what is of the machine; NaN as text, which equals itself."""
    return [
        {name: _comparable(v) for name, v in entry.items() if not name.startswith(OF_THE_MACHINE)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def _comparable(value: Any) -> Any:
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def num_hooks(model: torch.nn.Module) -> int:
    """The hooks of all modules and tensors of a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_modules = sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return of_modules + sum(
        len(getattr(p, kind) or ()) for p in model.parameters() for kind in kinds
    )
