import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerControl,
    TrainerState,
    XLMConfig,
    XLMWithLMHeadModel,
)

import hf_tfopt as tfo
from hf_tfopt.callbacks.attention_probe import evaluating, first_examples, probe
from hf_tfopt.callbacks.attention_watch import SeenAttention
from hf_tfopt.callbacks.layer_modules import counted_in, counted_positions, layer_modules
from hf_tfopt.callbacks.training import Training
from hf_tfopt.data.segments import attention_inputs
from hf_tfopt.measures import attention_sums
from tests.callbacks.runs import history_of, num_hooks, trainer_with
from tests.models import EDITED_LOGITS, SIZES, TINY, batch_for, tiny
from tests.references.activations import naive_attention, padded_batch, read_by_decoder
from tests.test_trainer import arguments

LENGTHS = [12, 7, 2, 1]


def grouped_llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(**{**SIZES, "num_attention_heads": 4}, num_key_value_heads=2)
    )


MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: tiny(name) for name in [*TINY, *EDITED_LOGITS]},
    "llama-grouped": grouped_llama,
}


def sharpened(model: Any) -> Any:
    """Weights so large that attention chooses: at the start all keys weigh alike."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            torch.nn.init.normal_(module.weight, std=0.3)
    return model


def eager_maps(model: Any, batch: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
    """The weights that the host's own eager attention gives, by layer and use."""
    model = model.eval()
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**batch, output_attentions=True)
    model.set_attn_implementation(before)
    model.train()
    if not model.config.is_encoder_decoder:
        labels = list(layer_modules(model))
        maps = outputs.attentions
        if len(labels) < len(maps):  # ALBERT's layers are one
            return {labels[0]: list(maps)}
        return {label: [each] for label, each in zip(labels, maps, strict=True)}
    return {
        "encoder.0": list(outputs.encoder_attentions),
        "decoder.0": list(outputs.decoder_attentions),
        "decoder.0.cross": list(outputs.cross_attentions),
    }


def monitored(model: Any, batch: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What a monitor logs of a batch, without a training around it."""
    monitor = tfo.AttentionMonitor(probe=batch, collapse=None)
    state, control = TrainerState(), TrainerControl()
    training = Training(arguments(tmp_path), state, control, model.train())
    monitor.begin(training)
    monitor.watch(training)
    monitor.measure(training)
    return dict(monitor.scalars(training))


@pytest.mark.parametrize("name", MODELS)
def test_entropies_are_those_of_the_hosts_eager_weights(name: str, tmp_path: Path) -> None:
    model = sharpened(MODELS[name]())
    batch = padded_batch(batch_for(model), LENGTHS)
    is_token = batch["attention_mask"].bool()
    is_pair = model.config.is_encoder_decoder
    causal = not is_pair and "decoder.0" in layer_modules(model)
    logged = monitored(model, batch, tmp_path)
    heads = iter(logged["attention_entropy_heads"])
    maps = eager_maps(model, batch)
    assert {key.partition("/")[2] for key in logged if "attention_entropy/" in key} == {*maps}
    for layer, calls in maps.items():
        is_causal = causal or layer == "decoder.0"
        queries = read_by_decoder(is_token) if is_pair and "decoder" in layer else is_token
        keys = is_token if "cross" in layer else queries
        parts = [naive_attention(each, queries, is_causal, keys) for each in calls]
        means = {
            what: [sum(numbers) / len(parts) for numbers in zip(*column, strict=True)]
            for what in ("entropy", "maximum")
            for column in [[part[what] for part in parts]]
        }
        entropy, maximum = means["entropy"], means["maximum"]
        assert 0.02 < min(entropy) < 0.97, "the test's weights should choose"
        # fp32 softmax in two orders of operations
        assert next(heads) == pytest.approx(entropy, abs=1e-4)
        mean = sum(entropy) / len(entropy)
        assert logged[f"attention_entropy/{layer}"] == pytest.approx(mean, abs=2e-5)
        assert logged[f"attention_entropy_min/{layer}"] == pytest.approx(min(entropy), abs=2e-5)
        largest = sum(maximum) / len(maximum)
        assert logged[f"attention_max/{layer}"] == pytest.approx(largest, abs=2e-5)


def logits_by_hand(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """BERT's largest logit of each layer, from the queries and keys."""
    found: list[torch.Tensor] = []

    def see(module: Any, args: Any, output: Any) -> None:
        states = args[0]
        shape = (*states.shape[:2], module.num_attention_heads, -1)
        q, k = (m(states).view(shape).transpose(1, 2) for m in (module.query, module.key))
        logits = q @ k.mT * module.scaling
        kept = batch["attention_mask"].bool()
        found.append(logits[(kept[:, None, :, None] & kept[:, None, None]).expand_as(logits)].max())

    layers = model.bert.encoder.layer
    handles = [layer.attention.self.register_forward_hook(see) for layer in layers]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return [value.item() for value in found]


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "unpadded", "flex_attention"])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_largest_logit(implementation: str, bf16: bool, tmp_path: Path) -> None:
    model = sharpened(tiny("bert"))
    batch = padded_batch(batch_for(model), LENGTHS)
    expected = logits_by_hand(model, batch)
    if implementation == "unpadded":
        tfo.unpadded_attention(model)
    else:  # flex attention runs in a probe only, where it is eager
        model.config._attn_implementation_internal = implementation
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logged = monitored(model, batch, tmp_path)
    found = [logged[f"attention_logit_max/encoder.{layer}"] for layer in (0, 1)]
    # bf16 has 8 bits; of the second layer's states too
    assert found == pytest.approx(expected, rel=0.03 if bf16 else 1e-5)


