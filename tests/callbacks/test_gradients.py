import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Callback, Intervention
from hf_tfopt.callbacks.blocks import Groups
from hf_tfopt.callbacks.gradients import by_block_and_role, by_name
from hf_tfopt.callbacks.readings import NORM_BEFORE_CLIPPING
from hf_tfopt.callbacks.training import Training
from tests.callbacks.runs import history_of, trainer_with
from tests.invariants.splits import Rows
from tests.models import TINY, tiny
from tests.references.gradients import block_of, gradients_of, norms_by, role_of
from tests.test_trainer import arguments

# fp32 sums of some 1e4 squares in another order, and once through the clipping's factor
SUMS = 1e-5


class Spy(Callback):
    """Keeps the gradients of every step as callbacks see them."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[dict[str, torch.Tensor]] = []

    def gradients(self, training: Training) -> None:
        self._seen.append(gradients_of(training.model))


class Change(Intervention):
    """Does something to every gradient."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def gradients(self, training: Training) -> None:
        for parameter in training.model.parameters():
            if self.how == "halve":
                parameter.grad.mul_(0.5)
            elif self.how == "replace":
                parameter.grad = parameter.grad * 0.25
            else:
                parameter.grad = None


def logged(trainer: Trainer, prefix: str, number: int = 0) -> dict[str, float]:
    entry = history_of(trainer)[number]
    return {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}


def measured(trainer: Trainer) -> list[dict[str, Any]]:
    """Without the host's loss and perplexity, of which a stop between two logs loses a part."""
    lost = ("loss", "perplexity")
    return [{k: v for k, v in entry.items() if k not in lost} for entry in history_of(trainer)]


@pytest.mark.parametrize("name", TINY)
def test_one_pass_gives_blocks_and_roles(name: str) -> None:
    model = tiny(name)
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    groups, gradients = by_block_and_role(model), gradients_of(model)
    norms = groups.norms(groups.gradients()).tolist()
    found = by_name(dict(zip(groups.names, norms, strict=True)), 2.0)
    for prefix, group_of in (("grad_norm/", block_of), ("grad_norm_role/", role_of)):
        expected = norms_by(group_of(model), gradients)
        ours = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        assert ours == pytest.approx({k: 2 * v for k, v in expected.items()}, rel=SUMS)


@pytest.mark.parametrize(
    ("how", "bound"),
    [("tfopt", 0.0), ("tfopt", 0.05), ("attach", 0.05), ("stock", 0.05), ("stock", 100.0)],
)
def test_norms_are_those_before_clipping(how: str, bound: float, tmp_path: Path) -> None:
    spy, model = Spy(), tiny("bert")
    exact = trainer_with(tmp_path, [spy], "attach", max_grad_norm=0.0)
    exact.train()
    monitor = tfo.GradientMonitor()
    if how == "stock":
        args = exact.args
        args.max_grad_norm = bound
        given = {"train_dataset": Rows(32), "compute_loss_func": exact.compute_loss_func}
        trainer = Trainer(model, args, callbacks=[monitor], **given)
    else:
        trainer = trainer_with(tmp_path, [monitor], how, max_grad_norm=bound)
    trainer.train()
    expected = norms_by(block_of(model), spy._seen[0])
    assert logged(trainer, "grad_norm/") == pytest.approx(expected, rel=SUMS)
    of_roles = norms_by(role_of(model), spy._seen[0])
    assert logged(trainer, "grad_norm_role/") == pytest.approx(of_roles, rel=SUMS)
    entry = history_of(trainer)[0]
    total = math.hypot(*expected.values())
    assert entry["grad_norm_after"] == pytest.approx(min(total, bound or math.inf), rel=SUMS)
    assert entry["clip_share"] == float(0 < bound < total)


@pytest.mark.parametrize(("how", "factor"), [("halve", 0.5), ("replace", 0.25), ("drop", 0.0)])
def test_what_the_optimizer_got_is_after_interventions(
    how: str, factor: float, tmp_path: Path
) -> None:
    trainer = trainer_with(tmp_path, [Change(how), tfo.GradientMonitor()], max_grad_norm=0.1)
    trainer.train()
    entry = history_of(trainer)[0]
    assert entry["grad_norm_after"] == pytest.approx(0.1 * factor, rel=SUMS)
    blocks = logged(trainer, "grad_norm/").values()
    assert math.hypot(*blocks) == pytest.approx(entry["grad_norm"], rel=SUMS)


