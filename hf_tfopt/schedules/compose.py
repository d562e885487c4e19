"""Schedules made of schedules: one after the other, again and again, never below a floor."""

from collections.abc import Callable, Iterator, Sequence

from hf_tfopt.schedules.decays import Schedule, constant


def warmup(num_steps: int, start: float | None = None) -> Schedule:
    """A straight line to 1, which the last of `num_steps` updates reaches.

    `start + (1 - start) (step + 1) / num_steps`, at most 1; without a start, from 0: the first
    update has 1 / num_steps and moves the weights. With `start=0.0` it is the host's,
    `step / num_steps`, whose first update moves nothing and whose last is one step short of 1.

    Args:
        num_steps: updates until 1; 0: at once.
        start: the multiplier of the first update.
    """
    if num_steps == 0:
        return constant()
    if start is None:
        return lambda step: min((step + 1) / num_steps, 1.0)
    return lambda step: start + (1.0 - start) * min(step / num_steps, 1.0)


def join(parts: Sequence[tuple[Schedule, int]], last: Schedule) -> Schedule:
    """Each schedule for its number of updates, counted from its own beginning; then the last."""

    def joined(step: int) -> float:
        for schedule, num_steps in parts:
            if step < num_steps:
                return schedule(step)
            step -= num_steps
        return last(step)

    return joined


def floor(schedule: Schedule, lowest: float) -> Schedule:
    """Let what fell from 1 to 0 fall to `lowest`: lowest + (1 - lowest) · schedule."""
    return lambda step: lowest + (1.0 - lowest) * schedule(step)


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Multiply a schedule: factor · schedule."""
    return lambda step: factor * schedule(step)


def restart(
    cycle: Callable[[int], Schedule],
    num_steps: int,
    num_cycles: int,
    growth: float = 1.0,
    peak_decay: float = 1.0,
) -> Schedule:
    """A schedule begun anew `num_cycles` times in `num_steps` updates, then held at its end.

    Args:
        cycle: the schedule of one cycle, of as many updates as it is given.
        num_steps: updates of all cycles together.
        num_cycles: 1 or more.
        growth: how many times longer each cycle is than the one before it.
        peak_decay: how many times higher each cycle begins than the one before it, in (0, 1].

    Paper: Loshchilov and Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983: growth is T_mult.
    """
    ends = list(_cycle_ends(num_steps, num_cycles, growth))
    begins = [0, *ends[:-1]]

    def restarted(step: int) -> float:
        number = next((i for i, end in enumerate(ends) if step < end), num_cycles - 1)
        length = ends[number] - begins[number]
        return peak_decay**number * cycle(length)(min(step - begins[number], length))

    return restarted


def _cycle_ends(num_steps: int, num_cycles: int, growth: float) -> Iterator[int]:
    shares = [growth**number for number in range(num_cycles)]
    for number in range(num_cycles):
        yield round(num_steps * sum(shares[: number + 1]) / sum(shares))