@pytest.mark.parametrize("implementation", ["eager", "unpadded", "flex_attention"])
def test_other_implementations_show_the_same(implementation: str, tmp_path: Path) -> None:
    model = sharpened(tiny("bert"))
    batch = padded_batch(batch_for(model), LENGTHS)
    expected = monitored(model, batch, tmp_path)
    model = sharpened(tiny("bert"))
    if implementation == "unpadded":
        tfo.unpadded_attention(model)
    else:
        model.set_attn_implementation("eager" if implementation == "eager" else "sdpa")
    if implementation == "flex_attention":  # runs in a probe only, where it is eager
        model.config._attn_implementation_internal = implementation
        maps: list[str] = []
        probe(model, batch, layer_modules(model), lambda seen: maps.append(seen.layer))
        assert maps == ["encoder.0", "encoder.1"]
        assert model.config._attn_implementation == implementation
        return
    found = monitored(model, batch, tmp_path)
    for key, value in expected.items():
        if key.startswith("attention_") and isinstance(value, float):
            assert found[key] == pytest.approx(value, abs=2e-5)


def test_long_rows_are_taken_in_parts(monkeypatch: Any, tmp_path: Path) -> None:
    batch = padded_batch(batch_for(None), LENGTHS)
    whole = monitored(sharpened(tiny("bert")), batch, tmp_path)
    sizes: list[int] = []
    for most in (2 * 12 * 12, 100):  # one example at a time, and four queries
        monkeypatch.setattr("hf_tfopt.callbacks.attention_watch._MOST_LOGITS", most)
        model = sharpened(tiny("bert"))

        def see(seen: SeenAttention) -> None:
            sizes.extend(logits.numel() for _, _, logits in seen.parts)

        probe(model, batch, layer_modules(model), see)
        assert max(sizes) <= most or most == 2 * 12 * 12
        found = monitored(model, batch, tmp_path)
        for key, value in whole.items():
            if key.startswith("attention_") and isinstance(value, float):
                assert found[key] == pytest.approx(value, abs=1e-6)
        sizes.clear()


