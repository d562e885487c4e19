"""What the trainer asks of an objective."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from hf_tfopt.losses.reduction import LossSum


class Objective(Protocol):
    """Turns a model and a batch into named loss sums; dividing them is not its business."""

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Look at the model (without wrappers) and a first batch, once, before any step."""
        ...

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Each term's count of items in a batch, from the batch alone."""
        ...

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[dict[str, LossSum], Any]:
        """The named loss sums, and the model's outputs where they are asked for.

        Args:
            model: what to call: the model in its wrappers (DDP, compiled ...).
            module: the same model without wrappers.
            batch: the model's inputs and labels, on its device.
            with_outputs: whether the outputs (full logits) are wanted, as metrics need them.
        """
        ...

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Evaluation metrics made of the terms' means over the whole evaluation set."""
        ...
