import numpy as np
import pytest

from hf_tfopt.plotting import DARK, LIGHT, series, smoothed


def test_a_series_is_what_is_finite_and_has_a_step():
    odd = [
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": 3.0},
        {"loss": 1.0},
        {"step": "x"},
    ]
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


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_colour_is_seen_on_its_paper(theme):
    """WCAG's contrast of graphics, 3 to 1; a few of the brightest hues have less, and are thick."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(color):
        low, high = sorted([luminance(color), luminance(theme.paper)])
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme.ink) > 7
    assert min(map(contrast, theme.curves)) > 1.9
    assert min(map(contrast, theme.ramp)) > 1.9
