"""Monitors of `monitors()` end no training; those with a name refuse what they cannot watch."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    FNetConfig,
    FNetForMaskedLM,
    Trainer,
    XLMConfig,
    XLMWithLMHeadModel,
)

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, num_hooks, trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments


def xlm() -> Any:
    """Its layers are no modules."""
    return XLMWithLMHeadModel(XLMConfig(vocab_size=97, emb_dim=32, n_layers=2, n_heads=2))


def fnet() -> Any:
    """It has no attention."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    return FNetForMaskedLM(FNetConfig(vocab_size=97, **sizes))


class Pictures(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        return {
            "pixel_values": torch.randn(3, 32, 32, generator=generator),
            "labels": torch.tensor(1),
        }


class Words(Rows):
    """Without a mask, which FNet does not take."""

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = super().__getitem__(number)
        return {name: value for name, value in row.items() if name != "attention_mask"}


def switched_off(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text.split()[0] for text in caplog.messages if "is switched off" in text]


@pytest.mark.parametrize(
    ("make", "rows", "off"),
    [(xlm, Rows, ["ActivationMonitor", "AttentionMonitor"]), (fnet, Words, ["AttentionMonitor"])],
)
def test_models_that_are_not_seen_train(
    make: Any, rows: Any, off: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(tmp_path, max_steps=3)
    for _ in range(2):  # the second training warns again, and is not ended either
        caplog.clear()
        trainer = Trainer(make(), args, train_dataset=rows(16))
        tfo.attach(trainer, callbacks=tfo.monitors())
        trainer.train()
        assert switched_off(caplog) == off
        assert trainer.state.global_step == 3
        assert "grad_norm/head" in history_of(trainer)[-1]


def test_what_only_a_step_can_tell_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of a monitor with a name: that a model of pictures has no attention."""
    config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, num_labels=3)
    model = ConvNextForImageClassification(config)
    args = arguments(tmp_path, max_steps=3, per_device_train_batch_size=2)
    trainer = Trainer(model, args, train_dataset=Pictures())
    before = num_hooks(model)
    tfo.attach(trainer, callbacks=[*tfo.monitors(every=1), tfo.AttentionMonitor(every=1)])
    trainer.train()
    assert switched_off(caplog) == ["AttentionMonitor", "AttentionMonitor"]
    assert trainer.state.global_step == 3 and num_hooks(model) == before
    assert any(name.startswith("activation_mean/") for name in history_of(trainer)[-1])


# torch's own, made while it compiles
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    trainer = trainer_with(tmp_path, tfo.monitors(), **options)
    trainer.train()
    assert switched_off(caplog) == ["ActivationMonitor"]
    with pytest.raises(ValueError, match="torch_compile"):
        trainer_with(tmp_path, [tfo.ActivationMonitor()], **options).train()


def test_deepspeed_switches_those_of_gradients_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_with(tmp_path, [])
    trainer.args.deepspeed_plugin = object()
    given = (trainer.args, trainer.state, trainer.control)
    for monitor in tfo.monitors(every=1):
        monitor.on_train_begin(*given)
        monitor.on_epoch_begin(*given, model=trainer.model)
        monitor.on_step_begin(*given, model=trainer.model)
        monitor.on_pre_optimizer_step(*given, model=trainer.model, optimizer=None)
        monitor.release()
    assert switched_off(caplog) == ["GradientMonitor", "GradientFlow"]


def test_nothing_of_a_model_is_held_after_training(tmp_path: Path) -> None:
    monitors = [*tfo.monitors(every=1), tfo.NoiseScale(every=1)]
    trainer = trainer_with(tmp_path, monitors, model=tiny("bert"))
    trainer.train()
    model = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert model() is None
