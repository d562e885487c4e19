"""Settings compared fairly: each with its own sweep of learning rates, ranked by held-out loss.

What a run is, is the caller's function; nothing here trains. Fair is what all runs share (weights,
batches, held-out rows: the caller's part), the number of updates, and how many rates each setting
may try (held here). A setting whose best rate is the last one of its sweep is said to be so.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_tfopt.plotting import History

Run = Callable[[str, float], History]

STEP_SECONDS = "step_seconds"  # the log's key for the time of one update, where it was taken


@dataclass(frozen=True)
class Trial:
    """One run of one setting with one learning rate.

    Args:
        setting: what is compared, by name.
        rate: its highest learning rate.
        history: the run's log, entries such as a Trainer's `state.log_history` has.
        fault: the arithmetic error that ended it, if one did.
    """

    setting: str
    rate: float
    history: History = ()
    fault: str = ""

    @property
    def loss(self) -> float:
        """The last held-out loss; infinite if the run diverged, or ended before it was taken."""
        held_out = self._numbers("eval_loss")
        is_finite = all(map(math.isfinite, [*self._numbers("loss"), *held_out[-1:]]))
        return held_out[-1] if held_out and is_finite and not self.fault else math.inf

    @property
    def has_diverged(self) -> bool:
        """Whether it has no final held-out loss that is a number."""
        return not math.isfinite(self.loss)

    @property
    def num_updates(self) -> int:
        """The step of the last held-out loss."""
        return max(
            (int(entry["step"]) for entry in self.history if "eval_loss" in entry), default=0
        )

    @property
    def step_seconds(self) -> list[float]:
        """The time of every update, where the log has it."""
        return self._numbers(STEP_SECONDS)

    def _numbers(self, key: str) -> list[float]:
        return [float(entry[key]) for entry in self.history if entry.get(key) is not None]


@dataclass(frozen=True)
class Standing:
    """What one setting reached: its trials, from the lowest rate to the highest.

    Args:
        setting: its name.
        trials: at least one.
    """

    setting: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the lowest held-out loss."""
        return min(self.trials, key=lambda trial: trial.loss)

    @property
    def step_seconds(self) -> float | None:
        """The median time of an update, of all trials."""
        found = [seconds for trial in self.trials for seconds in trial.step_seconds]
        return statistics.median(found) if found else None

    @property
    def note(self) -> str:
        """What keeps the sweep from settling this setting; empty if nothing does."""
        best, lowest, highest = self.best, self.trials[0], self.trials[-1]
        if best.has_diverged:
            return "every rate diverged: try lower"
        if lowest is highest:
            return "one rate: no sweep"
        return {id(lowest): "edge: try lower", id(highest): "edge: try higher"}.get(id(best), "")


@dataclass(frozen=True)
class Comparison:
    """Several settings, the best first.

    Args:
        standings: by the held-out loss of each one's best trial.
    """

    standings: tuple[Standing, ...]

    @property
    def trials(self) -> list[Trial]:
        """Every run there was."""
        return [trial for standing in self.standings for trial in standing.trials]

    @property
    def is_settled(self) -> bool:
        """Whether each setting's best rate lies inside its sweep."""
        return not any(standing.note for standing in self.standings)

    def table(self, kind: str = "setting") -> list[str]:
        """The lines of a table: best rate and loss, what is behind, time, and the whole sweep.

        Args:
            kind: the first column's heading.
        """
        num_rates = max(len(standing.trials) for standing in self.standings)
        sweep = ["lr: loss", *[""] * (num_rates - 1)]
        rows = [[kind, "best lr", "held-out loss", "behind", "s/update", *sweep, ""]]
        rows += [self._row(standing) for standing in self.standings]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]

    def _row(self, standing: Standing) -> list[str]:
        best, first = standing.best, self.standings[0].best
        behind = "" if best is first or best.has_diverged else f"{best.loss - first.loss:+.4f}"
        return [
            standing.setting,
            "-" if best.has_diverged else f"{best.rate:g}",
            loss_text(best.loss),
            behind,
            f"{standing.step_seconds:.3g}" if standing.step_seconds else "-",
            *(f"{trial.rate:g}: {loss_text(trial.loss)}" for trial in standing.trials),
            standing.note,
        ]


