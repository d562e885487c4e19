import math
import random

import numpy as np
import pytest

from hf_tfopt.pictures.heat_maps import columns_of
from hf_tfopt.pictures.history import broken, events_of, gaps, grid, names_below, thinned

ODD = [
    {"step": 1, "loss": math.nan, "a/x": 1.0, "a/y": 2.0},
    {"step": 2, "loss": 3.0, "a/x": None, "a/y": 4.0},
    {"step": 3, "loss": None},
    {"loss": None},
    {"step": "4", "loss": None},
    {"step": 5, "eval_loss": 1.0, "a/y": math.inf},
]


def test_gaps_are_where_a_number_was_not_finite():
    assert gaps(ODD, "loss").tolist() == [1, 3]
    assert gaps(ODD, "eval_loss").tolist() == []
    steps, values = broken(np.array([1.0, 4.0]), np.array([7.0, 8.0]), np.array([2.0]))
    assert steps.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(values, [7, math.nan, 8])


def test_a_grid_has_a_row_for_each_block_and_holes():
    found = grid(ODD, "a")
    assert found is not None and found.names == ["x", "y"] == names_below(ODD, "a")
    assert found.steps.tolist() == [1, 2, 5]
    np.testing.assert_array_equal(found.values, [[1, math.nan, math.nan], [2, 4, math.nan]])
    assert grid(ODD, "b") is None


def test_a_block_that_rests_is_no_hole_and_stands_in_its_place():
    """As gradual unfreezing logs them: the head first."""
    names = ["head", "encoder.10", "encoder.2", "decoder.0", "embeddings", "encoder"]
    log = [{"step": 1, "n/head": 1.0}, {"step": 2, **{f"n/{name}": math.nan for name in names}}]
    found = grid(log, "n")
    assert found is not None
    expected = ["embeddings", "encoder.2", "encoder.10", "encoder", "decoder.0", "head"]
    assert found.names == expected
    assert found.is_there.tolist() == [[name == "head", True] for name in expected]
    cells, is_there, _ = columns_of(found)
    np.testing.assert_array_equal(is_there, found.is_there)
    assert np.isnan(cells[:, 1]).all() and cells[-1, 0] == 1


@pytest.mark.parametrize("length", [0, 1, 5, 100, 5000])
def test_thinning_keeps_spikes_holes_and_ends(length):
    draw = random.Random(length)
    steps = np.arange(float(length))
    values = np.array([draw.gauss(0, 1) for _ in range(length)])
    if length > 50:
        values[[17, 40]] = 99, math.nan
    few, kept = thinned(steps, values, limit=60)
    assert len(few) <= max(length if length <= 60 else 0, 64)
    assert set(zip(few, np.nan_to_num(kept), strict=True)) <= set(
        zip(steps, np.nan_to_num(values), strict=True)
    )
    if length:
        assert few[0] == 0 and few[-1] == length - 1
    if length > 50:
        assert kept[np.isfinite(kept)].max() == 99 and np.isnan(kept).sum() == 1


def test_events_are_read_whatever_lies_beside_them():
    history = [
        {"step": 9, "events": [{"step": 7, "kind": "b", "text": "t"}, {"kind": "no step"}, 3]},
        {"step": 5, "events": [{"step": 5, "kind": "a"}]},
        {"step": 6, "events": "none"},
        {"step": 9, "events": [{"step": 7, "kind": "b", "text": "t"}]},  # told twice
    ]
    assert events_of(history) == [(5, "a", ""), (7, "b", "t")]
