"""A packed example sees itself and nothing else, under every implementation that runs here."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    create_bidirectional_sliding_window_mask,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

import hf_tfopt as tfo
from hf_tfopt.data.packing import attention_inputs
from hf_tfopt.surgery.attention import attention_forward, unpadded_attention
from tests.models import NO_DROPOUT, SIZES, SPECIAL, TINY, VOCABULARY, tiny

WIDTH = 64
ROWS = [[37, 1, 9, 12], [20, 44]]  # the first row ends in padding
WINDOW = 4  # of ModernBERT and Mistral here: most examples are longer


def _modernbert() -> PreTrainedModel:
    config = ModernBertConfig(**SIZES, **SPECIAL, local_attention=2 * WINDOW)
    assert config.layer_types == ["full_attention", "sliding_attention"]
    return ModernBertForMaskedLM(config)


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(
        MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=WINDOW + 1)
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: TINY[name] for name in ("bert", "roberta", "distilbert", "electra", "albert")},
    "modernbert": _modernbert,
}
CAUSAL = {"gpt2": TINY["gpt2"], "llama": TINY["llama"], "mistral": _mistral}
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "unpadded")

# Both sides compute the same numbers of order 1 in fp32, two layers deep, with sums in another
# order: some 10 roundings of 6e-8.
TOLERANCE = 1e-5

flex_without_compiler = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:`torch.jit.script_method`"
)


def model_of(name: str, seed: int = 0) -> Any:
    print("seed", seed)
    torch.manual_seed(seed)
    return {**MODELS, **CAUSAL}[name]().eval()


def ids_of(rows: list[list[int]], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (len(rows), WIDTH), generator=generator)


def positions_of(rows: list[list[int]], name: str) -> torch.Tensor:
    first = 2 if name == "roberta" else 0
    lengths = [[*row, WIDTH - sum(row)] for row in rows]
    return torch.tensor([[first + i for n in row for i in range(n)] for row in lengths])


def packed_inputs(model: Any, name: str, implementation: str) -> dict[str, Any]:
    windows = (
        {"full_attention": None, "sliding_attention": WINDOW} if name == "modernbert" else None
    )
    rows = [np.array(row) for row in ROWS]
    kept_apart = attention_inputs(rows, WIDTH, implementation, layer_windows=windows)
    model.set_attn_implementation(implementation)
    return {"input_ids": ids_of(ROWS), "position_ids": positions_of(ROWS, name), **kept_apart}


def states(model: Any, **inputs: Any) -> torch.Tensor:
    return model.base_model(**inputs).last_hidden_state


def examples(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The examples of a [row, place, ...] tensor, each as a batch of one."""
    found = []
    for row, lengths in zip(tensor, ROWS, strict=True):
        found += [part[None] for part in row[: sum(lengths)].split(lengths)]
    return found


def alone(model: Any) -> list[torch.Tensor]:
    """The states of each example in a batch of its own, as the host computes them."""
    model.set_attn_implementation("sdpa")
    return [states(model, input_ids=ids) for ids in examples(ids_of(ROWS))]


def assert_equal_examples(packed: torch.Tensor, references: list[torch.Tensor]) -> None:
    for found, reference in zip(examples(packed), references, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=TOLERANCE)


