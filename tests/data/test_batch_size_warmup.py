"""Growing batches: the sizes, every row as often as asked, the same stream however it is cut.

Training with them (exact loss, two processes, resume): test_token_budget.py, for both plans.
"""

import math
from typing import Any

import numpy as np
import pytest

import hf_tfopt as tfo
from hf_tfopt.data.batch_plan import TrainingRun
from hf_tfopt.data.batch_size_warmup import BatchSizeWarmup, warm_sizes
from tests.references.token_budget import plain_growth


def all_batches(plan: BatchSizeWarmup, run: TrainingRun) -> list[list[np.ndarray]]:
    """The micro-batches of each step that the host makes, counted as it counts them."""
    plan.prepare(run)
    per_step = run.num_processes * run.num_parts
    num_batches = len(plan.batches(0))
    assert num_batches % per_step == 0
    per_epoch = num_batches // per_step
    num_steps = run.max_steps or math.ceil(run.num_epochs * per_epoch)
    epochs = [plan.batches(epoch) for epoch in range(math.ceil(num_steps / per_epoch))]
    assert {len(batches) for batches in epochs} == {num_batches}
    flat = [batch for batches in epochs for batch in batches]
    return [flat[first : first + per_step] for first in range(0, num_steps * per_step, per_step)]


def run_of(num_rows: int = 500, batch_size: int = 8, **options: Any) -> TrainingRun:
    return TrainingRun(range(num_rows), batch_size, **options)


@pytest.mark.parametrize("growth", ["linear", "exponential"])
@pytest.mark.parametrize(("num_warm", "start", "full"), [(1, 3, 64), (10, 4, 32), (33, 2, 512)])
def test_sizes_equal_the_formula(growth: str, num_warm: int, start: int, full: int) -> None:
    sizes = warm_sizes(50, num_warm, start, full, growth).tolist()
    assert sizes == [plain_growth(step, num_warm, start, full, growth) for step in range(50)]
    assert sizes[0] == start
    assert sizes[num_warm] == full
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("num_epochs", [0.6, 1, 3, 2.5, 10])
@pytest.mark.parametrize("num_steps", [5, 0.3])
def test_every_row_as_often_as_there_are_epochs(num_epochs: float, num_steps: float) -> None:
    run = run_of(num_processes=2, num_parts=2, num_epochs=num_epochs)
    steps = all_batches(BatchSizeWarmup(4, num_steps), run)
    rows = np.concatenate([batch for step in steps for batch in step])
    assert len(rows) == 500 * num_epochs
    counts = np.bincount(rows, minlength=500)
    assert {*counts} <= {math.floor(num_epochs), math.ceil(num_epochs)}
    for first in range(0, len(rows) - 499, 500):  # a pass, and then another
        assert len(set(rows[first : first + 500].tolist())) == 500
    sizes = [sum(map(len, step)) for step in steps]
    num_warm = 5 if num_steps == 5 else math.ceil(0.3 * len(sizes))
    assert sizes[:num_warm] == warm_sizes(len(sizes), num_warm, 4, 32)[:num_warm].tolist()
    assert max(sizes) - min(sizes[num_warm:]) <= 32
    assert max(sizes) <= 32
    fewest = 500 * num_epochs / 32
    assert len(sizes) <= fewest + num_warm + math.ceil(num_epochs)


def test_micro_batches_are_even_and_none_is_empty() -> None:
    run = run_of(num_processes=2, num_parts=3, num_epochs=2)
    for step in all_batches(BatchSizeWarmup(6, 7), run):
        sizes = [len(batch) for batch in step]
        assert max(sizes) - min(sizes) <= 1
        assert 1 <= min(sizes) <= max(sizes) <= 8


@pytest.mark.parametrize("max_steps", [7, 40, 100])
def test_max_steps_decide(max_steps: int) -> None:
    plan = BatchSizeWarmup(4, 5)
    steps = all_batches(plan, run_of(num_parts=4, max_steps=max_steps))
    sizes = [sum(map(len, step)) for step in steps]
    assert sizes == warm_sizes(max_steps, 5, 4, 32).tolist()
    per_epoch = sum(map(len, plan.batches(0))) / 500
    assert per_epoch == pytest.approx(1, abs=0.25) or max_steps == 7  # about a pass


def test_the_stream_does_not_depend_on_how_steps_are_cut() -> None:
    found = []
    for batch_size, num_processes, num_parts in [(32, 1, 1), (8, 1, 4), (4, 4, 2)]:
        run = run_of(
            batch_size=batch_size, num_processes=num_processes, num_parts=num_parts, num_epochs=3
        )
        steps = all_batches(BatchSizeWarmup(8, 0.25, growth="exponential"), run)
        found.append([np.concatenate(step).tolist() for step in steps])
    assert found[0] == found[1] == found[2]
    other = all_batches(BatchSizeWarmup(8, 0.25, growth="exponential", seed=1), run)
    assert np.concatenate(other[0]).tolist() != found[0][0]


def test_beyond_the_run_the_stream_goes_on() -> None:
    """A host that asks for one epoch more gets full batches."""
    run = run_of(num_epochs=1)
    plan = BatchSizeWarmup(2, 4)
    plan.prepare(run)
    assert {len(batch) for batch in plan.batches(3)} == {8}
    assert len(plan.batches(3)) == len(plan.batches(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0, "num_steps": 5}, "start is 0"),
        ({"start": 4.5, "num_steps": 5}, "start is 4.5"),
        ({"start": 4, "num_steps": 0}, "num_steps is 0"),
        ({"start": 4, "num_steps": -0.1}, "num_steps is -0.1"),
        ({"start": 4, "num_steps": 2.5}, "num_steps is 2.5"),
        ({"start": 4, "num_steps": 5, "growth": "linera"}, "did you mean 'linear'"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeWarmup(**options)


@pytest.mark.parametrize(
    ("plan", "run", "message"),
    [
        ((32, 5), run_of(num_parts=4), "start is 32; .*less than the 32 rows"),
        ((3, 5), run_of(num_parts=4), "start is 3; it must be at least 4"),
        ((4, 50), run_of(num_parts=4, max_steps=50), "ends after 50 steps, before"),
        ((4, 900), run_of(num_parts=4), "before the batch is full: num_steps is 900"),
        ((4, 5), run_of(20, num_parts=4), "20 rows, fewer than the 32"),
        ((4, 5), run_of(0, num_parts=4), "0 rows, fewer than the 32"),
        ((4, 5), run_of(num_parts=4, drop_last=True), "drop_last has nothing to drop"),
        ((4, 5), TrainingRun(tfo.mix({"a": [{"x": 1}] * 99}), 32), r"Mixture.* in every epoch"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(
    plan: tuple[int, float], run: TrainingRun, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeWarmup(*plan).prepare(run)