def test_a_packed_row_is_unpacked() -> None:
    """The examples of a padding-free batch are looked at as rows of their own."""
    ids = torch.arange(10).unsqueeze(0) + 5
    ends = torch.tensor([0, 3, 7, 10], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1, 2]])
    inputs = {
        "input_ids": ids,
        "position_ids": positions,
        "labels": ids,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": 4,
        "max_length_k": 4,
        "return_dict": True,
    }
    found = first_examples(inputs, 2)
    assert found.pop("return_dict") is True
    assert {name: value.tolist() for name, value in found.items()} == {
        "input_ids": [[5, 6, 7, 0], [8, 9, 10, 11]],
        "position_ids": [[0, 1, 2, 0], [0, 1, 2, 3]],
        "labels": [[5, 6, 7, -100], [8, 9, 10, 11]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
    }


def test_padding_behind_packed_examples_is_no_example() -> None:
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 0, 0, 0]])
    ends = torch.tensor([0, 2, 3, 5, 7, 10], dtype=torch.int32)
    found = first_examples({"input_ids": ids, "cu_seq_lens_q": ends}, 3, padding=0)
    assert found["input_ids"].tolist() == [[5, 6], [7, 0], [8, 9]]
    assert found["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "unpadded", "flex_attention"])
def test_packed_batches(implementation: str) -> None:
    """The same, whatever keeps the examples apart; here of unlike lengths in two rows."""
    rows = [np.array([5, 3, 2]), np.array([4, 6])]
    model = sharpened(tiny("bert"))
    ids = batch_for(model)["input_ids"][:2, :10].clone()
    lengths = [n for row in rows for n in row.tolist()]
    starts = [s for row in rows for s in [0, *np.cumsum(row)[:-1].tolist()]]
    lines = [line for line, row in enumerate(rows) for _ in row]
    positions = [torch.arange(length) for length in lengths]
    inputs = {
        "input_ids": ids,
        "position_ids": torch.cat(positions).view(2, 10),
        **attention_inputs(rows, 10, implementation),
    }
    if implementation == "unpadded":
        tfo.unpadded_attention(model)
    else:  # flex attention runs in a probe only, where it is eager
        model.config._attn_implementation_internal = implementation
    is_cut = implementation in ("sdpa", "eager")
    batch = first_examples(inputs, 2 if is_cut else 5)
    found = sums_of(model, batch)
    alone = [
        ids[line, start : start + length]
        for line, start, length in zip(lines, starts, lengths, strict=True)
    ]
    padded = {
        "input_ids": pad_sequence(alone, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in alone], batch_first=True),
    }
    expected = sums_of(sharpened(tiny("bert")), padded)
    assert found == {layer: pytest.approx(sums, rel=1e-4) for layer, sums in expected.items()}


def sums_of(model: Any, batch: dict[str, Any]) -> dict[str, list[float]]:
    """The entropies of all heads, and how many queries."""
    counted = counted_positions(model, batch)
    sums: dict[str, list[float]] = {}

    def see(seen: SeenAttention) -> None:
        for logits, own in seen.counted(counted_in(counted, seen.layer, seen.shape)):
            found = attention_sums(logits, own)
            sums[seen.layer] = [*found.entropy.tolist(), *found.number.tolist()]

    probe(model, batch, layer_modules(model), see)
    return sums


def test_the_first_examples_are_cut_and_cloned() -> None:
    inputs = {"input_ids": torch.ones(4, 3), "scale": torch.tensor(2.0), "mode": "x"}
    found = first_examples(inputs, 2)
    inputs["input_ids"].zero_()
    assert found["input_ids"].tolist() == [[1.0] * 3] * 2
    assert found["scale"].item() == 2 and found["mode"] == "x"


