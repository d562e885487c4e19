"""What the trainer asks of an objective."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from hf_tfopt.losses.reduction import Terms, present, summed


class Objective:
    """Turns a model and a batch into named loss sums; dividing them is not its business.

    A term's name is in `counts` and in the training `terms` of *every* batch, with a sum and a
    count of 0 where the batch has nothing for it, so that all processes speak of the same terms.
    """

    # Columns of a batch that hold targets: `losses.reduction.unlabelled` takes rows out of them.
    targets: tuple[str, ...] = ("labels",)
    # Forward and backward passes of one micro-batch; above 1 `passes` says what each one is.
    num_passes: int = 1
    # Optimizer steps taken so far, set by the trainer: what is random is a function of it.
    step: int = 0
    # Each term's count over the whole batch of this step, set by the trainer.
    batch_counts: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def weights(self) -> Mapping[str, float]:
        """Each term's factor in the training loss; 1 where not given. Evaluation adds plainly."""
        return {}

    def bind(self, module: nn.Module) -> None:
        """Know the model (without wrappers) that is trained, before there is an optimizer.

        The place to refuse it, or to add parameters; may be called again, with the same model too.
        """

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Look at the model (without wrappers) and a first batch, once, before any step."""

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Each term's count of items in a batch, from the batch alone; refuses bad targets."""
        raise NotImplementedError

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """The named loss sums, and the model's outputs where they are asked for.

        In evaluation (`model.training` is false) the plain loss: not smoothed, no teacher.

        Args:
            model: what to call: the model in its wrappers (DDP, compiled ...).
            module: the same model without wrappers.
            batch: the model's inputs and labels, on its device.
            with_outputs: whether the outputs (full logits) are wanted, as metrics need them.
        """
        raise NotImplementedError

    def passes(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any]
    ) -> Iterator[Terms]:
        """The terms of each of `num_passes` passes over one training micro-batch.

        The trainer takes the gradient of what is yielded (each term over its count of the whole
        batch, times its weight) before it asks for more, so that the next pass may look at it.
        """
        yield self.terms(model, module, batch, False)[0]

    def gradients_ready(self, module: nn.Module, mean: Callable[[Tensor], Tensor]) -> None:
        """All gradients of a step are there, before they are clipped.

        Args:
            module: the model without wrappers.
            mean: the mean of a tensor over all processes.
        """

    def trained(self, means: Mapping[str, float]) -> dict[str, float]:
        """What a log of training tells beside the loss: each term if there are several.

        Args:
            means: each term's over all that was trained since the last log; NaN where nothing was
                counted.
        """
        return present(means) if len(means) > 1 else {}

    def evaluated(self, means: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation reports: the loss, each term if there are several, the metrics.

        Args:
            means: each term's over the whole evaluation set; NaN where nothing was counted.
        """
        several = present(means) if len(means) > 1 else {}
        return {"loss": summed(means), **several, **self.metrics(means)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Evaluation metrics made of the terms' means over the whole evaluation set."""
        return {}
