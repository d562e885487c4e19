"""The estimate before a run against what the run then takes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import hf_tfopt as tfo
from hf_tfopt.callbacks.memory_estimate import LiveBytes
from hf_tfopt.callbacks.tensor_bytes import MIB, num_bytes, state_of
from tests.callbacks.runs import trainer_with
from tests.callbacks.test_memory import logged
from tests.models import SIZES, batch_for, tiny

MODELS = ("bert", "gpt2", "t5", "modernbert")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_it_is_what_a_real_step_takes(name: str, is_checkpointed: bool) -> None:
    """Followed in the same way, on tensors that are there."""
    model = tiny(name).train()
    batch = batch_for(model, 4)
    found = tfo.estimate_memory(model, batch, "lion", activation_checkpointing=is_checkpointed)
    if is_checkpointed:
        model.activation_checkpointing_enable()
    optimizer = tfo.build_optimizer(model, "lion", 1e-3)
    held = [*model.parameters(), *model.buffers(), *batch.values()]
    with LiveBytes(held) as live:
        loss = model(**batch).loss
        activations = live.now
        loss.backward()
        peak = live.peak
    optimizer.step()
    # the real masks may be left out where nothing is padded, and some kernels save a little less
    assert found.activations == pytest.approx(activations / MIB, rel=0.05)
    assert found.gradients == num_bytes(p.grad for p in model.parameters()) / MIB
    assert found.optimizer == num_bytes(state_of(optimizer)) / MIB
    state = num_bytes(state_of(optimizer))
    # for a moment the estimate's update holds tensors that the CPU's compiled one does not make
    assert 0.95 <= found.peak / ((num_bytes(held) + state + peak) / MIB) < 1.25


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_what_the_monitor_measures(precision: str, tmp_path: Path) -> None:
    model = tiny("bert")
    options = {"gradient_accumulation_steps": 1, "bf16": precision == "bf16"}
    trainer = trainer_with(tmp_path, [tfo.MemoryMonitor(every=1)], "attach", model, **options)
    rows = [trainer.train_dataset[number] for number in range(4)]
    batch = trainer.data_collator(rows)
    estimate = tfo.estimate_memory(model, batch, precision=precision)
    trainer.train()
    found = logged(trainer)
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(estimate, name) == pytest.approx(found[name], rel=1e-6), name
    # the attached loss reads the labelled rows alone; the model's own all of them
    assert estimate.activations == pytest.approx(found["activations"], rel=0.1)


@pytest.mark.parametrize("name", [n for n in tfo.OPTIMIZERS if "4bit" not in n and "ao" not in n])
def test_the_state_of_every_optimizer(name: str) -> None:
    """On weights of all kinds: tables, large and odd matrices, vectors."""
    model = BertForSequenceClassification(
        BertConfig(**{**SIZES, "vocab_size": 300, "hidden_size": 66, "num_labels": 3})
    )
    estimate = tfo.estimate_memory(model, (2, 8), name)
    optimizer = tfo.build_optimizer(model, name, 1e-3)
    if hasattr(optimizer, "train"):
        optimizer.train()
    ids = torch.ones(2, 8, dtype=torch.long)
    model(input_ids=ids, labels=ids[:, 0]).loss.backward()
    optimizer.step()
    assert estimate.optimizer * MIB == num_bytes(state_of(optimizer))


def test_a_model_larger_than_any_memory() -> None:
    """A model of 70 billion weights in few layers, of which nothing is ever made."""
    config = LlamaConfig(
        hidden_size=65536,
        intermediate_size=65536,
        num_hidden_layers=2,
        num_attention_heads=64,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    found = tfo.estimate_memory(model, (1, 128))
    assert found.parameters > 250_000
    assert found.optimizer == pytest.approx(2 * found.gradients, rel=1e-6)
    assert all(p.is_meta for p in model.parameters())


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = tiny("bert").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    tfo.estimate_memory(model, (2, 8), activation_checkpointing=True)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training and not model.is_gradient_checkpointing
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_more_rows_and_less_precision_and_checkpoints() -> None:
    model = tiny("bert")
    whole = tfo.estimate_memory(model, (8, 16))
    assert tfo.estimate_memory(model, (4, 16)).activations < 0.6 * whole.activations
    assert tfo.estimate_memory(model, (8, 16), precision="bf16").activations < whole.activations
    less = tfo.estimate_memory(model, (8, 16), activation_checkpointing=True)
    assert less.activations < whole.activations
    assert less.parameters == whole.parameters
    text = str(whole)
    assert all(name in text for name in asdict(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "b16"}, "precision is 'b16'.*bf16"),
        ({"batch": (0, 8)}, r"batch is \(0, 8\)"),
        ({"batch": (8,)}, r"batch is \(8,\)"),
        ({"batch": {"input_ids": torch.ones(1, 2, dtype=torch.long)}}, "no loss"),
        ({"optimizer": "adamx"}, "adamx"),
        ({"betaz": 1}, "betas"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], message: str) -> None:
    given = {"model": tiny("bert"), "batch": (2, 8), **change}
    with pytest.raises(ValueError, match=message):
        tfo.estimate_memory(**given)


def test_a_model_without_labels_asks_for_a_batch() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES)).bert
    with pytest.raises(ValueError, match="BertModel takes no labels"):
        tfo.estimate_memory(model, (2, 8))
