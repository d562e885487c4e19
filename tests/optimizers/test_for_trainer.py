from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_optimizer import is_optimizer_factory

import hf_tfopt as tfo
from hf_tfopt.optimizers.muon import Muon

VOCABULARY = 40
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 5e-3, "weight_decay": 0.01},
    "muon": {"lr": 2e-2, "adamw_lr": 5e-3, "weight_decay": 0.01, "betas": [0.9, 0.98]},
}


class Counting(Dataset):
    """Rows that count upwards, so that every masked token follows from its neighbours."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(8) + index) % (VOCABULARY - 1) + 1
        labels = torch.full((8,), -100)
        labels[index % 8] = ids[index % 8]
        return {"input_ids": ids.where(labels == -100, 0), "labels": labels}


def model() -> nn.Module:
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=8,
        )
    )


class GroupRates(TrainerCallback):
    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def trainer(folder: Path, name: str, **arguments: Any) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 30,
        "per_device_train_batch_size": 16,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 123.0,  # not read: the optimizer has its own
    }
    return Trainer(
        model(),
        TrainingArguments(**{**settings, **arguments}),
        train_dataset=Counting(),
        optimizer_cls_and_kwargs=tfo.optimizer(name, **OPTIONS[name]),
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_the_stock_trainer_trains_with_it(name, tmp_path) -> None:
    run = trainer(tmp_path, name, lr_scheduler_type="linear", max_steps=40)
    rates = GroupRates()
    run.add_callback(rates)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[0] > 3  # about ln 40
    assert losses[-1] < losses[0] - 0.5
    first = [group["initial_lr"] for group in run.optimizer.param_groups]
    for step, found in enumerate(rates.rates, start=1):
        assert found == pytest.approx([lr * (1 - step / 40) for lr in first])


def test_groups_under_the_trainer(tmp_path) -> None:
    run = trainer(tmp_path, "muon")
    optimizer = run.create_optimizer()
    assert isinstance(optimizer, Muon)
    found = {group["name"]: (group["use_muon"], group["lr"]) for group in optimizer.param_groups}
    assert found == {
        "matrices": (True, 2e-2),
        "embeddings": (False, pytest.approx(5e-3)),
        "vectors": (False, pytest.approx(5e-3)),
    }
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.98)}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_trainer_goes_on_bit_for_bit(name, tmp_path) -> None:
    whole = trainer(tmp_path / "whole", name, max_steps=6)
    whole.train()
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "cut", name, **arguments).train()
    resumed = trainer(tmp_path / "cut", name, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(a.equal(b) for a, b in pairs)


@pytest.mark.parametrize("name", OPTIONS)
def test_is_a_factory_that_brings_its_lr(name) -> None:
    factory, arguments = tfo.optimizer(name, **OPTIONS[name])
    assert is_optimizer_factory(factory)
    assert arguments["lr"] == OPTIONS[name]["lr"]


def test_build_optimizer_gives_the_optimizer_itself() -> None:
    assert isinstance(tfo.build_optimizer(model(), "adamw", lr=1e-3), torch.optim.AdamW)
    assert isinstance(tfo.build_optimizer(model(), "muon", lr=1e-3), Muon)


def test_options_reach_the_groups_and_the_optimizer() -> None:
    optimizer = tfo.build_optimizer(
        model(), "adamw", lr=1e-3, weight_decay=0.2, decay_embeddings=False, eps=1e-5
    )
    decay = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decay == {"matrices": 0.2, "embeddings": 0.0, "vectors": 0.0}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-5}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("adamww", {}, ValueError, "unknown optimizer 'adamww' .did you mean 'adamw'"),
        ("muon", {"momentun": 0.9}, TypeError, "no option 'momentun' .did you mean 'momentum'"),
        ("muon", {"wieght_decay": 0.9}, TypeError, "did you mean 'weight_decay'"),
        ("adamw", {"decay_embedings": True}, TypeError, "did you mean 'decay_embeddings'"),
        ("adamw", {"adamw_lr": 1e-3}, TypeError, "optimizer 'adamw' has no option 'adamw_lr'"),
        ("adamw", {"params": []}, TypeError, "no option 'params'"),
        ("adamw", {"lr": 0}, ValueError, "lr must be a number above 0, got 0"),
        ("adamw", {"lr": "1e-3"}, ValueError, "lr must be .* got the text '1e-3'"),
        ("adamw", {"weight_decay": -1}, ValueError, "weight_decay must be"),
        ("adamw", {"betas": (0.9, 1.5)}, ValueError, r"betas\[1\] must be"),
        ("muon", {"momentum": 1.5}, ValueError, "momentum must be"),
        ("muon", {"scale": "orginal"}, ValueError, "did you mean 'original'"),
    ],
)
def test_mistakes_are_refused_before_there_is_a_model(name, options, error, words) -> None:
    with pytest.raises(error, match=words):
        tfo.optimizer(name, **{"lr": 1e-3, **options})


def test_what_depends_on_the_model_waits_for_it(tmp_path: Path) -> None:
    """Layers and names are looked for when training starts; their numbers at once."""
    description = tfo.optimizer("lamb", lr=2e-3, layer_decay=0.9, multipliers={r"predictions": 2.0})
    run = Trainer(
        model(),
        TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True),
        train_dataset=Counting(),
        optimizer_cls_and_kwargs=description,
    )
    run.train()
    rates = {group["initial_lr"] for group in run.optimizer.param_groups}
    assert rates == {2e-3 * 2.0, *(2e-3 * 0.9**distance for distance in (0, 1, 2))} - {2e-3}
    with pytest.raises(ValueError, match="layer_decay must be above 0 and at most 1"):
        tfo.optimizer("lamb", lr=2e-3, layer_decay=1.5)
    with pytest.raises(ValueError, match="is no regular expression"):
        tfo.optimizer("lamb", lr=2e-3, multipliers={"layer[": 2.0})
    with pytest.raises(ValueError, match=r"multipliers\['head'\] must be a number above 0"):
        tfo.optimizer("lamb", lr=2e-3, multipliers={"head": -1})
