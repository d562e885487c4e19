from pathlib import Path
from typing import Any

import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.callbacks.gradient_noise import add_noise, noise_std
from tests.callbacks.gradient_events import event, gradients_of, set_gradients
from tests.callbacks.runs import trainer_with, weights_of
from tests.models import tiny


def noise(seed: int = 0, step: int = 0, deviation: float = 1.0, number: int = 0) -> torch.Tensor:
    """Of the parameter of that number."""
    gradient = torch.zeros(40, 50)
    assert add_noise([None] * number + [gradient], deviation, seed, step) == 2000
    return gradient


@pytest.mark.parametrize(
    ("step", "variance"),
    [
        (0, 0.3),  # eta / 1
        (1, 0.3 / 2**0.55),
        (9, 0.3 / 10**0.55),
        (99_999, 0.3 / 100_000**0.55),
    ],
)
def test_the_variance_falls_as_in_the_paper(step: int, variance: float) -> None:
    assert noise_std(step, 0.3, 0.55) ** 2 == pytest.approx(variance, rel=1e-12)
    assert noise_std(step, 0.3, 0.0) ** 2 == pytest.approx(0.3, rel=1e-12)


def test_it_is_normal() -> None:
    """Of 2000 numbers: mean and variance within five standard errors, and the usual share of 1σ."""
    numbers = noise(deviation=0.2).double() / 0.2
    assert abs(numbers.mean()) < 5 / 2000**0.5
    assert abs(numbers.var() - 1) < 5 * (2 / 2000) ** 0.5
    assert abs((numbers.abs() < 1).double().mean() - 0.6827) < 5 * (0.6827 * 0.3173 / 2000) ** 0.5


def test_every_seed_step_and_parameter_has_its_own() -> None:
    assert torch.equal(noise(), noise())
    every = [noise(), noise(1), noise(-1), noise(0, 1), noise(number=1), noise(1, 1), noise(2)]
    correlations = torch.corrcoef(torch.stack([one.flatten() for one in every]))
    assert correlations.fill_diagonal_(0).abs().max() < 5 / 2000**0.5


def test_it_depends_on_no_other_gradient_and_touches_no_random_state() -> None:
    model = tiny("bert")
    set_gradients(model)
    before, state = gradients_of(model), torch.get_rng_state()
    callback = tfo.GradientNoise(eta=0.01)
    callback.begin(event(model))
    callback.gradients(event(model, step=3))
    whole = {name: g - before[name] for name, g in gradients_of(model).items()}
    assert torch.equal(torch.get_rng_state(), state)
    model.bert.embeddings.requires_grad_(False)
    model.zero_grad()
    for name, parameter in model.named_parameters():
        if "embeddings" not in name:
            parameter.grad = before[name].clone()
    callback.gradients(event(model, step=3))
    found = gradients_of(model)
    assert found and all(torch.equal(g - before[name], whole[name]) for name, g in found.items())
    told = callback.scalars(event(model))
    size = sum(gradient.numel() for gradient in found.values())
    assert told["gradient_noise_std"] == noise_std(3, 0.01, 0.55)
    assert told["gradient_noise_norm"] == pytest.approx(told["gradient_noise_std"] * size**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gradients_keep_their_type(dtype: torch.dtype) -> None:
    gradient = torch.zeros(40, 50, dtype=dtype)
    add_noise([gradient], 0.5, 0, 0)
    # the rounding of 8 bits
    torch.testing.assert_close(gradient.float(), noise(deviation=0.5), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("options", "message"), [({"eta": 0}, "eta must be"), ({"gamma": -1.0}, "gamma must be")]
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfo.GradientNoise(**options)


@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_it_comes_after_all_clipping(how: str, tmp_path: Path) -> None:
    """Whatever the order in which they were given: bit by bit the same training."""
    found = []
    for turn in (1, -1):
        callbacks = [tfo.GradientNoise(1e-2), tfo.ClipByValue(1e-3), tfo.ZClip()][::turn]
        trainer = trainer_with(tmp_path, callbacks, how, max_steps=2)
        trainer.train()
        ours = [c for c in trainer.callback_handler.callbacks if c in callbacks]
        assert isinstance(ours[-1], tfo.GradientNoise)
        found.append(weights_of(trainer.model))
    assert torch.equal(*found)
