"""Schedule-Free AdamW, of the package schedulefree: an average of the weights for a decay."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.adamw import as_groups
from hf_tfopt.optimizers.checks import check_adam, check_not_negative, check_positive
from hf_tfopt.registry import Lazy

_ADAMW = Lazy("schedulefree:AdamWScheduleFree", extra="schedulefree")


def schedule_free(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    warmup_steps: int = 0,
    step_power: float = 0.0,
    lr_power: float = 2.0,
) -> torch.optim.Optimizer:
    """Build `schedulefree.AdamWScheduleFree`: no decay of the lr, but an average of the weights.

        y = (1 - β₁)·z + β₁·x;   z ← z - lr·(g(y) / (√v̂ + ε) + λ·y);   x ← (1 - c)·x + c·z

    with v̂ the average of g² without its bias, and step t's share c proportional to
    t^step_power · (largest lr so far)^lr_power. The model holds y in training (`optimizer.train()`)
    and x, the weights to evaluate and to save, after `optimizer.eval()`. The host changes over for
    training steps and evaluations; `EvaluationWeights` does for checkpoints and at the end. Give it
    a constant lr, and `warmup_steps` for a warm-up.

    Its state (z and v) has the parameters' precision. In bf16 v stops short of the average of g²,
    as its steps get too small: keep the weights in fp32 and train with autocast. Under DeepSpeed
    ZeRO, which trains copies of the weights, the model would keep y:
    `EvaluationWeights` refuses it. Leave β₁ as it is: it tells x from y.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own; often 1 to 10 times AdamW's.
        weight_decay: λ of groups that have none of their own, 0 or above.
        betas: β₁, the share of x in y, in (0, 1), and the share of the old average of g² that each
            step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        warmup_steps: steps over which the lr rises, a whole number; 0: none.
        step_power: above 0, later steps count more.
        lr_power: above 0, steps of the warm-up count less.

    Raises:
        ValueError: for a number outside its range.
        ImportError: without the package.

    Paper: Defazio et al. 2024, The Road Less Scheduled, https://arxiv.org/abs/2405.15682,
        algorithm 1. Differs: as in the package, the average weighs by lr_max instead of the lr.
    """
    check_adam(lr, weight_decay, betas, eps)
    check_positive("betas[0]", betas[0])  # x = y + (1 - 1/β₁)·(z - y)
    check_not_negative("step_power", step_power)
    check_not_negative("lr_power", lr_power)
    _check_steps(warmup_steps)
    groups, _ = as_groups(params)
    return _ADAMW.load()(
        groups,
        lr=lr,
        weight_decay=weight_decay,
        betas=tuple(betas),
        eps=eps,
        warmup_steps=warmup_steps,
        r=step_power,
        weight_lr_power=lr_power,
    )


def _check_steps(warmup_steps: Any) -> None:
    is_whole = isinstance(warmup_steps, int) and not isinstance(warmup_steps, bool)
    if not is_whole or warmup_steps < 0:
        raise ValueError(
            f"warmup_steps must be a whole number of steps, got {warmup_steps!r}: Schedule-Free "
            "does not know how long the run is, so it takes no share of it"
        )
