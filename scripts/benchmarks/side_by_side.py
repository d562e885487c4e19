"""Ways of computing one loss, side by side: interleaved in time, each alone in memory."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

# A side: what was set up -> a loss whose backward pass reaches everything that was set up.
Side = Callable[[Any], Any]


def step(side: Side, parts: Any, leaves: Sequence[Any]) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and the loss."""
    for leaf in leaves:
        leaf.grad = None
    start = time.perf_counter()
    loss = side(parts)
    loss.backward()
    return time.perf_counter() - start, float(loss.detach())


def peak_mib(reset: bool = False) -> float:
    """The process's high-water mark of resident memory (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


def memory(side: Side, setting: Callable[[], tuple[Any, Sequence[Any]]]) -> float:
    """Peak above what was set up, the gradients included."""
    parts, leaves = setting()
    before = peak_mib(reset=True)
    step(side, parts, leaves)
    return peak_mib() - before


def compare(
    script: str,
    sides: Mapping[str, Side],
    setting: Callable[[], tuple[Any, Sequence[Any]]],
    *,
    rounds: int,
    memory_of: str | None,
    arguments: Sequence[str],
) -> dict[str, Any]:
    """Print and return time, peak memory and loss of each side, and the ratios to the first.

    Args:
        script: the calling file, started anew with `--memory-of SIDE` for each side.
        sides: the first is what the others are compared with.
        setting: makes what the sides are given, and the tensors that get gradients.
        rounds: that are counted, after two that warm up.
        memory_of: the value of `--memory-of`.
        arguments: the command line.
    """
    tune_allocator()
    if memory_of:
        print(memory(sides[memory_of], setting))
        return {}
    parts, leaves = setting()
    times: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, float] = {}
    for turn in range(rounds + 2):
        for name in sorted(sides, reverse=bool(turn % 2)):
            seconds, losses[name] = step(sides[name], parts, leaves)
            if turn >= 2:
                times[name].append(seconds)
    first = next(iter(sides))
    peaks = {name: _memory_alone(script, name, arguments) for name in sides}
    result = {
        name: {
            "milliseconds": 1e3 * median(times[name]),
            "time": median(a / b for a, b in zip(times[name], times[first], strict=True)),
            "peak_mib": peaks[name],
            "memory": peaks[name] / peaks[first],
            "loss": losses[name],
        }
        for name in sides
    }
    width = max(map(len, sides))
    print(f"{'':{width}}{'ms':>10}{'time':>8}{'peak MiB':>10}{'memory':>8}{'loss':>10}")
    for name, row in result.items():
        print(
            f"{name:{width}}{row['milliseconds']:>10.1f}{row['time']:>8.3f}"
            f"{row['peak_mib']:>10.0f}{row['memory']:>8.3f}{row['loss']:>10.5f}"
        )
    print(json.dumps(result))
    return result


def _memory_alone(script: str, side: str, arguments: Sequence[str]) -> float:
    command = [sys.executable, script, *arguments, "--memory-of", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])
