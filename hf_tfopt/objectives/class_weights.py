"""Weights of classes, or of tokens: checked, and at hand on every device that asks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ClassWeights:
    """One number for each class, what a label of it counts for; or none.

    Args:
        weights: [C], finite, at least 0 and not all 0; None: every label counts for 1.

    Raises:
        ValueError: anything else.
    """

    def __init__(self, weights: Sequence[float] | Tensor | None):
        # Batches are counted where they are loaded and trained elsewhere: a copy for either.
        self._copies: dict[torch.device, Tensor] = {}
        self._weights = None if weights is None else _checked(weights)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._weights is not None

    def on(self, device: torch.device) -> Tensor | None:
        """The weights [C] there, fp32."""
        if self._weights is None:
            return None
        if device not in self._copies:
            self._copies[device] = self._weights.to(device)
        return self._copies[device]

    def check_number(self, num_classes: int, of_what: str) -> None:
        """Refuse weights that are not as many as the classes.

        Args:
            num_classes: C.
            of_what: what has them, and what to do about it.

        Raises:
            ValueError: another number.
        """
        if self._weights is not None and len(self._weights) != num_classes:
            raise ValueError(f"{len(self._weights)} class_weights for {of_what}")


def _checked(weights: Any) -> Tensor:
    rule = "class_weights are a list or tensor of one number for each class, in the classes' order"
    try:
        checked = torch.as_tensor(weights, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{rule}, not {type(weights).__name__} {str(weights)[:80]}") from error
    if checked.dim() != 1:
        raise ValueError(f"{rule}, not of the shape {tuple(checked.shape)}")
    is_wrong = ~(checked.isfinite() & (checked >= 0))
    if bool(is_wrong.any()):
        place = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"class_weights[{place}] is {float(weights[place])}; each must be finite and at least 0"
        )
    if not bool(checked.any()):
        raise ValueError("no number of class_weights is above 0: no label would count")
    return checked
