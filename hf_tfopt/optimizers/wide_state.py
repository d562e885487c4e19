"""Optimizers whose state is wider than their parameters: their step, and their state loaded."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.adamw import step_device


class WideStateOptimizer(torch.optim.Optimizer):
    """A step group by group, and a state that is saved and loaded in its own precision."""

    @abstractmethod
    def step_group(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.step_group([p for p in group["params"] if p.grad is not None], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave.

        torch casts a loaded state to its parameter's dtype, which would round it under bf16.
        """
        super().load_state_dict(state_dict)
        saved_ids = (index for group in state_dict["param_groups"] for index in group["params"])
        parameters = (p for group in self.param_groups for p in group["params"])
        for index, parameter in zip(saved_ids, parameters, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                device = step_device(parameter) if key == "step" else parameter.device
                self.state[parameter][key] = value.detach().to(device, copy=True)
