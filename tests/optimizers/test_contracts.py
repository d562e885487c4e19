"""What every optimizer must keep, for the options that bring out its state."""

import copy
import io
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hf_tfopt as tfo

# a new optimizer gets a line here, or the first test fails
SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 2e-2, "weight_decay": 0.0001},
    "sgd": {"lr": 0.1, "weight_decay": 0.01},
    "adamw": {"lr": 2e-2, "weight_decay": 0.01},
    "lamb": {"lr": 2e-2, "weight_decay": 0.01},
    "lion": {"lr": 1e-2, "weight_decay": 0.01},
    "muon": {"lr": 2e-2, "weight_decay": 0.01},
    "adafactor": {"lr": 0.1, "weight_decay": 0.01},
    "adamw_8bit": {"lr": 2e-2, "weight_decay": 0.01, "min_8bit_size": 16},
    "lion_8bit": {"lr": 1e-2, "weight_decay": 0.01, "min_8bit_size": 16},
    "adamw_8bit_torchao": {"lr": 5e-3, "weight_decay": 0.01},
    "adamw_4bit": {"lr": 5e-3, "weight_decay": 0.01},
    "schedule_free": {"lr": 3e-2, "weight_decay": 0.01},
}
OF_TORCHAO = ("adamw_8bit_torchao", "adamw_4bit")
TORCHAO_MARKS = [
    pytest.mark.skipif(
        find_spec("torchao") is None, reason="needs pip install 'hf-tfopt[torchao]'"
    ),
    # its import makes script modules
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
NAMES = [pytest.param(n, marks=TORCHAO_MARKS if n in OF_TORCHAO else []) for n in tfo.OPTIMIZERS]
# what a state may hold besides tensors: bitsandbytes counts steps in plain numbers, and torchao's
# low bits are a class of tensors, which it tells `torch.load(weights_only=True)` of
STATES = {
    "adamw_8bit": {"Tensor", "int"},
    "lion_8bit": {"Tensor", "int"},
    "adamw_8bit_torchao": {"Tensor", "OptimState8bit"},
    "adamw_4bit": {"Tensor", "OptimState4bit"},
}


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """torchao's steps without the compiler, which takes seconds for each shape."""
    is_needed = find_spec("torchao") is not None
    with torch.compiler.set_stance("force_eager") if is_needed else nullcontext():
        yield


def test_every_optimizer_has_settings() -> None:
    assert set(SETTINGS) == set(tfo.OPTIMIZERS)


def two_layers(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    width = 768 if name in OF_TORCHAO else 16  # low bits begin at 4096 numbers: 768 * 6 is more
    layers = (nn.Linear(6, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 3))
    return nn.Sequential(*layers).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 6, generator=generator)
    return inputs.to(dtype), inputs[:, :3].argmax(dim=1)


def change_to(weights: str, optimizer: Any) -> None:
    """Have Schedule-Free's weights for "train" or "eval" in the model; the others have but one."""
    getattr(optimizer, weights, lambda: None)()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    dtype = next(model.parameters()).dtype
    change_to("train", optimizer)
    losses = []
    for step in steps:
        inputs, labels = batch(step, dtype)
        loss = F.cross_entropy(model(inputs).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_finds_the_bottom_of_a_quadratic(name: str) -> None:
    print("seed 0")
    torch.manual_seed(0)
    target = torch.randn(8, 4)
    model = nn.Linear(4, 8, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = tfo.build_optimizer(model, name, **{**SETTINGS[name], "lr": 0.1, "weight_decay": 0})
    decay = 0 if name == "schedule_free" else 1 / 400  # which is meant with a constant lr
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step * decay)
    change_to("train", optimizer)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (model.weight - target).square().sum()).backward()
        optimizer.step()
        schedule.step()
    change_to("eval", optimizer)
    # each step has the size of the lr, not of the gradient, and the last ones are below 1e-3;
    # LAMB's has that of lr·‖θ‖, here 6 lr
    assert (model.weight - target).abs().max() < (1e-2 if name == "lamb" else 5e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_a_network_in_the_precision_it_came_in(name: str, dtype: torch.dtype) -> None:
    print("seed 0")
    model = two_layers(name, dtype)
    losses = train(model, tfo.build_optimizer(model, name, **SETTINGS[name]), range(60))
    assert losses[0] > 0.9  # about ln 3
    assert sum(losses[-10:]) / 10 < 0.35
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_goes_on_bit_for_bit_from_what_weights_only_loads(name: str, dtype: torch.dtype) -> None:
    print("seed 0")
    model = two_layers(name, dtype)
    optimizer = tfo.build_optimizer(model, name, **SETTINGS[name])
    train(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(5, 10))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = two_layers(name, dtype)
    resumed.load_state_dict(saved["model"])
    other = tfo.build_optimizer(resumed, name, **{**SETTINGS[name], "lr": 1.0})
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, range(5, 10))
    for found, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        assert found.equal(expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_tensors_only(name: str) -> None:
    model = two_layers(name)
    optimizer = tfo.build_optimizer(model, name, **SETTINGS[name])
    train(model, optimizer, range(1))
    states = optimizer.state_dict()["state"]
    assert len(states) == len(list(model.parameters()))
    values = [value for state in states.values() for value in leaves(state)]
    assert {type(value).__name__ for value in values} == STATES.get(name, {"Tensor"})


def leaves(state: dict[str, Any]) -> Iterator[Any]:
    for value in state.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("name", NAMES)
def test_every_groups_lr_survives_the_schedule(name: str) -> None:
    model = two_layers(name)
    optimizer = tfo.build_optimizer(model, name, **SETTINGS[name])
    for index, group in enumerate(optimizer.param_groups):
        group["lr"] *= 0.5**index
    before = [float(group["lr"]) for group in optimizer.param_groups]
    assert len(set(before)) > 1
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer, range(1))
    schedule.step()
    now = [float(group["lr"]) for group in optimizer.param_groups]
    assert now == pytest.approx([lr / 2 for lr in before])


@pytest.mark.parametrize("name", NAMES)
def test_steps_without_reading_a_number_back(name: str, monkeypatch) -> None:
    model = two_layers(name)
    optimizer = tfo.build_optimizer(model, name, **SETTINGS[name])
    train(model, optimizer, range(1))
    for method in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(
            torch.Tensor, method, lambda *_, method=method: pytest.fail(f"{method} in step()")
        )
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_not_decayed(name: str) -> None:
    model = two_layers(name)
    optimizer = tfo.build_optimizer(model, name, **{**SETTINGS[name], "weight_decay": 0.5})
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    change_to("train", optimizer)
    optimizer.step()
    for key, value in model.named_parameters():
        expected = before[key] if value.ndim < 2 else decayed(before[key], name)
        torch.testing.assert_close(value.detach(), expected)


def decayed(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Where a decay of 0.5 moves a weight whose gradient is 0, in one step."""
    lr = SETTINGS[name]["lr"]
    if name == "lamb":  # by its whole lr: the trust ratio takes the decay's size away
        return weight * (1 - lr)
    if name == "adam":  # the same, for each weight by itself
        return weight - lr * weight.sign()
    return weight * (1 - lr * 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_alike(name: str) -> None:
    print("seed 0")
    model = two_layers(name)
    optimizer = tfo.build_optimizer(model, name, **SETTINGS[name])
    train(model, optimizer, range(2))
    pair = copy.deepcopy((model, optimizer))
    if "bitsandbytes" in str(type(optimizer).__mro__):  # whose copies are broken, as of 0.50.2
        with pytest.raises(AttributeError, match="initialized"):
            pair[1].step()
        return
    for copied in ((model, optimizer), pair):
        train(*copied, range(2, 4))
    for found, expected in zip(pair[0].parameters(), model.parameters(), strict=True):
        assert found.equal(expected)
