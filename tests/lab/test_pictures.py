import math

import matplotlib.image
import numpy as np
import pytest

from hf_tfopt.lab.comparison import Comparison, Standing, Trial, compare
from hf_tfopt.lab.lr_range import read_lr_range, rising_rates
from hf_tfopt.lab.pictures import draw_comparison, draw_lr_range
from hf_tfopt.plotting import DARK, LIGHT


def history(rate, last):
    return [
        {"step": step, "loss": 5.0, "eval_loss": 5 - (5 - last) * step / 4, "learning_rate": rate}
        for step in range(1, 5)
    ]


def colors(path):
    pixels = matplotlib.image.imread(path)[..., :3]
    return {tuple(color) for color in np.round(pixels * 255).astype(int).reshape(-1, 3)}


def rgb(color):
    return tuple(int(color[place : place + 2], 16) for place in (1, 3, 5))


@pytest.mark.parametrize(("theme", "has_rates"), [(LIGHT, False), (DARK, True)])
def test_a_comparison_shows_each_setting_in_its_colour(theme, has_rates, tmp_path):
    sweeps = {"a": (0.1, 0.3), "b": (1e-3, 3e-3), "c": (1.0, 3.0)}
    ends = {"a": 2.0, "b": 3.0, "c": 4.0}
    comparison = compare(sweeps, lambda setting, rate: history(rate, ends[setting] + rate))
    path = tmp_path / "comparison.png"
    draw_comparison(comparison, path, theme, has_rates)
    assert {rgb(color) for color in (theme.paper, *theme.curves[:3])} <= colors(path)
    assert rgb(theme.curves[3]) not in colors(path)


def test_a_comparison_in_which_all_diverged_can_be_drawn(tmp_path):
    sides = [
        Standing(name, (Trial(name, 0.1, history(0.1, math.nan)), Trial(name, 0.3, fault="x")))
        for name in "ab"
    ]
    draw_comparison(Comparison(tuple(sides)), tmp_path / "comparison.png", has_rates=True)
    assert rgb(LIGHT.curves[1]) in colors(tmp_path / "comparison.png"), "the crosses"


def test_more_settings_than_colours_are_told_apart_by_their_lines(tmp_path):
    rates = (0.1, 0.3)
    settings = {f"setting {index}": rates for index in range(2 * len(LIGHT.curves) + 1)}
    comparison = compare(settings, lambda setting, rate: history(rate, 2.0))
    draw_comparison(comparison, tmp_path / "comparison.png")
    assert {rgb(color) for color in LIGHT.curves} <= colors(tmp_path / "comparison.png")


@pytest.mark.parametrize("falls", [True, False])
def test_a_range_test_shows_what_it_recommends_if_it_does(falls, tmp_path):
    rates = rising_rates(1e-4, 1.0, 50)
    losses = np.linspace(7, 5, 50) if falls else np.linspace(5, 7, 50)
    draw_lr_range(read_lr_range(rates, losses), tmp_path / "range.png")
    assert (rgb(LIGHT.curves[1]) in colors(tmp_path / "range.png")) == falls
