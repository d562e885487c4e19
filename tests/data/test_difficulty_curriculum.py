"""Which rows a difficulty curriculum draws, when, and that nothing but its options decides."""

import logging
import random
from typing import Any

import datasets
import numpy as np
import pytest

import hf_tfopt as tfo
from hf_tfopt.data.batch_plan import TrainingRun
from tests.references.difficulty import plain_competence, refused_draws


def prepared(run: TrainingRun, *args: Any, **options: Any) -> tfo.DifficultyCurriculum:
    plan = tfo.DifficultyCurriculum(*args, **options)
    plan.prepare(run)
    return plan


def steps_of(plan: tfo.DifficultyCurriculum, epoch: int, run: TrainingRun) -> list[list[int]]:
    """The rows of every step of an epoch, of all processes together."""
    per_step, batches = run.num_processes * run.num_parts, plan.batches(epoch)
    groups = [batches[i : i + per_step] for i in range(0, len(batches), per_step)]
    return [[int(row) for batch in group for row in batch] for group in groups]


def test_every_draw_is_eligible_and_no_row_returns_while_another_waits() -> None:
    """Compared with the rule, row by row; any size, also smaller than a batch."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        num_rows = rng.randint(3, 120)
        run = TrainingRun(
            range(num_rows),
            rng.randint(1, 9),
            num_processes=rng.choice([1, 1, 2, 3]),
            num_parts=rng.randint(1, 3),
            num_epochs=rng.randint(2, 5),
            drop_last=False,
        )
        pace, start = rng.choice(["sqrt", "linear"]), rng.choice([0.01, 0.2, 0.6])
        num_steps = rng.randint(1, 40)
        scores = [rng.randint(0, 20) for _ in range(num_rows)]
        scores[:2] = 0, 1  # not constant
        if run.batch_size == 1 and num_rows % run.num_processes:
            with pytest.raises(ValueError, match="batches of 1 cannot be shared"):
                prepared(run, scores, num_steps, start, pace)
            continue
        plan = prepared(run, scores, num_steps, start, pace, seed=rng.randint(-5, 5))
        assert all(len(batch) for batch in plan.batches(0))
        order = plan._easiest_first.tolist()
        drawn: list[list[int]] = []
        free: list[set[int]] = []
        for epoch in range(5):
            steps = steps_of(plan, epoch, run)
            largest = max(map(len, steps))
            shares = [
                plain_competence(len(drawn) + i, num_steps, start, pace) for i in range(len(steps))
            ]
            counts = [max(largest, int(share * num_rows + 1e-9)) for share in shares]
            if counts[0] >= num_rows:
                every = [row for step in steps for row in step]
                assert sorted(every) == list(range(num_rows)), "once an epoch"
                continue
            drawn += steps
            free += [set(order[:count]) for count in counts]
            assert sum(map(len, steps)) == num_rows
        assert not list(refused_draws(drawn, free))


def test_all_that_wait_are_as_likely() -> None:
    """The draws are by chance: not the newcomers first, not the old ones first."""
    num_rows, firsts, seconds = 40, np.zeros(40), np.zeros(40)
    run = TrainingRun(range(num_rows), 10, num_epochs=1)
    for seed in range(2000):  # 20 eligible, then 30; 10 of 20, then 10 of the 20 that wait
        scores = np.arange(num_rows)
        plan = prepared(run, scores, 2, 0.5, "linear", seed=seed)
        steps = steps_of(plan, 0, run)
        firsts[steps[0]] += 1
        seconds[steps[1]] += 1
    assert not firsts[20:].any() and not seconds[30:].any()
    # counts of 2000 draws of one half: standard deviation 22, five of them for 20 rows
    assert np.abs(firsts[:20] - 1000).max() < 112
    # newcomers always wait: 10 of 20 drawn; old ones wait in half of the runs
    assert np.abs(seconds[20:30] - 1000).max() < 112
    assert np.abs(seconds[:20] - 500).max() < 5 * 19.4


def test_every_pass_has_an_order_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Half of the rows are eligible and a step takes them all; competence hardly grows."""
    run = TrainingRun(range(40), 20, num_epochs=3)
    plan = prepared(run, np.arange(40)[::-1], 10**9, 0.5)
    passes = [step for epoch in range(3) for step in steps_of(plan, epoch, run)]
    assert all(sorted(order) == list(range(20, 40)) for order in passes)
    assert len({tuple(order) for order in passes}) == len(passes) == 6
    first = np.array(passes)[:, 0]
    assert (
        len(set(first.tolist())) > 1 and sorted(passes[1]) != passes[1] != sorted(passes[1])[::-1]
    )


def test_a_function_of_seed_and_epoch_in_any_order_of_asking() -> None:
    run = TrainingRun(range(101), 4, num_epochs=6)
    scores = np.random.default_rng(0).random(101)

    def rows(plan: tfo.DifficultyCurriculum, epoch: int) -> list[int]:
        return np.concatenate(plan.batches(epoch)).tolist()

    plan = prepared(run, scores, 0.5)  # all is eligible from epoch 3 on
    expected = [rows(plan, epoch) for epoch in range(6)]
    for epoch in (5, 3, 3, 0, 4, 1, 2):
        assert rows(plan, epoch) == expected[epoch]
        assert rows(prepared(run, scores, 0.5), epoch) == expected[epoch], "after a restart"
    assert rows(prepared(run, scores, 0.5, seed=1), 1) != expected[1]
    assert rows(prepared(run, scores, 0.5, seed=1), 5) != expected[5]
    plan.prepare(run)
    assert [rows(plan, epoch) for epoch in range(6)] == expected
    assert all(sorted(expected[epoch]) == list(range(101)) for epoch in (3, 4, 5))
    assert expected[3] != expected[4] != expected[5] != expected[3]