@flex_without_compiler
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_example_has_the_states_of_the_example_alone(
    name: str, implementation: str
) -> None:
    model = model_of(name)
    inputs = packed_inputs(model, name, implementation)
    # flex compiles for half a minute otherwise; its masks are what is tested here
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        packed = states(model, **inputs)
        assert packed.isfinite().all()
        assert_equal_examples(packed, alone(model))


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_keep_examples_apart_too(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        packed = states(model, **packed_inputs(model, name, "unpadded"))
        assert_equal_examples(packed, alone(model))


@pytest.mark.parametrize("name", MODELS)
def test_position_ids_by_themselves_keep_nothing_apart(name: str) -> None:
    """The test above bites: this is what the host makes of packed rows without help."""
    model = model_of(name)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        mixed = states(model, input_ids=ids_of(ROWS), position_ids=positions_of(ROWS, name))
        errors = [
            float((found - reference).abs().max())
            for found, reference in zip(examples(mixed), alone(model), strict=True)
        ]
    assert min(errors) > 100 * TOLERANCE


def gradients(model: Any, hidden: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a loss that is a sum over the tokens of all examples."""
    weight = torch.linspace(-1, 1, hidden[0].shape[-1])
    model.zero_grad()
    sum((part.tanh() @ weight).sum() for part in hidden).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [*((name, False) for name in (*MODELS, "llama")), ("bert", True), ("modernbert", True)],
)
def test_gradients_of_a_packed_batch_are_the_sum_over_its_examples(
    name: str, checkpointing: bool
) -> None:
    model = model_of(name).train()
    expected = gradients(model, alone(model))
    if checkpointing:
        model.activation_checkpointing_enable()
    found = gradients(model, examples(states(model, **packed_inputs(model, name, "unpadded"))))
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for parameter, gradient in found.items():
        # fp32 sums over 123 tokens, against the largest entry
        bound = TOLERANCE * max(1.0, float(expected[parameter].abs().max()))
        assert (gradient - expected[parameter]).abs().max() < bound, parameter


def test_bf16_autocast_trains_like_fp32() -> None:
    model = model_of("bert").train()
    inputs = packed_inputs(model, "bert", "unpadded")
    expected = gradients(model, examples(states(model, **inputs)))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = examples(states(model, **inputs))
    found = gradients(model, hidden)
    errors = [(found[n] - g).norm() / (g.norm() + 1e-3) for n, g in expected.items()]
    assert max(errors) < 0.1  # 8 bits of mantissa, two layers forward and back


def padded() -> dict[str, torch.Tensor]:
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 13:] = 0
    mask[2, 5:] = 0
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", [*MODELS, *CAUSAL])
def test_ordinary_batches_are_what_they_are_under_sdpa(name: str, masked: bool) -> None:
    model = model_of(name)
    batch = padded()
    if not masked:
        batch.pop("attention_mask")
    with torch.no_grad():
        reference = states(model, **batch)
        assert model.config._attn_implementation == "sdpa"
        found = states(unpadded_attention(model), **batch)
    real = padded()["attention_mask"].bool() if masked else slice(None)
    torch.testing.assert_close(found[real], reference[real], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_is_what_it_is_under_sdpa(name: str) -> None:
    model = model_of(name)
    batch = {key: value.flip(1) for key, value in padded().items()}  # padding on the left
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    expected = model.generate(**batch, **options)
    assert torch.equal(unpadded_attention(model).generate(**batch, **options), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_padding_mask_beside_the_ends_is_honoured(name: str) -> None:
    """Ends and a mask of the last two tokens: they are gone, and padding stays finite."""
    model = model_of(name)
    inputs = packed_inputs(model, name, "unpadded")
    mask = (torch.arange(WIDTH) < torch.tensor([[sum(ROWS[0])], [WIDTH - 2]])).long()
    short = [*examples(ids_of(ROWS))[:-1], examples(ids_of(ROWS))[-1][:, :-2]]
    packed = states(model, attention_mask=mask, **inputs)
    packed.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    model.set_attn_implementation("sdpa")
    for found, ids in zip(examples(packed), short, strict=True):
        reference = states(model, input_ids=ids)
        kept = found[:, : ids.shape[1]]
        torch.testing.assert_close(kept, reference, rtol=0, atol=TOLERANCE)


def test_a_window_alone_makes_no_mask() -> None:
    """A flat batch would need one of all its tokens squared."""
    config = unpadded_attention(_modernbert()).config
    flat = torch.zeros(1, 5000, 1)
    options: dict[str, Any] = {"config": config, "inputs_embeds": flat}
    whole = torch.ones(1, 5000, dtype=torch.long)
    assert create_bidirectional_sliding_window_mask(attention_mask=None, **options) is None
    assert create_bidirectional_sliding_window_mask(attention_mask=whole, **options) is None
    options["inputs_embeds"] = flat[:, :20]
    mask = create_bidirectional_sliding_window_mask(attention_mask=whole[:, :20] * 0, **options)
    assert mask is not None


@pytest.mark.parametrize(
    ("passed", "is_causal", "reach"),
    [
        (WINDOW, True, WINDOW - 1),  # Mistral: the window counts the position itself
        (WINDOW + 1, False, WINDOW),  # ModernBERT: 1 added for the attention function
        (WINDOW, False, WINDOW),  # DiffusionGemma: not added
    ],
)
def test_a_window_reaches_as_far_as_the_hosts_mask(
    passed: int, is_causal: bool, reach: int
) -> None:
    module = torch.nn.Module()
    module.config = MistralConfig(sliding_window=WINDOW)
    query, key, value = torch.randn(3, 1, 2, 20, 8, generator=torch.Generator().manual_seed(0))
    function = sliding_window_bidirectional_mask_function
    if is_causal:
        function = sliding_window_causal_mask_function
    mask = sdpa_mask(1, 20, 20, mask_function=function(WINDOW), allow_is_causal_skip=False)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask)
    found, _ = attention_forward(
        module, query, key, value, None, is_causal=is_causal, sliding_window=passed
    )
    torch.testing.assert_close(found, expected)
    distance = torch.arange(20)[:, None] - torch.arange(20)
    assert int(distance[mask[0, 0]].max()) == reach


@pytest.mark.parametrize("ends", [[0, 64], [0, 64, 130], [1, 128]])
def test_ends_that_do_not_divide_the_batch_are_refused(ends: list[int]) -> None:
    model = unpadded_attention(model_of("bert"))
    with pytest.raises(ValueError, match=r"cu_seq_lens_q goes from .* divide the whole batch"):
        model(ids_of(ROWS), cu_seq_lens_q=torch.tensor(ends, dtype=torch.int32))


def test_an_attention_of_its_own_is_refused() -> None:
    model = tiny("deberta-v2")
    with pytest.raises(ValueError, match="DebertaV2ForMaskedLM has an attention of its own"):
        unpadded_attention(model)
    assert model.config._attn_implementation != "unpadded"


def test_the_saved_model_is_a_plain_one(tmp_path: Any) -> None:
    model = unpadded_attention(model_of("bert"))
    assert model.config._attn_implementation == "unpadded"
    model.save_pretrained(tmp_path)
    assert "unpadded" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert opened.config._attn_implementation == "sdpa"
    batch = padded()
    with torch.no_grad():
        torch.testing.assert_close(opened(**batch).logits, model(**batch).logits)


def test_the_table_lists_it() -> None:
    assert tfo.SURGERIES["unpadded_attention"] is tfo.unpadded_attention is unpadded_attention


def test_dropout_is_applied_in_training_only() -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, **NO_DROPOUT, "attention_probs_dropout_prob": 0.5}
    model = unpadded_attention(BertForMaskedLM(BertConfig(**sizes)))
    inputs = packed_inputs(model, "bert", "unpadded")
    with torch.no_grad():
        first, second = (states(model.train(), **inputs) for _ in range(2))
        assert (first - second).abs().max() > 0.01
        first, second = (states(model.eval(), **inputs) for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_grouped_heads_and_position_biases_are_the_hosts(is_causal: bool, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    query, key, value = (torch.randn(1, h, 30, 8, generator=generator) for h in (4, 2, 2))
    bias = torch.randn(1, 4, 30, 30, generator=generator) if biased else None
    ends = torch.tensor([0, 13, 14, 30], dtype=torch.int32)
    found, _ = attention_forward(
        module, query, key, value, None, is_causal=is_causal, cu_seq_lens_q=ends, position_bias=bias
    )
    for first, end in pairwise(ends.tolist()):
        part = (x[:, :, first:end] for x in (query, key, value))
        own_bias = None if bias is None else bias[..., first:end, first:end]
        expected, _ = sdpa_attention_forward(
            module, *part, None, is_causal=is_causal, position_bias=own_bias
        )
        torch.testing.assert_close(found[:, first:end], expected)
