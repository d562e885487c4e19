import numpy as np
import pytest

from hf_tfopt.plotting import curves, series, smoothed


def test_curves_are_drawn_of_what_there_is(tmp_path):
    assert not curves({"run": []}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    odd = [
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": 3.0},
        {"loss": 1.0},
        {"step": "x"},
    ]
    assert curves({"run": odd}, tmp_path / "one.png")
    steps, values = series(odd, "loss")
    assert (steps.tolist(), values.tolist()) == ([2], [3.0])


@pytest.mark.parametrize("length", [0, 1, 2, 5, 100])
def test_smoothing_keeps_constants_and_lines_and_lessens_noise(length):
    flat = np.full(length, 3.0)
    np.testing.assert_allclose(smoothed(flat), flat, rtol=1e-12)  # a weighted mean of equals
    line = np.arange(float(length))
    half = max(2, round(0.06 * length))
    inner = slice(half, length - half)
    np.testing.assert_allclose(smoothed(line)[inner], line[inner], atol=1e-9)  # no lag
    if length == 100:
        noise = np.random.default_rng(0).normal(size=length)
        assert smoothed(noise).std() < 0.6 * noise.std()