@pytest.mark.parametrize("num_rows", [96, 101, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_and_accumulation_share_a_step_as_they_may(
    num_rows: int, drop_last: bool
) -> None:
    """2 processes x 1 = 1 process x 2 parts: the same rows in every step, and one batch of 8."""
    if drop_last and num_rows < 8:
        return
    found = []
    for size, num_processes, num_parts in ((4, 2, 1), (4, 1, 2), (8, 1, 1), (2, 2, 2)):
        run = TrainingRun(range(num_rows), size, num_processes, num_parts, drop_last=drop_last)
        if drop_last and num_rows % 8 >= size * num_processes:
            continue  # less is left out: the epochs are not of the same rows
        plan = prepared(run, np.arange(num_rows), 30, 0.1)
        assert all(len(batch) for batch in plan.batches(0))
        found.append([[sorted(s) for s in steps_of(plan, epoch, run)] for epoch in range(4)])
    assert len(found) > 1 and all(each == found[0] for each in found)


def test_the_epoch_in_which_all_becomes_eligible() -> None:
    """It goes on with its pass; the epochs after it have every row once."""
    run = TrainingRun(range(100), 10, num_epochs=4)
    plan = prepared(run, np.arange(100), 15, 0.1, "linear")
    first, second, third = ([r for s in steps_of(plan, e, run) for r in s] for e in range(3))
    assert max(first[:10]) < 10 and len(first) == len(second) == 100
    assert max(second) >= 90 and len(set(second)) < 100
    unseen = set(range(100)) - set(first) - set(second)
    assert len(unseen) < 100 - len(set(first)), "those that came last went first"
    assert sorted(third) == list(range(100))


def test_a_share_of_the_run_and_steps_are_the_same() -> None:
    scores = np.arange(50)
    for run in (TrainingRun(range(50), 5, num_epochs=2.5), TrainingRun(range(50), 5, max_steps=25)):
        share, steps = (prepared(run, scores, num_steps) for num_steps in (0.4, 10))
        assert [b.tolist() for b in share.batches(1)] == [b.tolist() for b in steps.batches(1)]


def test_longer_than_the_run_is_allowed_aloud(caplog: pytest.LogCaptureFixture) -> None:
    run = TrainingRun(range(50), 5, num_epochs=2)
    with caplog.at_level(logging.WARNING):
        plan = prepared(run, np.arange(50), 100, 0.1, "linear")
    assert "takes 100 steps and the run has 20" in caplog.text and "(73%)" in caplog.text
    assert max(int(b.max()) for b in plan.batches(1)) < 14
    caplog.clear()
    prepared(run, np.arange(50), 20)
    assert not caplog.text


def test_scored_once_for_a_dataset() -> None:
    """A model that is scored may have learned since."""
    asked = []

    def score(dataset: Any) -> Any:
        asked.append(len(dataset))
        return np.arange(len(dataset))

    data = range(20)
    plan = prepared(TrainingRun(data, 4), score, 10)
    plan.prepare(TrainingRun(data, 2))
    assert asked == [20]
    plan.prepare(TrainingRun(range(8), 2))
    assert asked == [20, 8]


BAD_OPTIONS = {
    "start": ({"start": 0.0}, r"start is 0.0; it must be in \(0, 1\]"),
    "start above 1": ({"start": 1.5}, "start is 1.5"),
    "start as text": ({"start": "0.1"}, "start is '0.1'"),
    "pace": ({"pace": "squrt"}, "did you mean 'sqrt'"),
    "no steps": ({"num_steps": 0}, "num_steps is 0; it must be a whole number"),
    "half a step": ({"num_steps": 2.5}, "num_steps is 2.5"),
    "NaN": ({"num_steps": float("nan")}, "num_steps is nan"),
    "endless": ({"num_steps": float("inf")}, "num_steps is inf"),
    "bool": ({"num_steps": True}, "num_steps is True"),
    "no score": ({"score": None}, "score is of type NoneType"),
    "seed": ({"seed": 0.5}, "seed is 0.5"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str) -> None:
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        tfo.DifficultyCurriculum(**{"score": "length", "num_steps": 10, **options})


def test_bad_datasets() -> None:
    with pytest.raises(ValueError, match="no rows"):
        prepared(TrainingRun([], 4), [], 10)
    with pytest.raises(ValueError, match="has 3 rows, and one round of batches needs 8"):
        prepared(TrainingRun(range(3), 8, drop_last=True), [1, 2, 3], 10)
    mixed = tfo.mix({"a": [{"x": 1}] * 3, "b": [{"x": 2}] * 4})
    with pytest.raises(ValueError, match=r"Mixture.* others in every epoch"):
        prepared(TrainingRun(mixed, 2), range(7), 10)
    data = datasets.Dataset.from_dict({"grade": [1, 2, 3]})
    with pytest.raises(ValueError, match="did you mean 'grade'"):
        prepared(TrainingRun(data, 2), "grad", 10)


def test_smaller_than_a_batch_or_a_single_row() -> None:
    run = TrainingRun(range(3), 8, num_epochs=5)
    plan = prepared(run, [3, 2, 1], 2)
    assert all(sorted(np.concatenate(plan.batches(e)).tolist()) == [0, 1, 2] for e in range(4))
    assert prepared(TrainingRun(range(1), 8), [5.0], 2).batches(0)[0].tolist() == [0]
