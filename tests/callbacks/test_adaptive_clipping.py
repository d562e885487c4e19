import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.callbacks.adaptive_clipping import units_of
from tests.callbacks.gradient_events import event, gradients_of, set_gradients
from tests.callbacks.runs import history_of, trainer_with
from tests.models import TINY, tiny
from tests.references.clipping import autoclip_norms, clipped_units, zclip_norms

SEEDS = range(5)


def norms_of_a_run(seed: int, num_steps: int = 60) -> list[float]:
    """Norms that fall, with spikes."""
    print(f"{seed=}")
    generator = np.random.default_rng(seed)
    norms = np.exp(-np.arange(num_steps) / 40) * generator.lognormal(0, 0.2, num_steps)
    norms[generator.integers(5, num_steps, 4)] *= 10
    return norms.tolist()


def after(callback: Any, norms: list[float]) -> list[float]:
    """The gradient's norms after clipping, of a model whose gradients have these."""
    model = torch.nn.Linear(3, 2)
    callback.begin(event(model))
    found = []
    for norm in norms:
        set_gradients(model, seed=7)
        length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad.mul_(norm / length)
        callback.gradients(event(model))
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_zclip_equals_its_reference(seed: int) -> None:
    norms = norms_of_a_run(seed)
    found = after(tfo.ZClip(z=2.0, momentum=0.9, warmup_steps=5), norms)
    # norms in fp32
    assert found == pytest.approx(zclip_norms(norms, 2.0, 0.9, 5), rel=1e-5)
    assert sum(a < 0.99 * b for a, b in zip(found, norms, strict=True)) >= 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("percentile", "window"), [(10, 1000), (50, 8), (0, 3), (99.5, 20)])
def test_autoclip_equals_its_reference(seed: int, percentile: float, window: int) -> None:
    norms = norms_of_a_run(seed)
    found = after(tfo.PercentileClipping(percentile, window), norms)
    assert found == pytest.approx(autoclip_norms(norms, percentile, window), rel=1e-5)
    assert sum(a < 0.99 * b for a, b in zip(found, norms, strict=True)) >= 2


@pytest.mark.parametrize("make", [lambda: tfo.ZClip(warmup_steps=5), tfo.PercentileClipping])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_norm_that_tells_nothing_is_passed_over(make: Any, bad: float) -> None:
    """Before, in and after the warm-up: all else is as if the step had not been."""
    norms = norms_of_a_run(0, 20)
    expected = after(make(), norms)
    assert min(np.divide(expected, norms)) < 0.99
    for place in (0, 3, 12):
        callback = make()
        found = after(callback, [*norms[:place], bad, *norms[place:]])
        of_bad = found.pop(place)
        assert of_bad == 0 if bad == 0 else math.isnan(of_bad) or of_bad == math.inf
        assert found == expected
        assert "nan" not in repr(callback.remembered) and "inf" not in repr(callback.remembered)


@pytest.mark.parametrize("make", [tfo.ZClip, tfo.PercentileClipping])
def test_norms_that_the_host_has_clipped_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"learns from the norms.*set max_grad_norm=0"):
        make().begin(event(tiny("bert"), max_grad_norm=1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfo.ZClip(z=0), "z must be a number above 0"),
        (lambda: tfo.ZClip(momentum=1.0), "momentum must be"),
        (lambda: tfo.ZClip(warmup_steps=1), "at least 2"),
        (lambda: tfo.ZClip(warmup_steps=2.5), "whole number"),
        (lambda: tfo.PercentileClipping(100), "below 100"),
        (lambda: tfo.PercentileClipping(-1), "0 or above"),
        (lambda: tfo.PercentileClipping(window=1), "at least 2"),
        (lambda: tfo.AdaptiveGradientClipping(0), "clipping must be"),
        (lambda: tfo.AdaptiveGradientClipping(eps=0), "eps must be"),
    ],
)
def test_bad_options_are_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", TINY)
def test_units_are_outputs_and_tokens_and_not_the_head(name: str) -> None:
    """AGC, parameter by parameter; GPT-2's matrices are transposed."""
    model = tiny(name)
    set_gradients(model, scale=0.01)
    before, places = gradients_of(model), tfo.places.named_places(model)
    callback = tfo.AdaptiveGradientClipping(0.05)
    callback.begin(event(model))
    callback.gradients(event(model))
    num_shortened, num_units = 0, 0
    for key, parameter in model.named_parameters():
        if places[key].label == "head":
            assert torch.equal(parameter.grad, before[key])
            continue
        is_transposed = name == "gpt2" and "c_" in key
        dim = None if parameter.ndim < 2 else int(is_transposed)
        expected, number = clipped_units(before[key], parameter.detach(), dim, 0.05, 1e-3)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-8)
        num_shortened += number
        num_units += 1 if dim is None else parameter.shape[dim]
    assert num_shortened > 0
    share = callback.scalars(event(model))["clip_share/units"]
    assert share == pytest.approx(num_shortened / num_units, rel=1e-5)


def test_a_tied_table_is_an_embedding_and_a_body_at_rest_is_told(caplog: Any) -> None:
    model = tiny("bert")
    table = model.get_input_embeddings().weight
    assert any(parameter is table for parameter, _ in units_of(model))
    assert all(p is not model.cls.predictions.bias for p, _ in units_of(model))
    model.bert.requires_grad_(False)
    callback = tfo.AdaptiveGradientClipping()
    with caplog.at_level(logging.WARNING, "hf_tfopt.callbacks.clipping"):
        callback.begin(event(model))
    assert "what is not the head: nothing of it is trained" in caplog.text
    callback.gradients(event(model))
    assert callback.scalars(event(model)) == {"clip_share/units": 0}


def test_zclip_shortens_a_spike_of_a_run(tmp_path: Path) -> None:
    class Spike(tfo.ZClip):
        """In the third step a gradient a hundred times as long, as only a test would."""

        def gradients(self, training: Any) -> None:
            if training.state.global_step == 2:
                for parameter in training.model.parameters():
                    parameter.grad.mul_(100)
            super().gradients(training)
            groups = self._groups
            lengths.append(float(groups.norms(groups.gradients())))

    lengths: list[float] = []
    trainer = trainer_with(tmp_path, [Spike(warmup_steps=2)], lr=1e-5)
    trainer.train()
    logs = history_of(trainer)
    assert [entry["clip_share/zclip"] for entry in logs] == [0, 0, 1, 0]
    assert "clip_threshold/zclip" not in logs[0]
    assert lengths[2] < logs[1]["clip_threshold/zclip"] < 0.1 * 100 * lengths[0]
