"""Gradients clipped by what is usual: for the weights, or for the steps before."""

import math
from collections.abc import MutableMapping
from typing import Any

import numpy as np
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_tfopt.callbacks.clipping import NO_GROUPS, Clipping, grouped_by, say_if_at_rest
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.optimizers.checks import check_count, check_not_negative, check_positive, check_share
from hf_tfopt.optimizers.group_clipping import clip_groups, clip_units
from hf_tfopt.places import named_places


class AdaptiveGradientClipping(Clipping):
    """An intervention, AGC: gᵢ ← gᵢ · min(1, clipping · max(‖wᵢ‖, eps) / ‖gᵢ‖) for each unit i.

    A unit is one output of a linear map or a convolution (a row of torch's matrices, a column of
    the transposed ones of GPT-2), one token of an embedding, and all of a vector, as a bias. Units
    whose norm is not finite are left as they are.

    The head, which is what stands above the body, is left alone; a table that is tied to it counts
    as an embedding, and is clipped.

    | name | what |
    |---|---|
    | `clip_share/units` | the share of units that were clipped, mean since the last log |

    Costs one reading of gradients and weights, and one pass over what is shortened (on CUDA over
    all). Sharded by rows, as FSDP2 does it, vectors need one message; transposed matrices need one
    each.

    Args:
        clipping: the largest ‖gᵢ‖ / ‖wᵢ‖, above 0.
        eps: the least ‖wᵢ‖ that is reckoned with, so that weights of 0 can begin to move.

    Raises:
        ValueError: a number that is not above 0; before the first step, an engine that hides the
            gradients.

    Paper: Brock et al. 2021, High-Performance Large-Scale Image Recognition Without Normalization,
        https://arxiv.org/abs/2102.06171, equation 3. Differs: all of the head is excluded, where
        the paper excludes the final linear layer.
    """

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3):
        super().__init__()
        check_positive("clipping", clipping)
        check_positive("eps", eps)
        self.clipping = clipping
        self.eps = eps
        self._units: list[tuple[nn.Parameter, int | None]] = []

    def begin(self, training: Training) -> None:
        """Find the units."""
        super().begin(training)
        self._units = units_of(training.model)
        what = "AdaptiveGradientClipping: what is not the head"
        say_if_at_rest(training, what, [parameter for parameter, _ in self._units])

    def release(self) -> None:
        """Let go of the model."""
        super().release()
        self._units = []

    def gradients(self, training: Training) -> None:
        """Shorten them."""
        trained = [(p, dim) for p, dim in self._units if p.grad is not None]
        parameters, dims = [p for p, _ in trained], [dim for _, dim in trained]
        share = clip_units(parameters, dims, self.clipping, self.eps)
        self.count(("units",), share.unsqueeze(0))


def units_of(model: nn.Module) -> list[tuple[nn.Parameter, int | None]]:
    """Each parameter outside the head, and the dimension of its units; None: it is one unit."""
    transposed = {
        parameter
        for module in model.modules()
        if isinstance(module, Conv1D)
        for parameter in module.parameters(recurse=False)
    }
    places = named_places(model)
    return [
        (p, None if p.ndim < 2 else int(p in transposed))
        for name, p in model.named_parameters()
        if places[name].part != "head"
    ]


class _ByNorm(Clipping):
    """Clips the global norm of all gradients to a limit found from those of the steps before."""

    needs_unclipped = True
    label = ""

    def __init__(self) -> None:
        super().__init__()
        self._groups = NO_GROUPS

    def begin(self, training: Training) -> None:
        """All weights are one group."""
        super().begin(training)
        self._groups = grouped_by(training.model, "global")

    def release(self) -> None:
        """Let go of the model."""
        super().release()
        self._groups = NO_GROUPS

    def limit(self, norm: float) -> float:
        """The largest norm of this step, whose own is a finite number above 0; learns from it."""
        raise NotImplementedError

    def threshold(self) -> float | None:
        """The norm above which the next step would be clipped, if it is known."""
        raise NotImplementedError

    def gradients(self, training: Training) -> None:
        """Shorten them; what is not finite, or 0 everywhere, is passed over."""
        gradients = self._groups.gradients()
        norms = self._groups.norms(gradients)
        norm = float(norms)
        limit = self.limit(norm) if 0 < norm < math.inf else math.inf
        limits = norms.new_full((1,), limit)
        shortened = clip_groups(gradients, self._groups.members, norms, limits)
        self.count((self.label,), shortened)

    def scalars(self, training: Training) -> Scalars:
        """The shares, and the threshold as it stands."""
        threshold = self.threshold()
        found = {} if threshold is None else {f"clip_threshold/{self.label}": threshold}
        return {**super().scalars(training), **found}


