"""The learning rate's range test: a short run whose rate rises, read from its smoothed curve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_tfopt.plotting import smoothed

SPAN = 0.12  # share of the updates that one smoothed value is taken from, to either side
STOP_AT = 1.5  # of the lowest smoothed loss: beyond it nothing is learned about useful rates
FEWEST = 10
NEARLY = 0.9  # of the whole fall, which the recommended rate has behind it
_NOISE = 5.0  # standard deviations of the curve that it must fall by: 1 in 15 of mere noise does

_ROUNDING = 1e-6  # of an fp32 loss


@dataclass(frozen=True)
class RangeReading:
    """What a range test says.

    Args:
        rates: of every update that was read, rising.
        losses: at these rates, as they were.
        smooth: the same, smoothed; all that follows is of this curve.
        recommended: the first rate at which nine tenths of its fall are behind it: the highest
            learning rate to train with; None if it never falls.
        steepest: the rate at which it falls fastest; None if it never falls.
        lowest: the rate at which it is lowest; None if it never falls.
        note: what keeps the test from being settled; empty if nothing does.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    recommended: float | None
    steepest: float | None
    lowest: float | None
    note: str = ""


def rising_rates(lowest: float, highest: float, num_steps: int) -> list[float]:
    """`lowest · (highest / lowest)^(n / (num_steps - 1))` for n = 0, 1 ...

    Args:
        lowest: the first update's rate, above 0.
        highest: the last one's.
        num_steps: updates, 10 or more.

    Raises:
        ValueError: for a number outside its range.
    """
    if not 0 < lowest < highest < math.inf:
        raise ValueError(
            f"the rates must rise from above 0: got lowest {lowest:g}, highest {highest:g}"
        )
    if num_steps < FEWEST:
        raise ValueError(f"a range test needs {FEWEST} updates or more, got {num_steps}")
    return [float(rate) for rate in np.geomspace(lowest, highest, num_steps)]


def should_stop(losses: Sequence[float], stop_at: float = STOP_AT) -> bool:
    """Whether a range test has seen enough: the loss is not a number, or its curve is far up again.

    `not isfinite(losses[-1])`, or `s[-1] > stop_at · min(s)` of the smoothed losses s so far.

    Args:
        losses: above 0, one for each update so far.
        stop_at: above 1.
    """
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < FEWEST:
        return False
    curve = smoothed(np.array(losses), SPAN)
    return bool(curve[-1] > stop_at * curve.min())


def read_lr_range(rates: Sequence[float], losses: Sequence[float]) -> RangeReading:
    """Read a range test: where its smoothed curve is lowest, and how high a rate is still sound.

    With s the losses as `plotting.smoothed` smooths them (a centred average, which does not lag),
    up to its lowest point, and x = log(rate): `lowest = rates[argmin(s)]`,
    `steepest = rates[argmin(ds/dx)]`, and recommended is the first rate at which s is at or below
    `max(s) - 0.9 (max(s) - min(s))`: a little below the lowest point, which moves with noise where
    the curve is flat. What follows the first loss that is not finite is not read.

    Args:
        rates: one for each update, rising.
        losses: of the same updates; as many, or fewer where the run was stopped.

    Raises:
        ValueError: rates that do not rise, more losses than rates, or fewer than 10 finite losses.

    Paper: Smith 2017, Cyclical Learning Rates for Training Neural Networks,
        https://arxiv.org/abs/1506.01186, section 3.3. Differs: the rate rises exponentially, not
        linearly, and within one short run; the training loss is read, smoothed, and not the
        accuracy; and one rate is named, by a rule, where the paper reads two bounds by eye. Rules
        that name the steepest descent, or a tenth of the lowest point's rate, are common too.
    """
    if len(losses) > len(rates):
        raise ValueError(f"{len(losses)} losses, but only {len(rates)} learning rates")
    x, y = _finite_beginning(rates, losses)
    curve = smoothed(y, SPAN)
    bottom = int(curve.argmin())
    falling = curve[: bottom + 1]
    fell = float(falling.max() - falling[-1])
    noise = float(np.std(y[: bottom + 1] - falling)) * _noise_left(len(y))
    if fell <= max(_NOISE * noise, _ROUNDING * float(np.abs(curve).max())):
        note = "the loss never falls clearly: begin with a lower rate, or take more updates"
        return RangeReading(*_floats(np.exp(x), y, curve), None, None, None, note)
    begin = int(falling.argmax())
    nearly = begin + int((falling[begin:] <= falling[-1] + (1 - NEARLY) * fell).argmax())
    steep = int(np.gradient(curve, x)[: bottom + 1].argmin())
    note = ""
    if bottom == len(curve) - 1 and len(y) < len(losses):
        note = "the loss fell until the next rate broke it: the limit is there"
    elif bottom == len(curve) - 1:
        note = "edge: the loss still falls at the highest rate, go higher"
    recommended, fastest, lowest = (float(f"{math.exp(x[i]):.3g}") for i in (nearly, steep, bottom))
    return RangeReading(*_floats(np.exp(x), y, curve), recommended, fastest, lowest, note)


def _noise_left(num_losses: int) -> float:
    """The standard deviation that smoothing leaves of independent noise of 1."""
    impulse = np.zeros(num_losses)
    impulse[num_losses // 2] = 1.0
    return float(np.linalg.norm(smoothed(impulse, SPAN)))


def _floats(
    rates: NDArray[np.float64], losses: NDArray[np.float64], curve: NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    return tuple(rates.tolist()), tuple(losses.tolist()), tuple(curve.tolist())


def _finite_beginning(
    rates: Sequence[float], losses: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the rates, and losses, up to the first loss that is not finite."""
    given = np.array(rates, dtype=np.float64)
    if not (
        len(given) and given[0] > 0 and np.isfinite(given).all() and (np.diff(given) > 0).all()
    ):
        raise ValueError("the learning rates of a range test must rise, from above 0")
    found = np.array(losses, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(found))
    length = int(broken[0]) if len(broken) else len(found)
    if length < FEWEST:
        reason = f"loss {length + 1} is {found[length]}" if len(broken) else "there are no more"
        raise ValueError(
            f"a range test needs {FEWEST} finite losses at its beginning, got {length}: {reason}"
            + ("; begin with a lower rate" if len(broken) else "")
        )
    return np.log(given[:length]), found[:length]
