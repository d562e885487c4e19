"""Losses in the shape of the stock Trainer's `compute_loss_func`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.losses import LOSSES
from hf_tfopt.losses.cross_entropy import CrossEntropyForm
from hf_tfopt.losses.head import logits_of, shift
from hf_tfopt.losses.reduction import divide


def loss_func(
    name: str = "cross_entropy",
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    shift_labels: bool | None = None,
) -> Callable[..., Tensor]:
    """A loss for `Trainer(compute_loss_func=...)`, exact under accumulation and many processes.

    Gives `sum(loss) / num_items_in_batch`, where the host counts the items over all accumulated
    micro-batches of all processes. In evaluation (no gradients) the loss is plain. For
    GPT-2, whose labels the host does not know to be shifted, it also counts the label of each first
    position; and T5 or BART need `decoder_input_ids` in the batch: `tfo.attach` sees to both.

    Args:
        name: an entry of `LOSSES`.
        label_smoothing: ε in [0, 1), the ε / C form.
        z_loss: factor of `logsumexp(logits)²`, at least 0; of cross_entropy.
        focal_gamma: γ of the factor (1 - p)^γ, at least 0; not with label_smoothing.
        shift_labels: whether position i is trained on label i + 1. None: as the kind of the model's
            output says (`CausalLM...Output` is shifted). Wrong for a model of another kind that
            returns such an output, so say it there.

    Raises:
        UnknownNameError: no such loss.
        UnknownOptionError: an option that the loss does not have.
        ValueError: an option out of its range.
    """
    form = CrossEntropyForm(label_smoothing, z_loss, focal_gamma)
    options = {option: value for option, value in vars(form).items() if value}
    loss = LOSSES.check_options(name, options)

    def compute_loss(
        outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        is_causal = "CausalLM" in type(outputs).__name__
        targets = shift(labels) if shift_labels or (shift_labels is None and is_causal) else labels
        term = loss(logits_of(outputs), targets, **(options if torch.is_grad_enabled() else {}))
        return divide(term.sum, term.count if num_items_in_batch is None else num_items_in_batch)

    return compute_loss