class ZClip(_ByNorm):
    """An intervention: steps whose gradient is unusually long are shortened, the more the longer.

    With mean μ and standard deviation σ of the global norms before: where z = (‖g‖ - μ) / σ is
    above `z`, g ← g · (μ + z_max²/z · σ) / ‖g‖. Then μ ← m·μ + (1 - m)·‖g‖ and, with this μ,
    σ² ← m·σ² + (1 - m)·(‖g‖ - μ)², of the norm as it has become. In the first `warmup_steps` steps
    nothing is clipped; μ and σ² begin as the mean and the variance of their norms.

    A step whose norm is not finite or is 0 is passed over: nothing is changed, nothing is learnt.
    With `max_grad_norm=0` the host, which takes the norm all the same, spreads an infinite gradient
    to all others as NaN before this is asked. μ, σ² and the norms of the warm-up are in every
    checkpoint.

    | name | what |
    |---|---|
    | `clip_share/zclip` | the share of the steps since the last log that were clipped |
    | `clip_threshold/zclip` | μ + z·σ, the norm above which the next step would be clipped |

    Costs one reading of the gradients, and of one number in every step, which waits for the device.

    Args:
        z: z_max, the standard deviations above the mean from which a norm is unusual, above 0.
        momentum: the share m of the old statistics that is kept, in [0, 1).
        warmup_steps: at least 2.

    Raises:
        ValueError: a number out of its range; before the first step, `max_grad_norm` above 0, or an
            engine that hides the gradients.

    Paper: Kumar et al. 2025, ZClip: Adaptive Spike Mitigation for LLM Pre-Training,
        https://arxiv.org/abs/2504.02507, and its code, which divides by σ + 1e-6. Differs: without
        the code's further limit of 1.0, which `GradientClipping("global")` beside it is.
    """

    label = "zclip"

    def __init__(self, z: float = 2.5, momentum: float = 0.97, warmup_steps: int = 25):
        super().__init__()
        check_positive("z", z)
        check_share("momentum", momentum)
        check_count("warmup_steps", warmup_steps)
        if warmup_steps < 2:
            raise ValueError("warmup_steps must be at least 2: one norm has no deviation")
        self.z = z
        self.momentum = momentum
        self.warmup_steps = warmup_steps

    def limit(self, norm: float) -> float:
        """See `zclip`."""
        return zclip(self.remembered, norm, self.z, self.momentum, self.warmup_steps)

    def threshold(self) -> float | None:
        """μ + z·σ, after the warm-up."""
        if "mean" not in self.remembered:
            return None
        return self.remembered["mean"] + self.z * self.remembered["variance"] ** 0.5


def zclip(
    state: MutableMapping[str, Any], norm: float, z: float, momentum: float, warmup_steps: int
) -> float:
    """The largest norm that ZClip allows; infinite where there is none. See `ZClip`.

    Args:
        state: empty at first; the norms of the warm-up, then "mean" and "variance".
        norm: ‖g‖, finite.
        z: see `ZClip`.
        momentum: see `ZClip`.
        warmup_steps: see `ZClip`.
    """
    if "mean" not in state:
        norms = [*state.get("norms", []), norm]
        if len(norms) < warmup_steps:
            state["norms"] = norms
            return math.inf
        state.pop("norms", None)
        state["mean"], state["variance"] = float(np.mean(norms)), float(np.var(norms))
        return math.inf
    deviation = state["variance"] ** 0.5
    score = (norm - state["mean"]) / (deviation + 1e-6)
    limit = state["mean"] + z * deviation * z / score if score > z else math.inf
    reached = min(norm, limit)
    state["mean"] = momentum * state["mean"] + (1 - momentum) * reached
    state["variance"] *= momentum
    state["variance"] += (1 - momentum) * (reached - state["mean"]) ** 2
    return limit


class PercentileClipping(_ByNorm):
    """An intervention, AutoClip: the global norm is clipped to a percentile of those seen.

    max_norm = percentile(‖g‖ of the last `window` steps, this one included), by linear
    interpolation; the norms are those before clipping. A step whose norm is not finite or is 0 is
    passed over: nothing is changed, nothing is learnt. The norms are in every checkpoint.

    | name | what |
    |---|---|
    | `clip_share/percentile` | the share of the steps since the last log that were clipped |
    | `clip_threshold/percentile` | the percentile as of the last step |

    Costs one reading of the gradients, one of a number in every step, which waits for the device,
    and, in a checkpoint, 20 bytes for each norm.

    Args:
        percentile: in [0, 100); at 10, about nine steps of ten are clipped.
        window: the number of norms that are kept, at least 2.

    Raises:
        ValueError: a number out of its range; before the first step, `max_grad_norm` above 0, or an
            engine that hides the gradients.

    Paper: Seetharaman et al. 2020, AutoClip: Adaptive Gradient Clipping for Source Separation
        Networks, https://arxiv.org/abs/2007.14469, algorithm 1. Differs: the paper keeps the norms
        of all steps.
    """

    label = "percentile"

    def __init__(self, percentile: float = 10, window: int = 1000):
        super().__init__()
        check_not_negative("percentile", percentile)
        if percentile >= 100:
            raise ValueError(
                f"percentile is {percentile}; it must be below 100, where nothing would be clipped"
            )
        check_count("window", window)
        if window < 2:
            raise ValueError("window must be at least 2: no norm is longer than itself")
        self.percentile = percentile
        self.window = window

    def limit(self, norm: float) -> float:
        """The percentile, with this norm."""
        norms = [*self.remembered.get("norms", []), norm][-self.window :]
        self.remembered["norms"] = norms
        return float(np.percentile(norms, self.percentile))

    def threshold(self) -> float | None:
        """The percentile as it stands."""
        norms = self.remembered.get("norms")
        return float(np.percentile(norms, self.percentile)) if norms else None
