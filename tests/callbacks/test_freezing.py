"""Blocks are trained from the head down, each from its own step on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import hf_tfopt as tfo
from hf_tfopt.callbacks import freezing
from hf_tfopt.callbacks.blocks import by_block
from hf_tfopt.callbacks.freezing import num_trained_blocks
from tests.callbacks.runs import history_of, num_hooks, trainer_with, weights_of
from tests.models import tiny

BLOCKS = ["head", "encoder.1", "encoder.0", "embeddings"]


class Moved(TrainerCallback):
    """The blocks whose weights each step has changed."""

    def __init__(self) -> None:
        self.blocks: list[list[str]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.groups = by_block(model)
        self.before = [p.detach().clone() for p in self.groups.parameters]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now = [p.detach().clone() for p in self.groups.parameters]
        moved = {
            self.groups.names[member]
            for member, old, new in zip(self.groups.members, self.before, now, strict=True)
            if not torch.equal(old, new)
        }
        self.blocks.append([name for name in BLOCKS if name in moved])
        self.before = now


def test_the_number_of_blocks() -> None:
    found = [num_trained_blocks(step, 2, 10, 4) for step in range(10)]
    assert found == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [num_trained_blocks(step, 0.2, 10, 4) for step in range(10)] == found
    assert num_trained_blocks(0, 0.001, 10, 4) == 1


@pytest.mark.parametrize("is_awaited", [False, True])
@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "muon"])
def test_what_is_frozen_stays_with_weight_decay_too(
    name: str, is_awaited: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(freezing, "_are_gradients_awaited", lambda training: is_awaited)
    trainer = trainer_with(tmp_path, [tfo.GradualUnfreezing(every=1)])
    trainer.optimizer_cls_and_kwargs = tfo.optimizer(name, lr=1e-2, weight_decay=0.5)
    moved = Moved()
    trainer.add_callback(moved)
    before = num_hooks(trainer.model)
    trainer.train()
    assert moved.blocks == [BLOCKS[: number + 1] for number in range(4)]
    assert [entry["num_trained_blocks"] for entry in history_of(trainer)] == [1, 2, 3, 4]
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert num_hooks(trainer.model) == before


def test_both_ways_are_the_same_training(tmp_path: Path, monkeypatch: Any) -> None:
    """The norm that clips, too: a frozen parameter's gradient counts as 0."""
    found = []
    for is_awaited in (False, True):
        monkeypatch.setattr(freezing, "_are_gradients_awaited", lambda t, a=is_awaited: a)
        trainer = trainer_with(
            tmp_path, [tfo.GradualUnfreezing(every=0.5)], max_grad_norm=0.1, lr=1e-2
        )
        trainer.train()
        norms = [entry["grad_norm"] for entry in history_of(trainer)]
        found.append((weights_of(trainer.model), norms))
    # fp32 sums with and without zeros
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


def test_by_default_all_are_trained_in_the_second_half(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.GradualUnfreezing()], max_steps=12)
    trainer.train()
    numbers = [entry["num_trained_blocks"] for entry in history_of(trainer)]
    assert numbers == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]


def test_what_was_frozen_before_stays_frozen(tmp_path: Path) -> None:
    model = tiny("bert")
    tfo.freeze(model, ["encoder.0"])
    trainer, moved = trainer_with(tmp_path, [tfo.GradualUnfreezing(every=1)], model=model), Moved()
    trainer.add_callback(moved)
    trainer.train()
    assert moved.blocks[-1] == ["head", "encoder.1", "embeddings"]
    assert not any(p.requires_grad for p in model.bert.encoder.layer[0].parameters())


def test_what_the_optimizer_holds_and_the_user_froze_stays_frozen(tmp_path: Path) -> None:
    model = tiny("bert")
    model.bert.encoder.layer[0].requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    trainer, moved = trainer_with(tmp_path, [tfo.GradualUnfreezing(every=1)], model=model), Moved()
    trainer.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer.add_callback(moved)
    trainer.train()
    assert moved.blocks[-1] == ["head", "encoder.1", "embeddings"]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("how", ["tfopt", "attach"])
@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_training_that_was_broken_off_leaves_nothing_frozen(
    is_awaited: bool, how: str, tmp_path: Path, monkeypatch: Any
) -> None:
    class Breaks(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(freezing, "_are_gradients_awaited", lambda training: is_awaited)
    trainer = trainer_with(tmp_path, [tfo.GradualUnfreezing(every=1)], how)
    before = num_hooks(trainer.model)
    trainer.add_callback(Breaks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert num_hooks(trainer.model) == before


@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_training_that_begins_again_within_train_is_as_the_first(
    is_awaited: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """Out of memory with `auto_find_batch_size`: the host calls its loop anew."""

    class Fails(TrainerCallback):
        has_failed = False

        def on_substep_end(self, args, state, control, **kwargs) -> None:
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(freezing, "_are_gradients_awaited", lambda training: is_awaited)
    trainer = trainer_with(tmp_path, [tfo.GradualUnfreezing(every=1)], auto_find_batch_size=True)
    # without weight decay: what a hook that was left behind sets to 0 does not move
    trainer.optimizer_cls_and_kwargs = tfo.optimizer("adamw", lr=1e-2, weight_decay=0.0)
    fails, moved = Fails(), Moved()
    trainer.callback_handler.callbacks += [fails, moved]
    trainer.train()
    assert fails.has_failed
    assert moved.blocks[-4:] == [BLOCKS[: number + 1] for number in range(4)]


def test_adapters_are_unfrozen_layer_by_layer(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("bert"), peft.LoraConfig(r=2, target_modules=["query"]))
    trainer, moved = trainer_with(tmp_path, [tfo.GradualUnfreezing(every=1)], model=model), Moved()
    trainer.add_callback(moved)
    trainer.train()
    assert moved.blocks == [["encoder.1"]] + [["encoder.1", "encoder.0"]] * 3


def test_a_run_too_short_is_warned_of(tmp_path: Path, caplog: Any) -> None:
    trainer_with(tmp_path, [tfo.GradualUnfreezing(every=2)]).train()
    assert "2 of 4 blocks will not be trained in 4 steps" in caplog.text


@pytest.mark.parametrize("every", [0, -1, float("nan")])
def test_options_out_of_range(every: float) -> None:
    with pytest.raises(ValueError, match="every"):
        tfo.GradualUnfreezing(every=every)