@pytest.mark.parametrize(("interventions", "times"), [([], 1), ([Change("halve")], 2)])
def test_gradients_are_read_again_only_if_they_changed(
    interventions: list[Any], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    norms = Groups.norms
    monkeypatch.setattr(Groups, "norms", lambda *given: calls.append(0) or norms(*given))
    trainer = trainer_with(tmp_path, [tfo.GradientMonitor(every=2), *interventions])
    trainer.train()
    assert len(calls) == 2 * times


def test_the_share_of_clipped_steps_is_since_the_last_log(tmp_path: Path) -> None:
    options = {"max_grad_norm": 1.44, "max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    every = trainer_with(tmp_path, [tfo.GradientMonitor(every=1)], **options)
    every.train()
    clipped = [entry["clip_share"] for entry in history_of(every)]
    assert clipped == [float(entry["grad_norm"] > 1.44) for entry in history_of(every)]
    assert 0 < sum(clipped) < 8
    trainer = trainer_with(
        tmp_path / "four", [tfo.GradientMonitor(every=1)], **options, logging_steps=4
    )
    trainer.train()
    shares = [entry["clip_share"] for entry in history_of(trainer)]
    assert shares == [sum(clipped[:4]) / 4, sum(clipped[4:]) / 4]
    again = trainer_with(
        tmp_path / "again", [tfo.GradientMonitor(every=1)], **options, logging_steps=4
    )
    again.train(resume_from_checkpoint=str(tmp_path / "four" / "checkpoint-2"))
    assert measured(again) == measured(trainer)


def test_steps_that_are_not_logged_are_exact_too_unless_the_trainer_is_stock(
    tmp_path: Path,
) -> None:
    options = {"max_grad_norm": 0.05, "max_steps": 6}
    every = trainer_with(tmp_path, [tfo.GradientMonitor(every=1)], **options)
    every.train()
    third = trainer_with(tmp_path, [tfo.GradientMonitor(every=2)], **options, logging_steps=3)
    third.train()
    assert logged(third, "grad_norm/", 0) == logged(every, "grad_norm/", 1)
    assert logged(third, "grad_norm/", 1) == logged(every, "grad_norm/", 5)
    args = arguments(tmp_path, **options, logging_steps=3)
    stock = Trainer(
        tiny("bert"), args, train_dataset=Rows(32), callbacks=[tfo.GradientMonitor(every=2)]
    )
    stock.train()
    assert logged(stock, "grad_norm/", 0) == {} and logged(stock, "grad_norm/", 1) != {}
    assert history_of(stock)[0]["clip_share"] == 1.0


def test_numbers_of_a_step_that_is_saved_before_it_is_logged_survive(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
    whole = trainer_with(tmp_path, [tfo.GradientMonitor(every=2)], **options)
    whole.train()
    again = trainer_with(tmp_path / "again", [tfo.GradientMonitor(every=2)], **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(again, "grad_norm/", 0) and measured(again) == measured(whole)


class Unfreeze(Intervention):
    """The head alone in the first two steps."""

    def before_step(self, training: Training) -> None:
        for name, parameter in training.model.named_parameters():
            has_begun = training.state.global_step >= 2
            parameter.requires_grad_(has_begun or name.startswith("cls"))


def test_blocks_that_are_trained_later_are_measured_later(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.GradientMonitor(every=1), Unfreeze()])
    trainer.train()
    assert {*logged(trainer, "grad_norm/", 1)} == {"head"}
    assert {*logged(trainer, "grad_norm/", 2)} == {"embeddings", "encoder.0", "encoder.1", "head"}


def test_adapters_are_measured_by_the_block_they_are_in(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value"], r=2)
    model = peft.get_peft_model(tiny("bert"), config)
    trainer = trainer_with(tmp_path, [tfo.GradientMonitor(every=1)], "attach", model)
    trainer.train()
    found = logged(trainer, "grad_norm/", 3)
    assert {*found} == {"encoder.0", "encoder.1"}
    assert {*logged(trainer, "grad_norm_role/", 3)} == {"attention"}
    assert math.hypot(*found.values()) == pytest.approx(history_of(trainer)[3]["grad_norm"], SUMS)


def test_scaled_losses_and_half_precision(tmp_path: Path) -> None:
    """Under fp16's scaler the norms are of unscaled gradients; with bf16 weights they are near."""
    low, options = tiny("bert").bfloat16(), {"max_grad_norm": 0.05, "how": "attach"}
    found = []
    for choice in ({}, {"model": low}, {"fp16": True}):
        trainer = trainer_with(tmp_path, [tfo.GradientMonitor()], **options, **choice)
        if "fp16" in choice:  # accelerate has no scaler on a CPU
            trainer.accelerator.native_amp = True
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        trainer.train()
        found.append(logged(trainer, "grad_norm/"))
    # 8 bits of bf16 and 11 of fp16, in each of many products whose errors partly cancel
    assert found[1] == pytest.approx(found[0], rel=0.05)
    assert found[2] == pytest.approx(found[0], rel=0.01)


def test_gradients_that_are_no_numbers_are_told_as_such(tmp_path: Path) -> None:
    class Poison(Intervention):
        def gradients(self, training: Training) -> None:
            next(training.model.parameters()).grad[0] = math.nan

    trainer = trainer_with(tmp_path, [tfo.GradientMonitor(), Poison()], max_steps=2)
    trainer.train()
    entries = history_of(trainer)
    assert entries[0]["grad_norm_after"] == "nan" and entries[0]["clip_share"] == 1.0
    assert entries[1]["grad_norm/head"] == "nan"


def test_the_host_still_tells_the_norm_before_clipping(tmp_path: Path) -> None:
    """A method of the host's that no promise covers: it is called once in a step, in every step."""
    monitor, heard = tfo.GradientMonitor(every=1), []
    trainer = trainer_with(tmp_path, [monitor], max_grad_norm=0.05)
    hear = monitor._hear
    monitor._hear = lambda norm: heard.append(float(norm)) or hear(norm)
    trainer.train()
    assert heard == [entry["grad_norm"] for entry in history_of(trainer)]
    assert min(heard) > 0.05
    assert NORM_BEFORE_CLIPPING not in vars(trainer)


HALVING: dict[str, Callable[[Any], Any]] = {
    "whole": lambda gradient: gradient.mul_(0.5),
    "shard": lambda gradient: gradient.to_local().mul_(0.5),
    "list": lambda gradient: torch._foreach_mul_([gradient], 0.5),
}


@pytest.mark.parametrize("how", HALVING)
@pytest.mark.parametrize("is_sharded", [False, True])
def test_what_the_optimizer_got_of_sharded_gradients(how: str, is_sharded: bool) -> None:
    """DTensors of one process: not everything that is written to them is counted."""
    if not is_sharded and how == "shard":
        pytest.skip("it has none")
    model, given = tiny("bert"), TrainingArguments(max_grad_norm=0.0, use_cpu=True)
    monitor = tfo.GradientMonitor(every=1)
    training = Training(given, TrainerState(), TrainerControl(), model=model)
    with one_process() as mesh:
        if is_sharded:
            fully_shard(model, mesh=mesh)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        monitor.begin(training)
        monitor.before_step(training)
        monitor.gradients(training)
        for parameter in model.parameters():
            HALVING[how](parameter.grad)
        monitor.updated(training)
        monitor.stepped(training)
        found = monitor.scalars(training)
    total = 0.01 * sum(parameter.numel() for parameter in model.parameters()) ** 0.5
    assert found["grad_norm_after"] == pytest.approx(0.5 * total, rel=SUMS)
    norms = [value for name, value in found.items() if name.startswith("grad_norm/")]
    assert math.hypot(*norms) == pytest.approx(total, rel=SUMS)


@contextmanager
def one_process() -> Generator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()
