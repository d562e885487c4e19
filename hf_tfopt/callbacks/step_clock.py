"""Where the time of training goes, by phases, without ever waiting for the device."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

# In a step; evaluating and saving are not.
PHASES = ("data", "forward", "backward", "optimizer", "callbacks", "other")
BESIDE_STEPS = ("evaluation", "saving")


class Stamps(Protocol):
    """A source of points in time that may become known later."""

    def now(self) -> Any:
        """A point in time."""
        ...

    def is_known(self, stamp: Any) -> bool:
        """Whether the device has come so far."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """From one point to another, both known."""
        ...


class WallStamps:
    """The time of the process itself: on a CPU work is done when its call returns."""

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def is_known(self, stamp: float) -> bool:
        """Always."""
        return True

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start


class CudaStamps:
    """Events in a GPU's stream, which tell their time when the GPU has come to them."""

    def now(self) -> torch.cuda.Event:
        """An event behind the work that was given to the GPU until now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def is_known(self, stamp: torch.cuda.Event) -> bool:
        """Whether the GPU has come to it."""
        return stamp.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The GPU's time between two events, in which it worked or waited."""
        return start.elapsed_time(end) / 1e3


def stamps_for(device: torch.device) -> Stamps:
    """Those that tell when work on a device is done."""
    return CudaStamps() if device.type == "cuda" else WallStamps()


@dataclass
class Times:
    """Seconds of each phase, over a number of steps."""

    num_steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {})

    def add(self, other: "Times") -> None:
        """Take in other steps."""
        self.num_steps += other.num_steps
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def of_steps(self) -> float:
        """Seconds of all phases of steps."""
        return sum(self.seconds.get(phase, 0.0) for phase in PHASES)


class StepClock:
    """Splits the time from one step's end to the next one's end.

    Args:
        stamps: where points in time come from.
        num_warmup_steps: steps at the beginning that are not counted.
    """

    def __init__(self, stamps: Stamps, num_warmup_steps: int = 0):
        self.stamps = stamps
        self._num_left = num_warmup_steps
        self._laps: list[tuple[str, Any]] = []
        self._start: Any = stamps.now()
        self._waiting: deque[tuple[Any, list[tuple[str, Any]]]] = deque()
        self._finished = Times()

    @property
    def is_warm(self) -> bool:
        """Whether the step that goes on is counted."""
        return self._num_left == 0

    def lap(self, phase: str) -> None:
        """What went on since the last call was this phase."""
        if self.is_warm:
            self._laps.append((phase, self.stamps.now()))

    def end_step(self) -> None:
        """The step is over; the next begins."""
        if self.is_warm:
            self._waiting.append((self._start, self._laps))
            if self._laps:
                self._start = self._laps[-1][1]
        else:
            self._num_left -= 1
            self._start = self.stamps.now()
        self._laps = []
        self._add_finished()

    def collect(self) -> Times:
        """The times of the steps that the device has finished since the last call."""
        self._add_finished()
        found, self._finished = self._finished, Times()
        return found

    def _add_finished(self) -> None:
        while self._waiting and self._is_finished(self._waiting[0][1]):
            start, laps = self._waiting.popleft()
            self._finished.add(self._times(start, laps))

    def _is_finished(self, laps: list[tuple[str, Any]]) -> bool:
        return not laps or self.stamps.is_known(laps[-1][1])

    def _times(self, start: Any, laps: list[tuple[str, Any]]) -> Times:
        times = Times(num_steps=1)
        for phase, end in laps:
            spent = self.stamps.seconds(start, end)
            times.seconds[phase] = times.seconds.get(phase, 0.0) + spent
            start = end
        return times
