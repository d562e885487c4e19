"""What memory holds, measured on a CPU and by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.callbacks.memory import SavedBytes, peak_bytes
from hf_tfopt.callbacks.tensor_bytes import MIB, num_bytes, state_of
from tests.callbacks.runs import trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments


def logged(trainer: Trainer) -> dict[str, float]:
    """Of the last log of training."""
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    return {name[7:]: value for name, value in last.items() if name.startswith("memory/")}


def test_parameters_gradients_and_state_are_what_the_tensors_take(tmp_path: Path) -> None:
    model = tiny("bert")
    trainer = trainer_with(tmp_path, [tfo.MemoryMonitor(every=1)], model=model)
    trainer.train()
    found = logged(trainer)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())  # the tied head once
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    num_tensors = len(list(model.parameters()))
    assert found["parameters"] == pytest.approx((weights + buffers) / MIB)
    assert found["gradients"] == pytest.approx(weights / MIB)
    # two averages of each weight, and a count of steps in four bytes for each tensor
    assert found["optimizer"] == pytest.approx((2 * weights + 4 * num_tensors) / MIB)
    assert found["peak"] > found["parameters"]


def test_frozen_weights_have_neither_gradients_nor_state(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["query"])
    model: Any = get_peft_model(tiny("bert"), config)
    trainer = trainer_with(tmp_path, [tfo.MemoryMonitor(every=1)], model=model)
    trainer.train()
    found = logged(trainer)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found["gradients"] == pytest.approx(trained / MIB)
    assert 2 * found["gradients"] <= found["optimizer"] < 2.1 * found["gradients"]
    assert found["parameters"] > 10 * found["gradients"]


def test_activations_are_those_of_one_micro_batch(tmp_path: Path) -> None:
    """As large with two micro-batches as with one of their size; half with half of the rows."""
    sizes = {}
    for rows, accumulation in ((4, 2), (4, 1), (2, 1)):
        options = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulation,
        }
        trainer = trainer_with(tmp_path, [tfo.MemoryMonitor(every=1)], "attach", **options)
        trainer.train()
        sizes[rows, accumulation] = logged(trainer)["activations"]
    # a batch's labelled tokens, whose number differs, are what its loss saves
    assert sizes[4, 2] == pytest.approx(sizes[4, 1], rel=0.05)
    # what does not grow with the rows (a mask, indices) is small beside what does
    assert sizes[2, 1] == pytest.approx(sizes[4, 1] / 2, rel=0.05)


def test_saved_bytes_counts_each_storage_once_and_no_parameter() -> None:
    layer = nn.Linear(8, 16, bias=False)
    given = torch.randn(4, 8, requires_grad=True)
    saved = SavedBytes(layer)
    with saved:
        hidden = layer(given)  # saves its input; and its weight, which does not count
        (hidden * hidden).sum()  # saves itself, twice
    assert saved.num_bytes() == 4 * (4 * 8 + 4 * 16)
    saved.restart()
    assert saved.num_bytes() == 0


def test_steps_between_are_not_measured(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.MemoryMonitor(every=2)])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["memory/activations" in entry for entry in logs] == [False, True, False, True]
    assert all("memory/peak" in entry for entry in logs)


def test_a_stock_trainer_has_all_but_activations(tmp_path: Path) -> None:
    monitor = tfo.MemoryMonitor(every=1)
    trainer = Trainer(
        tiny("bert"), arguments(tmp_path), train_dataset=Rows(12), callbacks=[monitor]
    )
    trainer.train()
    assert logged(trainer).keys() == {"parameters", "gradients", "optimizer", "peak"}


def test_a_failed_training_leaves_no_hook_behind(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.MemoryMonitor(every=1)])

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = trainer.model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    handle.remove()
    weight = torch.ones(2, requires_grad=True)
    assert (weight * weight).grad_fn._raw_saved_self is not None  # no hook of ours packs it
    trainer.train()
    assert logged(trainer)["activations"] > 0
    assert "training_step" not in vars(trainer)
    assert "backward" not in vars(trainer.accelerator)


def test_states_of_every_shape_are_found() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    optimizer = torch.optim.LBFGS([weight])  # with lists of tensors in its state

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert num_bytes(state_of(optimizer)) >= 2 * 16 * 4


def test_a_tensor_given_twice_counts_once() -> None:
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    assert num_bytes([tensor, tensor]) == 6


def test_the_peak_of_a_process_grows_with_what_it_holds() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(64 * 2**20 // 4)
    after = peak_bytes(torch.device("cpu"))
    assert before is not None and after is not None
    assert after >= before > 50 * MIB
    del held
