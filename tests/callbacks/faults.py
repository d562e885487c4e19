"""Faults to inject into a training: NaN and infinity in a loss, gradient, activation or weight."""

import math
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import unwrap_peft_model

KINDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PLACES = ("loss", "gradient", "activation", "weight")


class Fault(TrainerCallback):
    """Makes one number wrong in the second micro-batch of some steps, in one process.

    Args:
        place: of `PLACES`; a weight goes wrong before the step begins.
        value: what it becomes; for "scaled" places what it is multiplied with.
        steps: counted from 1.
        rank: of the process that it befalls.
    """

    def __init__(self, place: str, value: float, steps: tuple[int, ...] = (3,), rank: int = 0):
        self.place = place
        self.value = value
        self.steps = steps
        self.rank = rank
        self.micro_batch = 0
        self.is_due = False

    def into(self, trainer: Any) -> "Fault":
        """Take hold of a trainer."""
        self.model = unwrap_peft_model(trainer.model)
        own = trainer.compute_loss

        def compute_loss(*args: Any, **options: Any) -> Any:
            loss = own(*args, **options)
            self.micro_batch += 1
            is_due = self.place == "loss" and self.is_due and self.micro_batch == 2
            return loss * self.value if is_due else loss

        trainer.compute_loss = compute_loss
        layer = self.model.base_model.encoder.layer[1].output
        layer.register_forward_hook(self._activation)
        if layer.dense.weight.requires_grad:
            layer.dense.weight.register_hook(self._gradient)
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def _activation(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self.place != "activation" or not self.is_due or self.micro_batch != 1:
            return None
        broken = output.clone()
        broken[0, 0, 0] = self.value
        return broken

    def _gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        if self.place != "gradient" or not self.is_due or self.micro_batch != 2:
            return None
        broken = gradient.clone()
        broken[1, 2] = self.value
        return broken

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        is_here = args.process_index == self.rank
        self.is_due, self.micro_batch = is_here and state.global_step + 1 in self.steps, 0
        if self.is_due and self.place == "weight":
            with torch.no_grad():
                self.model.base_model.encoder.layer[0].output.dense.weight[1, 2] = self.value
