"""The named schedules: warm-up and decay of a whole run, put together from the small ones.

An entry takes the run's updates and how many of them warm up, then its own options.
"""

from typing import NamedTuple

from hf_tfopt.registry import check_name
from hf_tfopt.schedules import compose, decays
from hf_tfopt.schedules.decays import Schedule

# What a falling part may look like, by name.
SHAPES = {
    "linear": decays.linear,
    "cosine": decays.cosine,
    "1-sqrt": decays.one_minus_sqrt,
}
DEFAULT_TIMESCALE = 10_000  # the host's, where there is no warm-up to take it from


class Curve(NamedTuple):
    """A whole run: `warmup_steps` updates up to 1, then the decay; all times `scale`.

    `ramp` is the way up, None: a straight line. `momentum`, if there is one, is the momentum (or
    the first of Adam's betas) at every update.
    """

    decay: Schedule
    warmup_steps: int
    scale: float = 1.0
    ramp: Schedule | None = None
    momentum: Schedule | None = None


def constant(num_steps: int, warmup_steps: int) -> Curve:
    """Warm up, then stay.

    Paper: none.
    """
    return Curve(decays.constant(), warmup_steps)


def linear(num_steps: int, warmup_steps: int) -> Curve:
    """Warm up, then fall in a straight line until the run ends.

    Paper: Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805, appendix A.2.
    """
    return Curve(decays.linear(num_steps - warmup_steps), warmup_steps)


def cosine(num_steps: int, warmup_steps: int) -> Curve:
    """Warm up, then fall along half a cosine until the run ends.

    Paper: Loshchilov and Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983; without restarts.
    """
    return Curve(decays.cosine(num_steps - warmup_steps), warmup_steps)


def cosine_with_restarts(
    num_steps: int,
    warmup_steps: int,
    num_cycles: int = 1,
    growth: float = 1.0,
    peak_decay: float = 1.0,
) -> Curve:
    """Warm up, then fall along half a cosine several times, from the peak each time.

    Args:
        num_steps: updates of the run.
        warmup_steps: of these, before the first cycle.
        num_cycles: 1 or more.
        growth: how many times longer each cycle is than the one before it, above 0.
        peak_decay: how many times higher each cycle begins than the one before it, in (0, 1].

    Paper: Loshchilov and Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983. Differs: the lengths
        are fitted to the run; the falling peak is not theirs.
    """
    _check("num_cycles", num_cycles, num_cycles >= 1 and int(num_cycles) == num_cycles, "1 or more")
    _check("growth", growth, growth > 0, "above 0")
    _check("peak_decay", peak_decay, 0 < peak_decay <= 1, "above 0, at most 1")
    length = num_steps - warmup_steps
    cycles = compose.restart(decays.cosine, length, int(num_cycles), growth, peak_decay)
    return Curve(cycles, warmup_steps)


def polynomial(num_steps: int, warmup_steps: int, power: float = 1.0) -> Curve:
    """Warm up, then fall as (1 - p)^power until the run ends.

    Paper: none; with power 1, Devlin et al. 2019, https://arxiv.org/abs/1810.04805.
    """
    _check("power", power, power > 0, "above 0")
    return Curve(decays.polynomial(num_steps - warmup_steps, power), warmup_steps)


def exponential(num_steps: int, warmup_steps: int, end: float = 0.01) -> Curve:
    """Warm up, then fall by the same factor at every update, to `end` when the run ends.

    Paper: none.
    """
    _check("end", end, 0 < end < 1, "above 0 and below 1")
    return Curve(decays.exponential(num_steps - warmup_steps, end), warmup_steps)


def inverse_sqrt(num_steps: int, warmup_steps: int, timescale: float | None = None) -> Curve:
    """Warm up, then fall as the inverse root of the updates, whenever the run ends.

    `√(t / (t + n - warmup_steps))` after n updates.

    Args:
        num_steps: not read: the run may become longer and its rate stays the same.
        warmup_steps: updates of the warm-up.
        timescale: t, above 0; none: the warm-up's length, and without one 10,000.

    Paper: Raffel et al. 2020, T5, https://arxiv.org/abs/1910.10683, section 3.1.2.
    """
    if timescale is not None:
        _check("timescale", timescale, timescale > 0, "above 0")
    return Curve(decays.inverse_sqrt(timescale or warmup_steps or DEFAULT_TIMESCALE), warmup_steps)


