import math

import numpy as np
import pytest

from hf_tfopt.pictures.heat_maps import Scale, columns_of, scale_of
from hf_tfopt.pictures.history import Grid


def grid_at(steps, values):
    names = [f"b{n}" for n in range(len(values))]
    return Grid(np.array(steps, float), names, np.array(values), np.full_like(values, True, bool))


def test_even_steps_are_the_columns():
    cells, _, ends = columns_of(grid_at([10, 20, 30], [[1.0, 2.0, 3.0]]))
    assert cells.tolist() == [[1, 2, 3]] and ends == (5, 35)


def test_many_steps_are_averaged_and_what_is_not_finite_stays():
    values = np.arange(2000.0)[None].repeat(2, axis=0)
    values[1, 1000] = math.nan
    cells, _, _ = columns_of(grid_at(range(1, 2001), values))
    assert cells.shape[1] == 160
    np.testing.assert_allclose(np.nanmean(cells[0]), values[0].mean(), rtol=1e-3)  # bins of 12, 13
    assert np.isnan(cells[1]).sum() == 1


def test_a_stretch_without_measurements_takes_the_nearest():
    cells, _, _ = columns_of(grid_at([1, 2, 3, 10], [[1.0, 2.0, 3.0, 9.0]]))
    assert len(cells[0]) == 10 and np.isfinite(cells).all()
    assert cells[0, 4] == 3 and cells[0, 8] == 9


def test_one_measurement_is_a_column():
    cells, _, (first, last) = columns_of(grid_at([50], [[1.0], [2.0]]))
    assert cells.shape == (2, 1) and first < 50 < last


@pytest.mark.parametrize(
    ("values", "is_log", "scale"),
    [
        ([[1.0, 100.0, math.nan]], True, (1, 100, True)),
        ([[0.0, 1.0, 4.0]], True, (1, 4, True)),  # a dead block has the lowest colour
        ([[1e-30, 1.0]], True, (1e-9, 1, True)),
        ([[-1.0, 1.0]], True, (-1, 1, False)),
        ([[2.0, 3.0], [7.0, 3.0]], False, (2, 7, False)),
        ([[5.0, 5.0]], False, (5, 6, False)),
        ([[math.nan]], True, (0, 1, False)),
        ([[0.0, 0.0]], True, (0, 1, False)),
    ],
)
def test_scales(values, is_log, scale):
    found = scale_of([np.array(row) for row in values], is_log)
    assert found == Scale(*scale)
    assert np.isfinite(found.norm()(np.array([found.low, found.high]))).all()
