import math

import numpy as np
import pytest

from hf_tfopt.lab.lr_range import (
    FEWEST,
    read_lr_range,
    rising_rates,
    should_stop,
)

RATES = rising_rates(1e-5, 1.0, 101)  # twenty updates for each factor of ten


def falls_then_explodes(noise=0.0, seed=0):
    """Down by 2 along a logistic curve, steepest at 1e-3, up again beyond 3e-2."""
    x = np.log10(RATES)
    losses = 7 - 2 / (1 + np.exp(-4 * (x + 3))) + np.exp(4 * (x + 1.0))
    return losses + noise * np.random.default_rng(seed).normal(size=len(x))


def decades_between(one, other):
    return abs(math.log10(one / other))


def test_rates_rise_by_one_factor_from_the_lowest_to_the_highest():
    assert RATES[0] == pytest.approx(1e-5) and RATES[-1] == pytest.approx(1.0)
    factors = np.array(RATES[1:]) / RATES[:-1]
    np.testing.assert_allclose(factors, 10 ** (5 / 100), rtol=1e-9)


def test_the_steepest_and_the_lowest_rate_are_found_on_a_clean_curve():
    losses = falls_then_explodes()
    reading = read_lr_range(RATES, losses)
    # the average spans a fourth of the curve, and flattens its minimum towards its slower side
    assert decades_between(reading.steepest, 1e-3) < 0.1
    assert decades_between(reading.lowest, RATES[int(losses.argmin())]) < 0.4
    fallen = losses <= 7 - 0.9 * (7 - losses.min())
    assert decades_between(reading.recommended, RATES[int(fallen.argmax())]) < 0.15
    assert reading.steepest < reading.recommended < reading.lowest
    assert not reading.note


def test_noise_does_not_mislead_it_as_it_misleads_a_look_at_single_losses():
    raw_errors = []
    clean = read_lr_range(RATES, falls_then_explodes())
    for seed in range(8):
        losses = falls_then_explodes(noise=0.15, seed=seed)
        reading = read_lr_range(RATES, losses)
        assert decades_between(reading.steepest, 1e-3) < 0.4, f"seed {seed}"
        assert decades_between(reading.recommended, clean.recommended) < 0.4, f"seed {seed}"
        raw = RATES[int(np.diff(losses[: int(losses.argmin())]).argmin())]
        raw_errors.append(decades_between(raw, 1e-3))
    assert np.median(raw_errors) > 0.4, raw_errors


def test_the_raw_losses_are_kept_and_the_smoothed_ones_are_smoother():
    losses = falls_then_explodes(noise=0.15)
    reading = read_lr_range(RATES, losses)
    np.testing.assert_array_equal(reading.losses, losses)
    np.testing.assert_allclose(reading.rates, RATES, rtol=1e-12)  # through a logarithm and back
    early = slice(0, 30)  # where the curve itself is nearly flat
    assert np.std(np.diff(reading.smooth)[early]) < 0.1 * np.std(np.diff(losses)[early])


def test_a_loss_that_still_falls_at_the_end_says_so():
    reading = read_lr_range(RATES, np.linspace(7, 3, len(RATES)))
    assert reading.lowest == RATES[-1] and "go higher" in reading.note


@pytest.mark.parametrize(
    "losses",
    [
        np.linspace(3, 7, len(RATES)),
        np.full(len(RATES), 5.0),
        5 + 0.1 * np.random.default_rng(0).normal(size=len(RATES)),
        np.concatenate([np.full(15, 6.0), np.geomspace(6, 1e9, 20)]),
    ],
    ids=["rising", "constant", "noise alone", "exploding"],
)
def test_a_loss_that_never_falls_recommends_nothing(losses):
    reading = read_lr_range(RATES, losses)
    assert (reading.recommended, reading.steepest, reading.lowest) == (None, None, None)
    assert "never falls" in reading.note


def test_what_follows_a_loss_that_is_no_number_is_not_read():
    losses = falls_then_explodes()
    cut = losses.copy()
    cut[80:] = math.nan
    cut[90] = -1e9
    assert read_lr_range(RATES, cut) == read_lr_range(RATES, losses[:80])
    assert len(read_lr_range(RATES, cut).rates) == 80


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([math.nan] * 50, "got 0: loss 1 is nan; begin with a lower rate"),
        ([6.0, 1e3, math.inf, *[1.0] * 40], "got 2: loss 3 is inf; begin with a lower rate"),
        ([6.0] * 5, "got 5: there are no more"),
        ([], "got 0: there are no more"),
        ([1.0] * 200, "200 losses, but only 101 learning rates"),
    ],
)
def test_too_few_finite_losses_are_an_error(losses, told):
    with pytest.raises(ValueError, match=told):
        read_lr_range(RATES, losses)


@pytest.mark.parametrize("rates", [[], [1.0, 1.0], [2.0, 1.0], [-1.0, 1.0], [math.nan, 1.0]])
def test_rates_that_do_not_rise_are_refused(rates):
    with pytest.raises(ValueError, match="must rise"):
        read_lr_range(rates, [1.0] * len(rates))


@pytest.mark.parametrize(
    ("lowest", "highest", "num_steps", "told"),
    [
        (0.0, 1.0, 100, "got lowest 0, highest 1"),
        (1.0, 0.1, 100, "got lowest 1, highest 0.1"),
        (0.1, math.inf, 100, "highest inf"),
        (0.1, 1.0, FEWEST - 1, f"needs {FEWEST} updates or more, got {FEWEST - 1}"),
    ],
)
def test_a_range_that_cannot_be_is_refused(lowest, highest, num_steps, told):
    with pytest.raises(ValueError, match=told):
        rising_rates(lowest, highest, num_steps)


def test_it_stops_when_the_smoothed_loss_is_far_up_and_not_before():
    losses = falls_then_explodes(noise=0.1).tolist()
    stops = [should_stop(losses[: count + 1]) for count in range(len(losses))]
    first = stops.index(True)
    assert losses[first] > 1.3 * min(losses), "by then a single loss is far up too"
    assert first > int(np.argmin(losses))
    assert should_stop([1.0] * 20 + [math.nan]) and should_stop([math.inf])
    assert not should_stop([6.0, 60.0])  # too early to tell


def test_a_loss_that_breaks_while_it_falls_marks_the_limit():
    rates = rising_rates(1e-4, 1.0, 100)
    falling = [6.0 - 0.03 * step for step in range(60)]
    assert read_lr_range(rates, [*falling, math.nan]).note.endswith("the limit is there")
    assert "go higher" in read_lr_range(rates, falling).note