def noam(num_steps: int, warmup_steps: int, d_model: int = 512) -> Curve:
    """The original Transformer's absolute rate: the group's lr is its factor, 1 in the paper.

    `d_model^-½ · min(n^-½, n · warmup_steps^-1.5)` at update n, counted from 1.

    Args:
        num_steps: not read.
        warmup_steps: above 0.
        d_model: the model's width.

    Paper: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 3.
    """
    _check("d_model", d_model, d_model > 0, "above 0")
    _check("warmup_steps of noam", warmup_steps, warmup_steps > 0, "above 0")
    falling = decays.inverse_sqrt(warmup_steps)
    scale = (d_model * warmup_steps) ** -0.5
    return Curve(lambda step: falling(step + 1), warmup_steps, scale)


def warmup_stable_decay(
    num_steps: int,
    warmup_steps: int,
    decay_fraction: float = 0.2,
    decay_from: int | None = None,
    shape: str = "1-sqrt",
) -> Curve:
    """Warm up, stay, and fall to 0 in the last part of the run.

    To cool down from a checkpoint of the stable part: resume from it with `decay_from` its step
    and the run's new, shorter or longer, end.

    Args:
        num_steps: updates of the run.
        warmup_steps: of these, at its beginning.
        decay_fraction: share of the run that falls, in (0, 1].
        decay_from: the update at which it begins to fall, instead of a share.
        shape: "1-sqrt", "linear" or "cosine".

    Paper: Hu et al. 2024, MiniCPM, https://arxiv.org/abs/2404.06395, section 4; the shape, Hägele
        et al. 2024, https://arxiv.org/abs/2405.18392.
    """
    _check("decay_fraction", decay_fraction, 0 < decay_fraction <= 1, "above 0, at most 1")
    check_name("shape", shape, SHAPES)
    begin = num_steps - int(decay_fraction * num_steps) if decay_from is None else decay_from
    if not warmup_steps <= begin <= num_steps:
        what = f"decay_fraction {decay_fraction:g}" if decay_from is None else "decay_from"
        raise ValueError(
            f"{what}: the decay of a run of {num_steps} updates would begin at {begin}; it must be "
            f"after the {warmup_steps} of warm-up, and before the end"
        )
    stable = [(decays.constant(), begin - warmup_steps)]
    return Curve(compose.join(stable, SHAPES[shape](num_steps - begin)), warmup_steps)


def one_cycle(
    num_steps: int,
    warmup_steps: int,
    start: float = 0.04,
    end: float = 4e-6,
    low_momentum: float = 0.85,
    high_momentum: float = 0.95,
) -> Curve:
    """Rise along half a cosine and fall along another, with momentum the other way round.

    Args:
        num_steps: updates of the run.
        warmup_steps: of these, until the peak; 0: 30% of them.
        start: multiplier of the first update, in (0, 1).
        end: multiplier after the last, in [0, 1).
        low_momentum: momentum, or Adam's first beta, at the peak.
        high_momentum: the same at both ends.

    Paper: Smith and Topin 2018, Super-Convergence, https://arxiv.org/abs/1708.07120. Differs: half
        cosines for straight lines, and no third phase; as in fastai and torch.
    """
    _check("start", start, 0 < start < 1, "above 0 and below 1")
    _check("end", end, 0 <= end < 1, "0 or above, and below 1")
    is_ordered = 0 <= low_momentum <= high_momentum < 1
    _check("low_momentum", low_momentum, is_ordered, "0 or above, at most high_momentum, below 1")
    rising = warmup_steps or max(1, round(0.3 * num_steps))
    up, down = decays.cosine(rising), decays.cosine(num_steps - rising)
    gap = high_momentum - low_momentum
    momentum = compose.join(
        [(lambda step: low_momentum + gap * up(step), rising)],
        lambda step: high_momentum - gap * down(step),
    )

    def ramp(step: int) -> float:
        return 1.0 - (1.0 - start) * up(step)

    return Curve(compose.floor(down, end), rising, ramp=ramp, momentum=momentum)


def _check(name: str, value: float, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