def loss_text(loss: float) -> str:
    """A loss with four decimals, or that there is none."""
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def rate_sweep(center: float, num_rates: int = 3, spacing: float = 3.0) -> tuple[float, ...]:
    """Learning rates around a usual one, from the lowest to the highest, to three digits.

    `center · spacing^(i - (num_rates - 1) / 2)` for i = 0, 1 ...

    Args:
        center: the usual rate, above 0; with an even number of rates it lies between two.
        num_rates: 1 or more.
        spacing: each rate divided by the one below it, above 1.

    Raises:
        ValueError: for a number outside its range.
    """
    if not (math.isfinite(center) and center > 0):
        raise ValueError(f"a learning rate must be above 0, got {center!r}")
    if num_rates < 1:
        raise ValueError(f"rates: got {num_rates}, must be 1 or above")
    if not 1.01 <= spacing < math.inf:
        raise ValueError(f"spacing: got {spacing:g}, must be 1.01 or above")
    middle = (num_rates - 1) / 2
    rates = (center * spacing ** (index - middle) for index in range(num_rates))
    return tuple(float(f"{rate:.3g}") for rate in rates)


def compare(sweeps: Mapping[str, Sequence[float]], run: Run) -> Comparison:
    """Run every setting with each of its learning rates, and rank them by their best.

    `min over rates of run(setting, rate)[-1]["eval_loss"]` for each. The settings take turns, so
    that a machine that slows down slows all of them. A run that diverges, or ends in an
    `ArithmeticError`, loses; any other error ends the comparison.

    Args:
        sweeps: setting -> its learning rates, as many for each.
        run: trains a setting with a rate and returns its log: `trainer.state.log_history` of a
            Trainer that evaluates at its end. It is for the caller to start every run with the same
            weights and to give it the same batches in the same order.

    Raises:
        ValueError: fewer than two settings, not as many rates for each, a rate that is not above 0
            or given twice; and, after the runs, runs of unlike length.
    """
    _check_sweeps(sweeps)
    trials: dict[str, list[Trial]] = {setting: [] for setting in sweeps}
    for rates in zip(*map(sorted, sweeps.values()), strict=True):
        for setting, rate in zip(sweeps, rates, strict=True):
            trials[setting].append(_trial(setting, rate, run))
    standings = [Standing(setting, tuple(found)) for setting, found in trials.items()]
    comparison = Comparison(tuple(sorted(standings, key=lambda standing: standing.best.loss)))
    _check_budget(comparison.trials)
    return comparison


def _trial(setting: str, rate: float, run: Run) -> Trial:
    try:
        return Trial(setting, rate, [dict[str, Any](entry) for entry in run(setting, rate)])
    except ArithmeticError as error:
        return Trial(setting, rate, fault=f"{type(error).__name__}: {error}")


def _check_sweeps(sweeps: Mapping[str, Sequence[float]]) -> None:
    if len(sweeps) < 2:
        given = f"only {', '.join(sweeps)}" if sweeps else "none"
        raise ValueError(f"a comparison needs at least two settings, got {given}")
    counts = {setting: len(rates) for setting, rates in sweeps.items()}
    if len({*counts.values()}) > 1 or 0 in counts.values():
        listed = ", ".join(f"{setting} {count}" for setting, count in counts.items())
        raise ValueError(f"each setting must have as many learning rates as the others: {listed}")
    for setting, rates in sweeps.items():
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"{setting}: learning rates must be above 0, got {list(rates)}")
        if len({*rates}) < len(rates):
            raise ValueError(f"{setting}: a learning rate is given twice in {list(rates)}")


def _check_budget(trials: Sequence[Trial]) -> None:
    lengths = {trial.num_updates: trial for trial in trials if not trial.has_diverged}
    if len(lengths) > 1:
        listed = ", ".join(
            f"{trial.setting} with lr {trial.rate:g} after {num_updates}"
            for num_updates, trial in sorted(lengths.items())
        )
        raise ValueError(f"runs of unlike length were evaluated at their end: {listed} updates")