def test_the_first_batch_of_the_measured_step_is_looked_at(
    tmp_path: Path, monkeypatch: Any
) -> None:
    kept: list[dict[str, Any]] = []
    name = "hf_tfopt.callbacks.attention.first_examples"
    monkeypatch.setattr(name, lambda *a: kept.append(first_examples(*a)) or kept[-1])
    monitor = tfo.AttentionMonitor(every=2, num_examples=3)
    trainer = trainer_with(tmp_path, [monitor], eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert [each["input_ids"].shape[0] for each in kept] == [3, 3]
    measured = [
        entry["step"] for entry in history_of(trainer) if "attention_max/encoder.0" in entry
    ]
    assert measured == [2, 4]


def test_the_probe_leaves_no_trace() -> None:
    model = tiny("bert").train()
    model.bert.encoder.layer[0].eval()  # a part that the user has put into evaluation mode
    flags = [module.training for module in model.modules()]
    before = num_hooks(model)
    state = torch.get_rng_state()
    probe(model, batch_for(model), layer_modules(model), lambda seen: torch.rand(1))
    assert [module.training for module in model.modules()] == flags
    assert num_hooks(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError):
        probe(model, {"input_ids": torch.ones(1, 900, dtype=torch.long)}, {}, lambda seen: None)
    assert [module.training for module in model.modules()] == flags
    assert num_hooks(model) == before


def test_the_vocabulary_is_left_out() -> None:
    model = tiny("bert")
    model.cls.predictions.decoder.forward = None  # would fail
    seen: list[str] = []
    probe(model, batch_for(model), layer_modules(model), lambda each: seen.append(each.layer))
    assert seen == ["encoder.0", "encoder.1"]


def test_a_collapse_is_told_once_and_again_after_recovery(tmp_path: Path) -> None:
    """Two layers: one collapses in the third step and in the last; the other always was low."""
    model = tiny("bert")
    monitor = tfo.AttentionMonitor(every=1, collapse=0.2)
    trainer = trainer_with(tmp_path, [monitor], model=model, max_steps=8)
    levels = iter([0.9, 0.25, 0.1, 0.05, 0.25, 0.1, 0.31, 0.1])

    def alarm(training: Any, entropies: Any, threshold: float) -> None:
        assert [*entropies] == ["encoder.0", "encoder.1"]
        given = {"encoder.0": next(levels), "encoder.1": 0.02}
        tfo.AttentionMonitor._alarm(monitor, training, given, threshold)

    monitor._alarm = alarm
    trainer.train()
    events = [event for entry in history_of(trainer) for event in entry.get("events", [])]
    assert [(event["step"], event["layer"]) for event in events] == [
        (3, "encoder.0"),
        (8, "encoder.0"),  # at 0.25 it had not recovered
    ]
    assert events[0]["kind"] == "attention collapse" and events[0]["entropy"] == 0.1
    assert monitor.remembered["watched"] == []


def test_processes_judge_what_all_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that measures less than the threshold tells nothing while the others are above it."""
    monitor = tfo.AttentionMonitor(every=1, collapse=0.4)
    trainer = trainer_with(tmp_path, [monitor], max_steps=2)
    given: list[list[list[float]]] = []

    def of_two(table: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        given.append(table.tolist())
        other = table.clone()
        other[:-1, 0] *= 0.5  # of another process, whose attention is narrower
        return table + other

    monkeypatch.setattr("hf_tfopt.callbacks.attention.reduce", of_two)
    trainer.train()
    assert len(given) == 2 and given[0][-1] == [1, 0, 0]
    own = history_of(trainer)[0]["attention_entropy/encoder.0"]
    entropy, queries, is_seen = given[0][0]
    # the logged mean is over heads, of means over queries: another order of fp32 sums
    assert own == pytest.approx(entropy / queries, rel=1e-5) and is_seen == 1
    assert monitor.remembered["watched"] == ["encoder.0", "encoder.1"]  # 0.75 of what each is


def test_a_failing_probe_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = tfo.AttentionMonitor(every=1)
    trainer = trainer_with(tmp_path, [monitor])

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such examples")

    monkeypatch.setattr("hf_tfopt.callbacks.attention.probe", fail)
    trainer.train()
    assert trainer.state.global_step == 4
    warnings = [text for text in caplog.messages if "AttentionMonitor is switched off" in text]
    assert len(warnings) == 1 and "no such examples" in warnings[0]


def test_packed_weights_stay_in_their_mode() -> None:
    """bitsandbytes packs them anew when they run in evaluation mode on a CPU."""
    packed = torch.nn.Linear(2, 2)
    values = torch.ones(4, 1, dtype=torch.uint8)
    packed.weight = torch.nn.Parameter(values, requires_grad=False)
    model = torch.nn.Sequential(packed, torch.nn.Dropout(0.1), torch.nn.Linear(2, 2))
    with evaluating(model):
        assert [module.training for module in model] == [True, False, False]
    assert all(module.training for module in model.modules())


def test_a_real_collapse_is_seen(tmp_path: Path) -> None:
    """Queries and keys grow until each query looks at one key."""
    model = tiny("bert")
    monitor = tfo.AttentionMonitor(every=1)
    trainer = trainer_with(tmp_path, [monitor], model=model, max_steps=3)

    class Grow(tfo.GroupRates):
        def stepped(self, training: Any) -> None:
            for layer in training.model.bert.encoder.layer[1:]:
                layer.attention.self.query.weight.data *= 300
                layer.attention.self.key.weight.data *= 300

    trainer.add_callback(Grow())
    trainer.train()
    events = [event for entry in history_of(trainer) for event in entry.get("events", [])]
    assert [event["layer"] for event in events] == ["encoder.1"]


def test_a_model_whose_attention_is_not_seen_is_refused_before_training(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, hidden_states: Any, *_: Any, **__: Any) -> Any:
            return hidden_states.mean(1, keepdim=True).expand_as(hidden_states), None

    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self = Mean()
    with pytest.raises(ValueError, match=r"BertForMaskedLM is not seen.*leave the monitor out"):
        trainer_with(tmp_path, [tfo.AttentionMonitor()], model=model).train()


def test_a_model_without_single_layers_is_refused(tmp_path: Path) -> None:
    config = XLMConfig(vocab_size=97, emb_dim=32, n_layers=2, n_heads=2)
    with pytest.raises(ValueError, match="its layers are not found"):
        trainer_with(tmp_path, [tfo.AttentionMonitor()], model=XLMWithLMHeadModel(config)).train()


def test_a_probe_that_the_model_does_not_take_fails_before_training(tmp_path: Path) -> None:
    monitor = tfo.AttentionMonitor(probe={"pixels": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="input_ids"):
        trainer_with(tmp_path, [monitor]).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_examples": 0}, "num_examples is 0"),
        ({"collapse": 1.0}, "collapse is 1.0"),
        ({"collapse": 0}, "collapse is 0"),
        ({"probe": ["a sentence"]}, "probe must be a batch"),
        ({"probe": {"input_ids": [[1, 2]]}}, "probe must be a batch"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfo.AttentionMonitor(**options)


def test_under_peft_and_amp(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny("bert"), LoraConfig(target_modules=["query", "value"]))
    monitors = [tfo.AttentionMonitor(every=1), tfo.ActivationMonitor(every=1)]
    trainer = trainer_with(tmp_path, monitors, model=model, bf16=True)
    trainer.train()
    last = history_of(trainer)[-1]
    for name in ("attention_entropy", "attention_logit_max", "activation_kurtosis"):
        assert {f"{name}/encoder.0", f"{name}/encoder.1"} <= {*last}
    json.dumps(last)


def test_a_classifier_too(tmp_path: Path) -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES))
    batch = batch_for(None)
    found = monitored_classifier(model, {**batch, "labels": torch.zeros(4, dtype=torch.long)})
    assert found == ["encoder.0", "encoder.1"]


def monitored_classifier(model: Any, batch: dict[str, Any]) -> list[str]:
    seen: list[str] = []
    probe(model, batch, layer_modules(model), lambda each: seen.append(each.layer))
    return seen
