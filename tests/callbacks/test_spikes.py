import math

import numpy as np
import pytest

from hf_tfopt.callbacks.spikes import MIN_VALUES, is_spike, remember, spike_threshold
from tests.references import spikes as reference

NUM_STEPS = 10_000
WINDOW = 500
STEPS = np.arange(NUM_STEPS)


def noise(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def wandering(seed: int) -> np.ndarray:
    """An autoregressive walk that forgets within some hundred steps."""
    found, own = np.zeros(NUM_STEPS), noise(seed).normal(0, 0.1, NUM_STEPS)
    for step in range(1, NUM_STEPS):
        found[step] = 0.99 * found[step - 1] + own[step]
    return np.exp(found)


# What losses and gradient norms of clean runs look like.
CLEAN = {
    "quiet": lambda seed: np.exp(noise(seed).normal(0, 0.01, NUM_STEPS)),
    "normal logarithm": lambda seed: np.exp(noise(seed).normal(0, 0.3, NUM_STEPS)),
    "wide logarithm": lambda seed: np.exp(noise(seed).normal(0, 1, NUM_STEPS)),
    "heavy tails": lambda seed: np.abs(1 + 0.1 * noise(seed).standard_t(4, NUM_STEPS)) + 1e-9,
    "Pareto": lambda seed: 1 + noise(seed).pareto(3, NUM_STEPS),
    "gamma": lambda seed: noise(seed).gamma(2, 1, NUM_STEPS),
    "squares": lambda seed: noise(seed).chisquare(1, NUM_STEPS),
    "a hard example in twenty": lambda seed: (
        np.where(noise(seed).random(NUM_STEPS) < 0.05, 0.5, 0.005)
        * np.exp(noise(seed + 1).normal(0, 0.4, NUM_STEPS))
    ),
    "falls from the start": lambda seed: (
        (3 + 8 * np.exp(-STEPS / 300)) * np.exp(noise(seed).normal(0, 0.03, NUM_STEPS))
    ),
    "rises while it warms up": lambda seed: (
        (1 + 9 * (1 - np.exp(-STEPS / 30))) * np.exp(noise(seed).normal(0, 0.2, NUM_STEPS))
    ),
    "waves": lambda seed: np.exp(0.8 * np.sin(STEPS / 400) + noise(seed).normal(0, 0.2, NUM_STEPS)),
    "wanders": wandering,
    "constant": lambda seed: np.ones(NUM_STEPS),
}


def alarms(series: np.ndarray) -> list[int]:
    """The steps that are called spikes, which then are no part of the past."""
    past: list[float] = []
    found: list[int] = []
    for step, value in enumerate(series.tolist()):
        if is_spike(value, past):
            found.append(step)
        else:
            remember(value, past, WINDOW)
    return found


@pytest.mark.parametrize("name", CLEAN)
def test_no_false_alarm_in_ten_thousand_steps(name: str) -> None:
    assert alarms(CLEAN[name](0)) == [], "seed 0"


@pytest.mark.parametrize("name", ["quiet", "heavy tails", "falls from the start", "constant"])
def test_a_tenfold_value_is_found_every_time(name: str) -> None:
    series = CLEAN[name](1)
    spikes = list(range(200, NUM_STEPS, 97))
    series[spikes] *= 10
    assert alarms(series) == spikes, "seed 1"


def test_tenfold_the_level_is_found_in_wider_noise() -> None:
    """10 is 7.7 standard deviations of 0.3 away; the tail's rule asks for 5.5."""
    series = CLEAN["normal logarithm"](2)
    spikes = list(range(600, NUM_STEPS, 97))
    series[spikes] = 10
    assert alarms(series) == spikes, "seed 2"


@pytest.mark.parametrize("name", ["heavy tails", "wanders", "falls from the start", "constant"])
def test_it_is_the_rule_of_the_reference(name: str) -> None:
    series = CLEAN[name](3)[:500].tolist()
    own = np.random.default_rng(4)
    past: list[float] = []
    values: list[float] = []
    for value in series:
        # in doubt: near the threshold, on both sides
        edge = spike_threshold(past)
        level = math.exp(edge) if edge < math.inf else 100.0
        for tried in (value, value * 10, level * (1 + own.choice([-1e-3, 1e-3]))):
            # rounding of what is remembered to 1e-5 is less than the 1e-3 that separates them
            assert is_spike(tried, past) == reference.is_spike(tried, values)
        remember(value, past, 300)
        values = [*values, value][-300:]


def test_nothing_is_judged_before_there_is_a_past() -> None:
    assert spike_threshold([0.0] * (MIN_VALUES - 1)) == math.inf
    assert is_spike(3.1, [0.0] * MIN_VALUES)
    assert not is_spike(2.9, [0.0] * MIN_VALUES)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_what_has_no_logarithm_is_no_spike(value: float) -> None:
    past = [0.0] * MIN_VALUES
    assert not is_spike(value, past)
    remember(value, past, WINDOW)
    assert len(past) == MIN_VALUES


def test_only_the_window_is_remembered() -> None:
    past: list[float] = []
    for value in range(1, 8):
        remember(float(value), past, 3)
    assert past == [round(math.log(value), 5) for value in (5, 6, 7)]
