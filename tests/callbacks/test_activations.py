import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import XLMConfig, XLMWithLMHeadModel

import hf_tfopt as tfo
from hf_tfopt.callbacks.layer_modules import layer_modules
from tests.callbacks.runs import history_of, trainer_with, weights_of
from tests.models import TINY, batch_for, tiny
from tests.references.activations import naive_moments, padded_batch, read_by_decoder

WHAT = ("mean", "std", "absmax", "kurtosis", "zeros")


class Padded(Dataset[dict[str, torch.Tensor]]):
    """Rows of 12 with padding at their ends."""

    def __init__(self, num_rows: int):
        lengths = [12 - row % 5 for row in range(num_rows)]
        self._batch = padded_batch(batch_for(None, num_rows), lengths)

    def __len__(self) -> int:
        return len(self._batch["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self._batch.items()}


def sums_by_hand(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of a whole batch at once, from the model's own `output_hidden_states`."""
    with torch.no_grad():
        outputs = model.train()(**batch, output_hidden_states=True, use_cache=False)
    is_token = batch["attention_mask"].bool()
    found: dict[str, list[torch.Tensor]] = {}
    if model.config.is_encoder_decoder:
        stacks = {
            "encoder": outputs.encoder_hidden_states,
            "decoder": outputs.decoder_hidden_states,
        }
    else:
        part = next(iter(layer_modules(model))).split(".")[0]
        stacks = {part: outputs.hidden_states}
    for part, states in stacks.items():
        own = (
            read_by_decoder(is_token)
            if model.config.is_encoder_decoder and part == "decoder"
            else is_token
        )
        found.setdefault("embeddings", []).append(states[0][own])
        for number, each in enumerate(states[1:]):
            found[f"{part}.{number}"] = [each[own]]
    return {
        f"activation_{name}/{block}": value
        for block, parts in found.items()
        for name, value in naive_moments(torch.cat(parts)).items()
    }


# The last of the host's states is behind a norm of the whole stack here, or the layers are one.
NOT_COMPARED = {
    "t5": ("encoder.0", "decoder.0"),
    "modernbert": ("encoder.1",),
    "gpt2": ("decoder.1",),
    "llama": ("decoder.1",),
    "albert": ("encoder.0", "encoder.1"),
}


@pytest.mark.parametrize("name", TINY)
def test_moments_are_those_of_the_hidden_states(name: str, tmp_path: Path) -> None:
    """Of two micro-batches of four together, padding left out."""
    model, data = tiny(name), Padded(8)
    expected = sums_by_hand(model, {k: data._batch[k] for k in data._batch})
    trainer = trainer_with(tmp_path, [tfo.ActivationMonitor()], model=model, max_steps=1)
    trainer.train_dataset = data
    trainer.train()
    logged = history_of(trainer)[0]
    blocks = {key.partition("/")[2] for key in logged if key.startswith("activation_std/")}
    assert blocks == {"embeddings", *layer_modules(model)}
    compared = [b for b in blocks if b not in NOT_COMPARED.get(name, ())]
    assert "embeddings" in compared
    for block in compared:
        for what in WHAT:
            key = f"activation_{what}/{block}"
            # fp32 sums of 2500 terms
            assert logged[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_counts_once_and_stays_bit_equal(use_reentrant: bool, tmp_path: Path) -> None:
    seen: list[Any] = []
    for is_checkpointed, is_watched in ((False, True), (True, True), (True, False)):
        options: dict[str, Any] = {"activation_checkpointing": is_checkpointed}
        if is_checkpointed:
            options["activation_checkpointing_kwargs"] = {"use_reentrant": use_reentrant}
        calls: list[str] = []

        class Counting(tfo.ActivationMonitor):
            def _add(self, block: str, label: str, states: Any) -> None:
                calls.append(block)  # noqa: B023
                super()._add(block, label, states)

        callbacks = [Counting(every=1)] if is_watched else []
        trainer = trainer_with(tmp_path, callbacks, max_steps=2, **options)
        trainer.train()
        found = [entry.get("activation_kurtosis/encoder.1") for entry in history_of(trainer)]
        seen.append((found, calls, weights_of(trainer.model)))
    assert seen[0][0] == seen[1][0] and seen[0][1] == seen[1][1]
    assert seen[0][1].count("encoder.1") == 4  # two steps of two micro-batches
    assert torch.equal(seen[1][2], seen[2][2])


def test_evaluations_and_probes_do_not_count(tmp_path: Path) -> None:
    found: list[list[float]] = []
    for others in ([], [tfo.AttentionMonitor(every=1)]):
        monitors = [*others, tfo.ActivationMonitor(every=1)]
        trainer = trainer_with(tmp_path, monitors, eval_strategy="steps", eval_steps=1, max_steps=2)
        trainer.train()
        found.append([entry["activation_mean/encoder.0"] for entry in history_of(trainer)])
    assert found[0] == found[1]


def test_only_the_last_measured_step_is_logged(tmp_path: Path) -> None:
    each = trainer_with(tmp_path, [tfo.ActivationMonitor(every=1)])
    each.train()
    rare = trainer_with(tmp_path, [tfo.ActivationMonitor(every=1)], logging_steps=2)
    rare.train()
    key = "activation_absmax/encoder.1"
    assert [e[key] for e in history_of(rare)] == [e[key] for e in history_of(each)][1::2]


def test_what_is_not_finite_shows(tmp_path: Path) -> None:
    model = tiny("bert")
    model.bert.encoder.layer[1].output.LayerNorm.bias.data[0] = math.inf
    trainer = trainer_with(tmp_path, [tfo.ActivationMonitor()], model=model, max_steps=1)
    trainer.train()
    logged = history_of(trainer)[0]
    assert logged["activation_absmax/encoder.1"] == math.inf
    assert math.isfinite(logged["activation_absmax/encoder.0"])


def test_a_failing_forward_pass_leaves_nothing_behind(tmp_path: Path) -> None:
    model = tiny("bert")
    monitor = tfo.ActivationMonitor()
    trainer = trainer_with(tmp_path, [monitor], model=model, max_steps=1)

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    model.bert.encoder.layer[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_compile": True}, "compiled layers run no hooks"),
        (
            {"gradient_checkpointing_kwargs": {"context_fn": len, "use_reentrant": False}},
            "selective checkpointing",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, caplog: Any
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match=message):
        trainer = trainer_with(tmp_path, [tfo.ActivationMonitor()])
        for name, value in options.items():
            setattr(trainer.args, name, value)
        trainer.train()


def test_a_model_without_single_layers_is_refused(tmp_path: Path) -> None:
    model = XLMWithLMHeadModel(XLMConfig(vocab_size=97, emb_dim=32, n_layers=2, n_heads=2))
    with pytest.raises(ValueError, match="finds no layers in XLMWithLMHeadModel"):
        trainer_with(tmp_path, [tfo.ActivationMonitor()], model=model).train()
