"""Token-budget batches: each row once, within the budget, hardly padded, mixed, exact."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hf_tfopt.data.batch_plan import BatchPlan, TrainingRun
from hf_tfopt.data.length_buckets import cut, length_buckets
from hf_tfopt.data.token_budget import TokenBudget, halved
from tests.callbacks.runs import weights_of
from tests.data.planned_run import NUM_ROWS, PLANS, Seen, padded, rows, run, trainer_for
from tests.models import tiny
from tests.processes import TwoInterpreters
from tests.references.token_budget import plain_halves
from tests.test_trainer import losses


def like_sst2(num_rows: int = 6920, seed: int = 0) -> np.ndarray:
    """Lengths with SST-2's mean, spread and ends under BERT's tokenizer: 23, 10.5, 3 to 67."""
    print("seed", seed)
    drawn = np.random.default_rng(seed).gamma(4.9, 4.75, num_rows)
    return np.clip(drawn.round().astype(int), 3, 67)


def prepared(lengths: Any, max_tokens: int, share: int = 1, **options: Any) -> TokenBudget:
    plan = TokenBudget(max_tokens, lengths, **options)
    plan.prepare(TrainingRun(lengths, 8, num_parts=share))
    return plan


def positions(batch: np.ndarray, lengths: np.ndarray) -> int:
    return len(batch) * int(lengths[batch].max())


def test_the_largest_batches_are_halved() -> None:
    lengths = np.repeat([41, 97, 301], [29, 17, 4])  # whose multiples have no ties
    buckets = length_buckets(lengths, 611, max_padding=0)
    ends = cut(buckets.ends, buckets.fitting(611))
    widths = buckets.widths[buckets.ends.searchsorted(ends)]
    for wanted in (len(ends), len(ends) + 1, 20, 49, 50):
        expected = plain_halves(np.diff(ends, prepend=0).tolist(), widths.tolist(), wanted)
        ours = np.diff(halved(ends, buckets, wanted), prepend=0).tolist()
        assert sorted(ours) == sorted(expected)


@pytest.mark.parametrize("share", [1, 3, 8])
@pytest.mark.parametrize(
    "lengths",
    [
        like_sst2(700),
        np.full(41, 128),
        np.array([500, *[5] * 30, 501]),
        np.arange(1, 512),
        np.random.default_rng(0).integers(1, 513, 3000),
    ],
    ids=["sst2", "equal", "outliers", "all different", "uniform"],
)
def test_every_row_once_within_the_budget(lengths: np.ndarray, share: int) -> None:
    plan = prepared(lengths, 600, share)
    epochs = [plan.batches(epoch) for epoch in range(4)]
    assert len({len(batches) for batches in epochs}) == 1
    for batches in epochs:
        assert len(batches) % share == 0
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
        assert max(positions(batch, lengths) for batch in batches) <= 600
    again = prepared(lengths, 600, share).batches(3)
    assert all(np.array_equal(a, b) for a, b in zip(again, epochs[3], strict=True))


@pytest.mark.parametrize("max_tokens", [1024, 2048, 4096])
def test_little_padding_with_few_rows_to_choose_from(max_tokens: int) -> None:
    """As many rows as SST-2 has sentences; the mean of some epochs."""
    lengths = like_sst2()
    plan = prepared(lengths, max_tokens)
    size = sum(positions(batch, lengths) for epoch in range(5) for batch in plan.batches(epoch))
    assert 5 * lengths.sum() / size >= 0.97
    fewest = lengths.sum() / max_tokens
    assert len(plan.batches(0)) <= 1.06 * fewest + 1


def test_rows_of_a_bucket_mix_and_no_epoch_is_like_another() -> None:
    lengths = like_sst2(20_000)
    plan = prepared(lengths, 1024)
    partners = [set[int](), set[int]()]
    for epoch in range(2):
        batch = next(batch for batch in plan.batches(epoch) if 7 in batch)
        partners[epoch] = set(batch.tolist()) - {7}
    # Rows of its length alone are some 700; of 40 partners chance would repeat two.
    assert len(partners[0] & partners[1]) <= 8
    widths = [int(lengths[batch].max()) for batch in plan.batches(0)]
    later = [int(lengths[batch].max()) for batch in plan.batches(1)]
    # of 470 batches: sd 0.05 for a random order, within an epoch and from one to the next
    assert abs(np.corrcoef(widths[:-1], widths[1:])[0, 1]) < 0.2
    assert abs(np.corrcoef(widths, later)[0, 1]) < 0.2
    other = prepared(lengths, 1024, seed=1).batches(0)
    assert any(not np.array_equal(a, b) for a, b in zip(other, plan.batches(0), strict=False))


def test_little_data_meets_others_too() -> None:
    """One bucket of all rows of one length in one batch cannot mix; that the ends move helps."""
    lengths = np.arange(10, 110)
    plan = prepared(lengths, 1024)
    company = {tuple(sorted(b)) for epoch in range(5) for b in plan.batches(epoch) if 50 in b}
    assert len(company) >= 3


def test_processes_that_work_at_once_have_about_as_much_to_do() -> None:
    lengths = like_sst2()
    plan = prepared(lengths, 2048, share=8)
    sizes = np.array([positions(batch, lengths) for batch in plan.batches(0)]).reshape(-1, 8)
    assert sizes.sum() / (8 * sizes.max(axis=1).sum()) > 0.95


def test_a_step_is_the_same_on_other_processes() -> None:
    lengths = like_sst2(500)
    splits = [(1, 4), (2, 2), (4, 1)]
    found = []
    for num_processes, num_parts in splits:
        plan = TokenBudget(512, lengths)
        plan.prepare(TrainingRun(lengths, 8, num_processes, num_parts))
        found.append([batch.tolist() for batch in plan.batches(2)])
    assert found[0] == found[1] == found[2]


def test_rows_may_be_limited_and_padding_rounded() -> None:
    lengths = np.repeat([3, 9, 20], 50)
    plan = prepared(lengths, 64, max_rows=6, multiple=8)
    for batch in plan.batches(0):
        assert len(batch) <= 6
        assert len(batch) * -(-lengths[batch].max() // 8) * 8 <= 64


def test_lengths_come_from_the_dataset() -> None:
    dataset = rows()
    lengths = np.array([len(ids) for ids in dataset["input_ids"]])
    plan = TokenBudget(64)
    plan.prepare(TrainingRun(dataset, 4))
    assert max(positions(batch, lengths) for batch in plan.batches(0)) <= 64


def test_rows_that_are_padded_already_are_refused() -> None:
    masks = [[1, 1, 1], [1, 1, 0]]
    dataset = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7]] * 2, "attention_mask": masks})
    with pytest.raises(ValueError, match=r"1 of 2 rows are padded already .*row 1"):
        TokenBudget(64).prepare(TrainingRun(dataset, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; it must be a whole number, at least 1"),
        ({"max_tokens": 99.5}, "max_tokens is 99.5"),
        ({"max_tokens": 9, "multiple": 0}, "multiple is 0"),
        ({"max_tokens": 9, "max_rows": 0}, "max_rows is 0"),
        ({"max_tokens": 9, "max_padding": 1.0}, "max_padding is 1.0, a share"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBudget(**options)


@pytest.mark.parametrize(
    ("lengths", "run", "message"),
    [
        ([5, 70, 80], {}, r"2 of 3 rows .*row 1 with 70 tokens, .*80.*max_tokens=80 or more"),
        ([5, 0, 3], {}, "1 of 3 rows have no tokens .*row 1"),
        ([], {}, "has no rows"),
        ([5, 6, 7], {"num_processes": 4}, "3 rows make 1 batches .*among 4 processes"),
        ([60] * 7, {"num_processes": 2}, "7 rows make 7 batches .*among 2 processes"),
        ([5, 6, 7], {"drop_last": True}, "drop_last has nothing to drop"),
    ],
)
def test_what_cannot_be_batched_is_refused(
    lengths: list[int], run: dict[str, Any], message: str
) -> None:
    lengths = np.array(lengths, dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        TokenBudget(64, lengths).prepare(TrainingRun(lengths, 8, **run))


def test_few_rows_are_shared_by_the_processes_alone() -> None:
    """Six rows for two processes and eight parts: an epoch is one short step."""
    lengths = np.full(6, 30)
    plan = TokenBudget(64, lengths)
    plan.prepare(TrainingRun(lengths, 8, num_processes=2, num_parts=8))
    assert [len(batch) for batch in plan.batches(0)] in ([2, 2, 1, 1], [2, 1, 2, 1])


@pytest.mark.parametrize("name", PLANS)
def test_the_loss_is_that_of_all_rows_of_a_step(name: str, tmp_path: Path) -> None:
    seen = Seen()
    trainer = trainer_for(tmp_path, PLANS[name](), seen, num_train_epochs=1)
    trainer.train()
    assert sorted(chain(*seen.batches)) == list(range(NUM_ROWS))
    assert len(losses(trainer)) == len(seen.batches) // 4
    dataset = rows()
    step = padded([dataset[row] for row in chain(*seen.batches[:4])])
    whole = tiny("bert").train()(**step).loss.item()
    # fp32 sums of the same numbers in another order
    assert losses(trainer)[0] == pytest.approx(whole, rel=1e-6)


@pytest.mark.invariant
def test_two_processes_change_nothing(tmp_path: Path, two_interpreters: TwoInterpreters) -> None:
    out = tmp_path / "two.json"
    two_interpreters.run(Path(__file__).with_name("planned_run.py"), out, 4, 2)
    two = json.loads(out.read_text())
    for name in PLANS:
        one = run(name, 4, 4)
        assert len(two[name]["losses"]) == len(one["losses"])
        for key, value in one.items():
            # fp32 sums of the same numbers in another order, over some steps
            assert two[name][key] == pytest.approx(value, rel=2e-6), (name, key)


@pytest.mark.invariant
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_stopped_run_goes_on_as_if_never_stopped(
    plan: Callable[[], BatchPlan], tmp_path: Path
) -> None:
    """Stopped in the second epoch, and resumed with a worker."""
    whole = trainer_for(tmp_path / "whole", plan())
    whole.train()
    num_steps = whole.state.max_steps
    stop = num_steps // 2 + num_steps // 4  # in the middle of the second
    saving = {"save_strategy": "steps", "save_steps": stop}
    first = trainer_for(tmp_path / "cut", plan(), **saving)
    first.train()
    second = trainer_for(tmp_path / "cut", plan(), dataloader_num_workers=1, **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{stop}"))
    assert losses(second) == losses(whole)
    assert torch.equal(weights_of(second.model), weights_of(whole.model))
