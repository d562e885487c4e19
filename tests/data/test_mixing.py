"""Mixtures: the shares, the rows of every epoch, and nothing but (seed, epoch) behind them."""

import math
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.data.mixing import Mixture, apportion, draws, mix, shares
from hf_tfopt.data.rows import ArrowRows, Row, one_source
from tests.data.test_collators import examples, make_tokenizer
from tests.references.multitask import multilingual_shares


def rows(name: str, size: int) -> list[dict[str, str]]:
    return [{"key": f"{name}{number}"} for number in range(size)]


def mixture(sizes: dict[str, int], temperature: float = 1.0, **options: int) -> Mixture:
    return mix({name: rows(name, size) for name, size in sizes.items()}, temperature, **options)


def keys_of(epochs: Mixture, epoch: int) -> list[str]:
    epochs.set_epoch(epoch)
    return [row["key"] for row in epochs]


@pytest.mark.parametrize("temperature", [0.5, 1, 2, 5, 100])
def test_shares_equal_the_reference(temperature: float) -> None:
    sizes = [10, 3000, 450]
    assert shares(sizes, temperature) == pytest.approx(multilingual_shares(sizes, temperature))


def test_shares_at_the_ends_and_capped() -> None:
    assert shares([1, 3], 1) == pytest.approx([0.25, 0.75])
    assert shares([1, 10**12, 7], math.inf) == pytest.approx([1 / 3] * 3)
    assert shares([1, 3000], 1e-3) == pytest.approx([0, 1])
    assert shares([5, 100, 20], 1, cap=20) == pytest.approx([5 / 45, 20 / 45, 20 / 45])


def test_whole_numbers_near_the_shares() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        powers = [rng.random() ** 3 for _ in range(rng.randint(1, 6))]
        total = sum(powers)
        wanted = [power / total for power in powers]
        number = rng.randint(len(powers), 300)
        whole = apportion(wanted, number)
        assert sum(whole) == number and min(whole) >= 1
        # the floor of 1 may take from others, less than one row for each task
        for own, share in zip(whole, wanted, strict=True):
            assert abs(own - share * number) <= len(powers)
    assert apportion([0.2, 0.3, 0.5], 10) == [2, 3, 5]


def test_proportional_has_every_row_once_an_epoch_in_a_new_order() -> None:
    mixed = mixture({"b": 7, "a": 20})
    assert len(mixed) == 27 and mixed.quotas == {"a": 20, "b": 7}
    first, second = keys_of(mixed, 0), keys_of(mixed, 1)
    assert sorted(first) == sorted(second) and len(set(first)) == 27
    assert first != second
    assert {row["task"] for row in mixed} == {"a", "b"}
    assert all(row["key"].startswith(row["task"]) for row in mixed)


def test_a_task_goes_on_where_its_last_epoch_ended() -> None:
    """Of the large task a third in each epoch: all of it in three; of the small one thrice all."""
    mixed = mixture({"large": 60, "small": 10}, math.inf, num_rows=40)
    assert mixed.quotas == {"large": 20, "small": 20}
    seen = [Counter(keys_of(mixed, epoch)) for epoch in range(6)]
    for start in (0, 3):
        large = sum((seen[start + i] for i in range(3)), Counter())
        assert [large[f"large{number}"] for number in range(60)] == [1] * 60
    assert all(epoch[f"small{number}"] == 2 for epoch in seen for number in range(10))


def test_draws_are_one_row_of_permutations_cut_anywhere() -> None:
    whole = draws(7, 70, 0, seed=5, name="a")
    pieces = np.concatenate([draws(7, 10, epoch, seed=5, name="a") for epoch in range(7)])
    assert whole.tolist() == pieces.tolist()
    for start in range(0, 70, 7):
        assert sorted(whole[start : start + 7]) == list(range(7))
    assert whole[:7].tolist() != whole[7:14].tolist()


def test_seeds_and_names_have_their_own_orders_and_other_tasks_no_say() -> None:
    alone = keys_of(mixture({"a": 30}), 2)
    beside = keys_of(mixture({"a": 30, "b": 9}), 2)
    assert [key for key in beside if key.startswith("a")] == alone
    assert keys_of(mixture({"a": 30}, seed=1), 2) != alone
    as_numbers = [int(key[1:]) for key in keys_of(mixture({"b": 30}), 2)]
    assert as_numbers != [int(key[1:]) for key in alone]


def test_orders_are_not_biased() -> None:
    """Over 3000 permutations of 5, each row stands in each place 600 ± 5 standard deviations."""
    drawn = draws(5, 15000, 0, seed=0, name="a").reshape(3000, 5)
    counts = np.stack([(drawn == number).sum(axis=0) for number in range(5)])
    assert np.abs(counts - 600).max() < 5 * math.sqrt(3000 * 0.2 * 0.8)


