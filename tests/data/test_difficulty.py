"""Competence functions, and scores of every row from Arrow's buffers."""

import random
import re
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.data.difficulty import BLOCK, PACES, easiest_first, scores_of
from tests.references.difficulty import plain_competence, plain_lengths, plain_rarity


def rows_of(num_rows: int, seed: int, is_padded: bool = True) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        ids = [min(int(rng.paretovariate(0.5)), 900) for _ in range(rng.randint(0, 9))]
        room = 9 - len(ids) if is_padded else 0
        rows.append({"input_ids": ids + [0] * room, "attention_mask": [1] * len(ids) + [0] * room})
    return rows


@pytest.mark.parametrize("pace", PACES)
def test_competence_equals_the_paper(pace: str) -> None:
    steps = np.arange(250)
    for num_steps, start in ((1, 0.3), (100, 0.01), (249, 1.0), (1000, 0.5)):
        found = PACES[pace](steps, num_steps, start)
        expected = [plain_competence(step, num_steps, start, pace) for step in range(250)]
        assert found == pytest.approx(expected, rel=1e-12)
        assert found[0] == pytest.approx(start) and (np.diff(found) >= 0).all()


def test_competence_at_points_worked_out_by_hand() -> None:
    found = PACES["sqrt"](np.array([0, 25, 100, 101]), 100, 0.0001)
    assert found == pytest.approx([0.0001, 0.5, 1, 1], abs=1e-6)  # sqrt(1/4), and start² is 1e-8
    assert PACES["linear"](np.array([50]), 100, 0.2) == pytest.approx([0.6])


@pytest.mark.parametrize("form", ["padded", "bare", "selected", "chunks", "rows"])
def test_scores_equal_the_references(form: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    size = BLOCK + 37 if form == "padded" else 200  # two blocks
    rows = rows_of(size, seed, is_padded=form != "bare")
    data: Any = datasets.Dataset.from_list(rows)
    if form == "selected":
        order = random.Random(seed).sample(range(size), 120)
        data, rows = data.select(order), [rows[i] for i in order]
    if form == "chunks":
        parts = [datasets.Dataset.from_list(rows[:70]), datasets.Dataset.from_list(rows[70:])]
        data = datasets.concatenate_datasets(parts)
    if form == "rows":
        data = tfo.ArrowRows(data)
    assert tfo.example_lengths(data).tolist() == plain_lengths(rows)
    # fp64 sums of the same few numbers in another order
    assert tfo.example_rarity(data) == pytest.approx(plain_rarity(rows), rel=1e-12, abs=1e-12)
    assert scores_of("length", data).tolist() == plain_lengths(rows)


def test_a_column_an_array_or_a_function() -> None:
    values = [3.0, -1.0, 2.5, 7.0]
    data = datasets.Dataset.from_dict({"hard": values, "labels": [[1], [1, 2], [], [3]]})
    shuffled = data.select([2, 0, 3, 1])
    assert scores_of("hard", shuffled).tolist() == [2.5, 3.0, 7.0, -1.0]
    for given in (values, np.float32(values), torch.tensor(values), lambda _: values):
        assert scores_of(given, data).tolist() == values
    assert scores_of(lambda rows: tfo.example_lengths(rows, "labels"), data).tolist() == [
        1,
        2,
        0,
        1,
    ]


def test_ties_have_an_order_of_the_seed_and_all_else_the_scores() -> None:
    scores = np.array([2.0, 1.0, 2.0, 0.0] * 50)
    first, second = easiest_first(scores, 0), easiest_first(scores, 1)
    assert (scores[first] == np.sort(scores)).all() and (scores[second] == np.sort(scores)).all()
    assert not (first == second).all() and (first == easiest_first(scores, 0)).all()
    assert sorted(first.tolist()) == list(range(200))


BAD = {
    "misspelt name": ("lenght", "did you mean 'length'"),
    "misspelt column": ("gread", "did you mean 'grade'"),
    "text": ("text", "column 'text' is of .*string"),
    "lists": ("input_ids", "tfo.example_lengths\\(rows, 'input_ids'\\)"),
    "missing values": ("holes", "'holes' has 1 rows with no value"),
    "NaN": ([1.0, float("nan"), 2.0], "1 of 3 scores are not finite; the first is nan, of row 1"),
    "infinite": (lambda _: [1, 2, float("inf")], "the first is inf, of row 2"),
    "too few": ([1.0, 2.0], "shape \\(2,\\), and the training dataset 3 rows"),
    "too many dimensions": (np.ones((3, 1)), "shape \\(3, 1\\)"),
    "no numbers": (["a", "b", "c"], "must be one number for each row"),
    "constant": ("same", "score='same' is 4 for all 3 rows"),
    "one length": ("length", "padded without an attention_mask"),
    "nothing": (None, "shape \\(\\), and the training dataset 3 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_scores(name: str) -> None:
    data = datasets.Dataset.from_dict(
        {
            "text": ["a", "b", "c"],
            "grade": [1, 2, 3],
            "same": [4, 4, 4],
            "holes": [1, None, 3],
            "input_ids": [[5, 6]] * 3,
        }
    )
    score, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        scores_of(score, data)


def test_bad_datasets() -> None:
    with pytest.raises(ValueError, match="of type list: give the scores themselves"):
        scores_of("grade", [1, 2, 3])
    text = datasets.Dataset.from_dict({"input_ids": ["a b", "c"]})
    with pytest.raises(ValueError, match="tokenize first"):
        scores_of("rarity", text)
    negative = datasets.Dataset.from_dict({"input_ids": [[1, -100], [2]]})
    with pytest.raises(ValueError, match=re.escape("holds -100, which is no token id")):
        scores_of("rarity", negative)
    huge = datasets.Dataset.from_dict({"input_ids": [[1, 1 << 40], [2]]})
    with pytest.raises(ValueError, match="no token id"):
        scores_of("rarity", huge)
    uneven = datasets.Dataset.from_dict({"input_ids": [[1, 2], [2]], "attention_mask": [[1], [0]]})
    with pytest.raises(ValueError, match="not of the same lengths"):
        scores_of("length", uneven)
