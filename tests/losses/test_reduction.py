"""The one division: by whole counts, never by a piece's, and honest where nothing was counted."""

import math

import pytest
import torch

from hf_tfopt.losses.reduction import (
    LossSum,
    TermTotals,
    combine,
    divide,
    has_target,
    perplexity,
    present,
    summed,
    unlabelled,
)


def term(total: float, count: float) -> LossSum:
    return LossSum(torch.tensor(total), torch.tensor(count))


def test_terms_are_weighed_and_divided_by_the_whole_batchs_counts() -> None:
    terms = {"a": term(6.0, 2), "b": term(1.0, 1)}
    assert combine(terms).item() == 4
    counts = {"a": torch.tensor(4), "b": torch.tensor(2)}
    assert combine(terms, counts, {"b": 10.0}).item() == 6 / 4 + 10 * 1 / 2


def test_nothing_counted_is_0_to_train_on_and_nan_to_report() -> None:
    for total in (0.0, 5.0):  # smoothing has a sum for labels of weight 0
        assert divide(torch.tensor(total), 0).item() == 0
    totals = TermTotals()
    totals.add({"a": term(0.0, 0), "b": term(3.0, 2)})
    means = totals.means(lambda tensor: tensor)
    assert math.isnan(means["a"]) and means["b"] == 1.5
    assert present(means) == {"b": 1.5} and summed(means) == 1.5
    assert math.isnan(summed({"a": math.nan}))
    assert totals.means(lambda tensor: tensor) == {}, "asking empties them"


def test_counts_below_1_are_weights_and_divide_too() -> None:
    assert divide(torch.tensor(0.1), torch.tensor(0.25)).item() == pytest.approx(0.4)


def test_long_evaluations_keep_their_digits() -> None:
    totals = TermTotals()
    for _ in range(1000):
        totals.add({"a": term(2.0**24 + 2, 1.0)})  # fp32 would lose the 2 after a few
    assert totals.means(lambda tensor: tensor)["a"] == 2.0**24 + 2


def test_rows_are_unlabelled_by_their_kind() -> None:
    batch = {"labels": torch.arange(4), "values": torch.ones(4, 2), "ids": torch.arange(4)}
    marked = unlabelled(batch, ("labels", "values", "absent"), 3, 4)
    assert marked["labels"].tolist() == [0, 1, 2, -100]
    assert marked["values"].isnan().all(1).tolist() == [False, False, False, True]
    assert marked["ids"] is batch["ids"] and batch["labels"][3] == 3, "the batch stays as it was"


def test_a_target_is_whole_or_a_number() -> None:
    assert has_target(torch.tensor([-100, 3]))
    assert not has_target(torch.tensor([-100, -100]))
    assert not has_target(torch.tensor([math.nan]))
    assert not has_target(None)


def test_perplexity_overflows_to_infinity_and_keeps_nan() -> None:
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1
    assert math.isnan(perplexity(math.nan))
