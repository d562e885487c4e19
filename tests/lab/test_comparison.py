import math

import pytest

from hf_tfopt.lab.comparison import STEP_SECONDS, Standing, Trial, compare, rate_sweep


def log(last, first=5.0, num_updates=4, **more):
    """A run whose held-out loss goes from `first` to `last` in a straight line."""
    losses = [first + (last - first) * step / num_updates for step in range(1, num_updates + 1)]
    return [
        {"step": step, "loss": loss, "eval_loss": loss, **more}
        for step, loss in enumerate(losses, start=1)
    ]


def bowl(best_rate, depth=3.0):
    """A run that ends the lower, the nearer its rate is to the best one."""
    return lambda rate: log(depth + abs(math.log(rate / best_rate)))


def compared(sweeps, **runs):
    return compare(sweeps, lambda setting, rate: runs[setting](rate))


def test_settings_are_ranked_by_their_own_best_rate():
    sweeps = {"a": (0.1, 0.3, 0.9), "b": (1e-3, 3e-3, 9e-3)}
    comparison = compared(sweeps, a=bowl(0.3, depth=3.0), b=bowl(3e-3, depth=2.5))
    assert [standing.setting for standing in comparison.standings] == ["b", "a"]
    assert [standing.best.rate for standing in comparison.standings] == [3e-3, 0.3]
    assert [standing.best.loss for standing in comparison.standings] == [2.5, 3.0]
    assert comparison.is_settled and len(comparison.trials) == 6


def test_each_side_is_run_once_with_each_rate_and_they_take_turns():
    seen = []

    def run(setting, rate):
        seen.append((setting, rate))
        return log(1.0)

    compare({"a": (0.3, 0.1), "b": (2.0, 4.0)}, run)
    assert seen == [("a", 0.1), ("b", 2.0), ("a", 0.3), ("b", 4.0)]


@pytest.mark.parametrize(
    ("best_rate", "note"),
    [(0.1, "edge: try lower"), (0.3, ""), (0.9, "edge: try higher"), (90, "edge: try higher")],
)
def test_a_best_rate_at_the_edge_is_said_to_be_there(best_rate, note):
    rates = (0.1, 0.3, 0.9)
    comparison = compared({"a": rates, "b": rates}, a=bowl(best_rate), b=bowl(0.3, depth=9.0))
    assert comparison.standings[0].note == note
    assert comparison.is_settled == (not note)
    assert note in "\n".join(comparison.table())


DIVERGED = {
    "a held-out loss that is not a number": lambda rate: log(math.nan),
    "an infinite one": lambda rate: log(math.inf),
    "a training loss that is not": lambda rate: [*log(1.0), {"step": 5, "loss": math.nan}],
    "stopped before any evaluation": lambda rate: [{"step": 1, "loss": 1.0}],
    "no log at all": lambda rate: [],
    "an arithmetic error": lambda rate: [1 / 0],
}


@pytest.mark.parametrize("kind", DIVERGED)
def test_a_run_that_diverged_loses_and_breaks_nothing(kind):
    rates = (0.1, 0.3, 0.9)
    comparison = compared({"bad": rates, "good": rates}, bad=DIVERGED[kind], good=bowl(0.3))
    good, bad = comparison.standings
    assert (good.setting, bad.setting) == ("good", "bad")
    assert bad.best.loss == math.inf and bad.note == "every rate diverged: try lower"
    row = comparison.table()[2]
    assert row.startswith("bad") and row.count("diverged") == 5  # the best, three rates, the note


def test_rates_that_diverged_above_the_best_settle_a_sweep():
    def run(rate):
        return log(2.0 - rate) if rate < 0.5 else log(math.nan)

    comparison = compared({"a": (0.1, 0.3, 0.9), "b": (0.1, 0.3, 0.9)}, a=run, b=bowl(0.3))
    assert comparison.standings[0].setting == "a" and comparison.is_settled
    assert comparison.standings[0].best.rate == 0.3


def test_other_errors_are_not_hidden():
    def run(setting, rate):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compare({"a": (1.0,), "b": (1.0,)}, run)


def test_the_table_holds_every_run_and_what_is_behind():
    rates = (0.1, 0.3)
    comparison = compared({"a": rates, "b": rates}, a=bowl(0.1), b=bowl(0.3, depth=3.5))
    heading, first, second = comparison.table("optimizer")
    assert heading.split()[:3] == ["optimizer", "best", "lr"]
    assert first.split()[:3] == ["a", "0.1", "3.0000"] and "+" not in first
    assert "+0.5000" in second and "0.1: 4.5986" in second and "0.3: 3.5000" in second


def test_the_time_of_an_update_is_the_median_of_all_runs():
    def run(setting, rate):
        return [entry | {STEP_SECONDS: rate} for entry in log(1.0)]

    rates = (1.0, 2.0, 9.0)
    comparison = compare({"a": rates, "b": rates}, run)
    assert [standing.step_seconds for standing in comparison.standings] == [2.0, 2.0]
    assert Standing("a", (Trial("a", 0.1, log(1.0)),)).step_seconds is None


@pytest.mark.parametrize(
    ("sweeps", "told"),
    [
        ({}, "at least two settings, got none"),
        ({"a": (0.1,)}, "at least two settings, got only a"),
        ({"a": (0.1,), "b": (0.1, 0.2)}, "as many learning rates as the others: a 1, b 2"),
        ({"a": (), "b": ()}, "a 0, b 0"),
        ({"a": (0.1,), "b": (0.0,)}, "b: learning rates must be above 0"),
        ({"a": (0.1,), "b": (math.nan,)}, "b: learning rates must be above 0"),
        ({"a": (0.1, 0.1), "b": (0.1, 0.2)}, "a: a learning rate is given twice"),
    ],
)
def test_what_is_not_fair_is_refused_before_any_run(sweeps, told):
    def run(setting, rate):
        raise AssertionError("it ran")

    with pytest.raises(ValueError, match=told):
        compare(sweeps, run)


def test_runs_of_unlike_length_are_no_comparison():
    with pytest.raises(ValueError, match="a with lr 1 after 4, b with lr 1 after 5"):
        compared(
            {"a": (1.0,), "b": (1.0,)},
            a=lambda rate: log(1.0),
            b=lambda rate: log(1.0, num_updates=5),
        )


def test_a_sweep_is_as_wide_to_either_side_of_its_middle():
    assert rate_sweep(0.03) == (0.01, 0.03, 0.09)
    assert rate_sweep(1.0, 4, 4.0) == (0.125, 0.5, 2.0, 8.0)
    assert rate_sweep(2e-3, 1) == (2e-3,)
    for num_rates in range(1, 7):
        rates = rate_sweep(0.7, num_rates, 2.5)
        assert len(rates) == num_rates
        # three digits are kept of each rate: 0.5% at most, and the root of the product less
        assert math.prod(rates) ** (1 / num_rates) == pytest.approx(0.7, rel=5e-3)


@pytest.mark.parametrize(
    ("center", "num_rates", "spacing", "told"),
    [
        (0.0, 3, 3.0, "above 0, got 0.0"),
        (math.inf, 3, 3.0, "above 0, got inf"),
        (0.1, 0, 3.0, "rates: got 0"),
        (0.1, 3, 1.0, "spacing: got 1,"),
        (0.1, 3, math.inf, "spacing: got inf"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(center, num_rates, spacing, told):
    with pytest.raises(ValueError, match=told):
        rate_sweep(center, num_rates, spacing)
