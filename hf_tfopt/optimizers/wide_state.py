"""Optimizer states that are wider than their parameters, saved and loaded as they are."""

from typing import Any

import torch

from hf_tfopt.optimizers.adamw import step_device


def load_wide_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Give back to a loaded state its own precision.

    torch casts a loaded state to its parameter's dtype, which would round it under bf16.

    Args:
        optimizer: which has just loaded the state.
        state_dict: what it was loaded from.
    """
    saved_ids = (index for group in state_dict["param_groups"] for index in group["params"])
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for index, parameter in zip(saved_ids, parameters, strict=True):
        for key, value in state_dict["state"].get(index, {}).items():
            device = step_device(parameter) if key == "step" else parameter.device
            optimizer.state[parameter][key] = value.detach().to(device, copy=True)
