"""How settings that were tuned on one size carry over to another; each rule with its domain."""

import math
import re
from typing import NamedTuple

from torch import nn

from hf_tfopt.optimizers.checks import check_betas, check_not_negative, check_positive
from hf_tfopt.optimizers.param_groups import named_roles


class AdamSettings(NamedTuple):
    """What the square-root rule changes together."""

    lr: float
    betas: tuple[float, float]
    eps: float


def linear_scaling(lr: float, batch_factor: float) -> float:
    """Multiply the lr by κ for a batch κ times as large: for SGD, not for Adam and its kin.

    Args:
        lr: tuned with the old batch.
        batch_factor: κ, examples (or tokens) in the new batch over those in the old, above 0.

    Paper: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 2.1; with a warm-up, and up
        to a batch where it ends to hold.
    """
    check_positive("lr", lr)
    check_positive("batch_factor", batch_factor)
    return lr * batch_factor


def square_root_scaling(
    lr: float,
    batch_factor: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamSettings:
    """√κ · lr, 1 - κ (1 - β), ε / √κ for a batch κ times as large. For Adam, AdamW and LAMB.

    Args:
        lr: tuned with the old batch.
        batch_factor: κ, examples (or tokens) in the new batch over those in the old, above 0.
        betas: of the old batch, in [0, 1).
        eps: of the old batch.

    Raises:
        ValueError: for a number outside its range, or a factor so large that a beta would be
            below 0: there the rule has no answer.

    Paper: Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms,
        https://arxiv.org/abs/2205.10287, definition 5.2.
    """
    check_positive("lr", lr)
    check_positive("batch_factor", batch_factor)
    check_betas(betas)
    check_not_negative("eps", eps)
    limit = 1 / (1 - min(betas))
    if batch_factor > limit:
        raise ValueError(
            f"batch_factor is {batch_factor:g}: with betas {betas} the rule ends at {limit:g}, "
            "where the smaller beta would be 0"
        )
    beta1, beta2 = (1 - batch_factor * (1 - beta) for beta in betas)
    return AdamSettings(lr * math.sqrt(batch_factor), (beta1, beta2), eps / math.sqrt(batch_factor))


def width_scaling(d_model: int) -> float:
    """1 / √d_model: the factor that the original Transformer's schedule (`noam`) has.

    For encoder-decoders trained with Adam after its recipe; between other models it is no rule.

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 3.
    """
    check_positive("d_model", d_model)
    return d_model**-0.5


def mup_multipliers(model: nn.Module, base_width: int, width: int) -> dict[str, float]:
    """By parameter name, what μP multiplies Adam's learning rate by, when a model is made wider.

    1 / m for the matrices that map hidden states to hidden states and for an output layer of its
    own, m being width / base_width; 1 for embeddings, biases and normalisations. Fit for
    `param_groups(multipliers=...)`, whose patterns they are. The other half of μP, the
    initialisation (and logits / m where the output is tied), is the model's: rates alone do not
    make a tuned lr carry over.

    Args:
        model: the wide one.
        base_width: hidden size of the model that the lr was tuned on.
        width: hidden size of this one.

    Paper: Yang et al. 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466, table 8.
    """
    check_positive("base_width", base_width)
    check_positive("width", width)
    return {
        f"^{re.escape(parameter.name)}$": base_width / width
        for parameter in named_roles(model)
        if parameter.role in ("matrices", "heads")
    }