def test_batches_rows_and_ends() -> None:
    mixed = mixture({"a": 3, "b": 2})
    assert mixed.__getitems__([4, 0]) == [mixed[4], mixed[0]]
    assert mixed[-1] == mixed[4]
    for wrong in (5, -6):
        with pytest.raises(IndexError, match=f"row {wrong} of 5"):
            mixed[wrong]


@pytest.fixture
def loader() -> Iterator[DataLoader]:
    mixed = mixture({"a": 40}, num_rows=8)
    yield DataLoader(
        mixed, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=lambda batch: batch
    )


def test_workers_that_are_running_hear_of_an_epoch(loader: DataLoader) -> None:
    epochs = []
    for epoch in (0, 1, 2):
        loader.dataset.set_epoch(epoch)
        epochs.append([row["key"] for batch in loader for row in batch])
    assert len({key for keys in epochs for key in keys}) == 24
    assert epochs[1] == keys_of(mixture({"a": 40}, num_rows=8), 1)


def test_rows_in_arrow_stay_there_and_make_the_same_batches() -> None:
    """Read when asked for, those of one task at once; their task disturbs no collator."""
    tables = {"a": examples(9, seed=1), "b": examples(6, seed=2)}
    arrow = mix({name: ArrowRows(table) for name, table in tables.items()})
    lists = mix({name: list(table) for name, table in tables.items()})
    every = list(range(15))
    first = arrow.__getitems__(every)
    assert all(isinstance(row, Row) for row in first)
    assert [row["task"] for row in first] == [row["task"] for row in lists] == ["a"] * 9 + ["b"] * 6
    assert one_source(first[:9]) is not None
    random.Random(0).shuffle(every)
    collator = MaskedLMCollator(make_tokenizer(), "word", 0.3)
    collator.set_epoch(0)
    batches = [collator(mixed.__getitems__(every)) for mixed in (arrow, lists)]
    for name, value in batches[0].items():
        assert torch.equal(value, batches[1][name])
    again = pickle.loads(pickle.dumps(arrow))  # as a worker gets it
    assert [row["input_ids"].tolist() for row in again] == [row["input_ids"] for row in lists]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_collator_is_not_given_some_packed_rows(order: list[int]) -> None:
    """Whichever comes first: else the other's documents would become one, unnoticed."""
    packed = {"input_ids": [2, 7, 3, 2, 8, 3], "position_ids": [0, 1, 2, 0, 1, 2]}
    mixed = mix({"a": [packed], "b": [{"input_ids": [2, 7, 3]}]})
    with pytest.raises(ValueError, match=r"row \d of a batch has no position_ids, and others have"):
        MaskedLMCollator(make_tokenizer())(mixed.__getitems__(order))


def test_a_mixture_in_a_mixture_hears_of_the_epochs() -> None:
    inner = mixture({"a": 40}, num_rows=8)
    outer = mix({"inner": inner, "b": rows("b", 4)})
    assert set(keys_of(outer, 1)) == set(keys_of(inner, 1)) | {"b0", "b1", "b2", "b3"}
    assert set(keys_of(outer, 1)[4:]).isdisjoint(keys_of(outer, 2)[4:])


def test_a_row_is_not_changed() -> None:
    own = rows("a", 1)
    mixed = mix({"a": own})
    mixed[0]["key"] = "changed"
    assert own == [{"key": "a0"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0; it must be above 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"cap": 0}, "cap is 0"),
        ({"num_rows": 1}, "num_rows is 1; the 2 tasks need one each"),
        ({"num_rows": 4.5}, "num_rows is 4.5; it must be a whole number"),
        ({"cap": 2.5}, "cap is 2.5; it must be a whole number"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix({"a": rows("a", 3), "b": rows("b", 3)}, **options)


def test_nothing_to_mix() -> None:
    with pytest.raises(ValueError, match="no dataset to mix"):
        mix({})
    with pytest.raises(ValueError, match="dataset of task 'b' is empty; leave the task out"):
        mix({"a": rows("a", 3), "b": []})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([rows("a", 3)], "datasets is list; it must be datasets by the names"),
        ({1: rows("a", 3)}, "datasets is dict; it must be datasets by the names"),
        (
            {"a": examples(2).to_iterable_dataset()},
            r"task 'a' \(IterableDataset\) can only be read in its own order",
        ),
        (
            {"a": datasets.DatasetDict(train=examples(2))},
            "task 'a' is a DatasetDict of train: take one of them",
        ),
    ],
)
def test_what_cannot_be_mixed(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix(given)
