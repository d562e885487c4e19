"""Features of encoder-decoders: each stack's own tensors, layers, tokens and count."""

from typing import Any

import pytest
import torch
from transformers import (
    BartForSequenceClassification,
    BertForMaskedLM,
    LEDConfig,
    LEDForConditionalGeneration,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_tfopt.objectives.attention_vectors import attention_makers
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.feature_terms import tokens_of
from hf_tfopt.objectives.features import AttentionMaps, CosineStates, HiddenStates, Relations
from hf_tfopt.objectives.projection import FeatureProjection
from tests.invariants.cases.distillation import bert, in_eager, padded
from tests.invariants.cases.encoder_decoder_features import (
    NUM_DECODER,
    NUM_ENCODER,
    bart,
    t5,
    texts,
    translations,
    wise_bart,
    wise_classifier,
    wise_t5,
)
from tests.models import BART_SIZES, tiny
from tests.references.features import (
    naive_attention,
    naive_cosine,
    naive_hidden_states,
    naive_relations,
)

# fp32 sums in another order; a divergence has a digit less than what it is of.
TOLERANCE = 5e-5
PAIRS = {"encoder": (1, 2), "decoder": (0, 1)}  # other layers than the defaults
LAYERS = {part: dict([pair]) for part, pair in PAIRS.items()}
HEADS = {"t5": {"encoder": 2, "decoder": 2}, "bart": {"encoder": 2, "decoder": 4}}


def models(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    student, teacher = (t5(0), wise_t5()) if kind == "t5" else (bart(0), wise_bart())
    return in_eager(student).train(), in_eager(teacher)


def means(objective: Distillation, student: Any, batch: Any, full: bool = False) -> dict[str, Any]:
    terms, _ = objective.terms(student, student, batch, full)
    counts = {name: int(count) for name, count in objective.counts(batch).items()}
    assert {name: int(term.count) for name, term in terms.items()} == counts
    return {name: term.sum / term.count for name, term in terms.items()}


def prepared(student: Any, teacher: Any, batch: Any, *features: Any) -> Distillation:
    objective = Distillation(teacher, features=features)
    objective.prepare(student, batch)
    return objective


def vectors_of(model: Any, part: str, layer: int, before: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values made again of what goes into a layer."""
    if model.config.model_type == "t5":
        block = getattr(model, part).block[layer].layer[0]
        attention = block.SelfAttention
        return [f(block.layer_norm(before)) for f in (attention.q, attention.k, attention.v)]
    attention = getattr(model.model, part).layers[layer].self_attn
    return [f(before) for f in (attention.q_proj, attention.k_proj, attention.v_proj)]


def naive(kind: str, student: Any, teacher: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Every term, from what the models put out when they make the decoder's inputs themselves."""
    wanted = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    both = [model(**batch, **wanted) for model in (student, teacher)]
    lengths = {
        "encoder": batch["attention_mask"].sum(-1).tolist(),
        "decoder": [int((row != -100).sum()) for row in batch["labels"]],
    }
    found = {}
    for part, pair in PAIRS.items():
        stacks = [out[f"{part}_hidden_states"] for out in both]
        states = [stack[layer + 1] for stack, layer in zip(stacks, pair, strict=True)]
        maps = [out[f"{part}_attentions"][n] for out, n in zip(both, pair, strict=True)]
        vectors = [
            vectors_of(model, part, n, stack[n])
            for model, n, stack in zip((student, teacher), pair, stacks, strict=True)
        ]
        num = lengths[part]
        found[f"hidden_states_{part}"] = naive_hidden_states(*states, num)
        found[f"cosine_{part}"] = naive_cosine(*states, num)
        found[f"attention_maps_{part}"] = naive_attention(*maps, num)
        found[f"relations_{part}"] = naive_relations(*vectors, num, HEADS[kind][part])
    return found


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_terms_equal_the_naive_form(kind: str) -> None:
    student, teacher = models(kind)
    batch = translations(5, 0)
    features = [each(2.0, LAYERS) for each in (HiddenStates, CosineStates, AttentionMaps)]
    objective = prepared(student, teacher, batch, *features, Relations(3.0, LAYERS))
    found, expected = means(objective, student, batch), naive(kind, student, teacher, batch)
    assert found.keys() == {"cross_entropy", "distillation", *expected}
    for name, value in expected.items():
        assert objective.weights[name] == (3.0 if name.startswith("relations") else 2.0)
        torch.testing.assert_close(found[name], value, rtol=TOLERANCE, atol=1e-8)
        ours, theirs = (
            torch.autograd.grad(x, student.parameters(), allow_unused=True, retain_graph=True)
            for x in (found[name], value)
        )
        for gradient, reference in zip(ours, theirs, strict=True):
            assert (gradient is None) == (reference is None), name
            if gradient is not None and reference is not None:
                scale = max(float(reference.abs().max()), 1e-4)
                assert float((gradient - reference).abs().max()) <= 1e-4 * scale, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_at_the_head_leaves_the_decoder_s_states_whole(kind: str) -> None:
    student, teacher = models(kind)
    batch = translations(5, 0)
    objective = prepared(student, teacher, batch, HiddenStates(), CosineStates())
    plan: Any = objective.objective
    assert plan.plan.body is not None and plan.plan.head is not None
    at_head, full = (means(objective, student, batch, is_full) for is_full in (False, True))
    for name, value in full.items():
        torch.testing.assert_close(at_head[name], value, rtol=TOLERANCE, atol=1e-8)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_queries_are_those_of_a_layer_s_attention_to_its_own_stack(kind: str) -> None:
    _, teacher = models(kind)
    names = {id(module): name for name, module in teacher.named_modules()}
    for part, length in (("encoder", NUM_ENCODER), ("decoder", NUM_DECODER)):
        for layer in range(length):
            found = [names[id(each)] for each in attention_makers(teacher, part, layer)]
            if kind == "t5":
                where = f"{part}.block.{layer}.layer.0.SelfAttention."
                assert found == [where + name for name in "qkv"]
            else:
                where = f"model.{part}.layers.{layer}.self_attn."
                assert found == [where + f"{name}_proj" for name in "qkv"]


def test_cross_attention_is_passed_over_wherever_it_stands() -> None:
    model: Any = bart(0)
    layer = model.model.decoder.layers[0]
    own = layer.self_attn
    del layer.self_attn  # and back, behind the attention to the encoder
    layer.self_attn = own
    assert attention_makers(model, "decoder", 0)[0] is own.q_proj


def test_stacks_that_are_left_out_are_not_compared() -> None:
    student, teacher = models("t5")
    batch = translations(4, 0)

    def found(layers: Any) -> dict[str, float]:
        objective = prepared(student, teacher, batch, HiddenStates(layers=layers))
        terms = means(objective, student, batch)
        return {name: float(terms[name].detach()) for name in objective.features.weights}

    both = found(None)
    assert list(both) == ["hidden_states_encoder", "hidden_states_decoder"]
    encoder, decoder = both.values()
    assert found({"decoder": None}) == {"hidden_states_decoder": pytest.approx(decoder)}
    assert found({"encoder": {0: 1, 1: 3}}) == {"hidden_states_encoder": pytest.approx(encoder)}
    given = found({"encoder": None, "decoder": {0: 1, 1: 2}})
    assert list(given.values()) == pytest.approx([encoder, decoder])


def test_a_decoder_s_tokens_are_those_of_its_mask_or_those_with_a_label() -> None:
    batch = translations(4, 0)
    is_labelled = batch["labels"] != -100
    assert torch.equal(tokens_of(batch, "decoder"), is_labelled)
    assert torch.equal(tokens_of(batch, "encoder"), batch["attention_mask"] != 0)
    mask = is_labelled.long()
    mask[:, 0] = 0
    assert torch.equal(tokens_of({**batch, "decoder_attention_mask": mask}, "decoder"), mask != 0)
    named = texts(4, 0)
    assert torch.equal(tokens_of(named, "decoder", is_written=False), named["attention_mask"] != 0)
    with pytest.raises(ValueError, match="decoder_attention_mask has shape"):
        tokens_of({**batch, "decoder_attention_mask": mask[:, None]}, "decoder")


def test_padding_changes_nothing() -> None:
    student, teacher = models("bart")
    batch = translations(4, 0)
    features = [each() for each in (HiddenStates, CosineStates, AttentionMaps, Relations)]
    objective = prepared(student, teacher, batch, *features)
    wider = {
        name: torch.nn.functional.pad(column, (0, 5), value=-100 if name == "labels" else 0)
        for name, column in batch.items()
    }
    expected = means(objective, student, batch)
    for name, value in means(objective, student, wider).items():
        torch.testing.assert_close(value, expected[name], rtol=TOLERANCE, atol=1e-8)


def test_a_projection_stands_between_both_stacks_of_different_widths() -> None:
    student, teacher = t5(0).train(), wise_t5(48)
    batch = translations(4, 0)
    with pytest.raises(ValueError, match="32 wide and the teacher's 48"):
        prepared(student, teacher, batch, HiddenStates())
    plain = student(**batch, output_hidden_states=True)
    linear = FeatureProjection(student, teacher).student.distillation_projection
    found = means(prepared(student, teacher, batch, HiddenStates(1.0, LAYERS)), student, batch)
    theirs = teacher(**batch, output_hidden_states=True)
    is_token = {"encoder": batch["attention_mask"] != 0, "decoder": batch["labels"] != -100}
    for part, (ours, other) in PAIRS.items():
        name = f"{part}_hidden_states"
        states = [linear(plain[name][ours + 1]), theirs[name][other + 1]]
        expected = naive_hidden_states(*states, is_token[part].sum(-1).tolist())
        torch.testing.assert_close(found[f"hidden_states_{part}"], expected, rtol=TOLERANCE, atol=0)


def test_a_classifier_s_decoder_reads_the_encoder_s_tokens() -> None:
    student = bart(0, kind=BartForSequenceClassification).train()
    batch = texts(4, 0)
    objective = prepared(student, wise_classifier(), batch, HiddenStates(), Relations())
    counts = objective.counts(batch)
    num_tokens = int(batch["attention_mask"].sum())
    assert {name: int(count) for name, count in counts.items()} == {
        **dict.fromkeys(("cross_entropy", "distillation"), 4),
        **dict.fromkeys(objective.features.weights, num_tokens),
    }
    assert all(float(value.detach()) > 0 for value in means(objective, student, batch).values())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({0: 1}, r"has encoder and decoder: say of which, as in layers=\{'encoder': \{0: 1\}"),
        ({"decoder": {0: 1}, 0: 1}, "say of which"),
        ({"encoder": [0, 1]}, "say of which"),
        ({}, "say of which"),
        ({"decodr": {0: 1}}, "unknown stack of layers 'decodr' .did you mean 'decoder'"),
        ({"decoder": {}}, "empty map"),
        ({"decoder": {2: 0}}, "none of the student's, which are 0 to 1"),
        ({"decoder": {0: 3}}, "none of the teacher's, which are 0 to 2"),
    ],
)
def test_refuses_maps(layers: Any, message: str) -> None:
    student, teacher = models("t5")
    with pytest.raises(ValueError, match=message):
        prepared(student, teacher, translations(4, 0), Relations(layers=layers))


def test_refuses_other_misuses() -> None:
    batch = translations(4, 0)
    with pytest.raises(ValueError, match=r"names stacks of layers, and BertForMaskedLM has one"):
        one = bert(BertForMaskedLM)
        prepared(one, bert(BertForMaskedLM, 1), padded(4, 0), Relations(layers={"encoder": {0: 1}}))
    student, teacher = in_eager(bart(0)), in_eager(bart(1, decoder_attention_heads=2))
    with pytest.raises(ValueError, match="has 4 attention heads and the teacher 2 in the decoder"):
        prepared(student, teacher, batch, AttentionMaps())
    with pytest.raises(ValueError, match="the student's attention 'sdpa' keeps no maps"):
        prepared(bart(0), in_eager(wise_bart()), batch, AttentionMaps())
    half: Any = in_eager(t5(0))
    half.decoder.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="the student's attention 'sdpa' keeps no maps"):
        prepared(half, in_eager(wise_t5()), batch, AttentionMaps())
    prepared(half, in_eager(wise_t5()), batch, AttentionMaps(layers={"encoder": None}))
    with pytest.raises(ValueError, match=r"BartDecoder\.layerdrop is 0\.1"):
        prepared(bart(0, decoder_layerdrop=0.1), wise_bart(), batch, Relations())


@pytest.mark.parametrize("feature", [AttentionMaps, Relations])
def test_refuses_what_is_not_one_entry_for_each_token(feature: Any) -> None:
    config = LEDConfig(
        **BART_SIZES,
        attention_window=4,
        dropout=0.0,
    )
    student, teacher = (in_eager(LEDForConditionalGeneration(config)) for _ in range(2))
    batch = translations(4, 0)
    objective = prepared(student, teacher, batch, feature(layers={"encoder": None}))
    with pytest.raises(ValueError, match=r"LEDForConditionalGeneration have shape \("):
        means(objective, student.train(), batch)


def test_of_a_speech_model_the_decoder_can_be_compared() -> None:
    config = WhisperConfig(
        **BART_SIZES,
        num_mel_bins=8,
        max_source_positions=10,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    student, teacher = (WhisperForConditionalGeneration(config) for _ in range(2))
    labels = translations(4, 0)["labels"]
    batch = {"input_features": torch.randn(4, 8, 20), "labels": labels}
    with pytest.raises(ValueError, match=r"no input_ids, only .* layers=\{'decoder': None\}"):
        prepared(student, teacher, batch, HiddenStates())
    objective = prepared(student, teacher, batch, HiddenStates(layers={"decoder": None}))
    assert int(objective.counts(batch)["hidden_states_decoder"]) == int((labels != -100).sum())
    assert float(means(objective, student.train(), batch)["hidden_states_decoder"].detach()) > 0


def test_checkpointed_layers_show_their_queries() -> None:
    student, teacher = models("t5")
    batch = translations(4, 0)
    objective = prepared(student, teacher, batch, HiddenStates(), Relations())

    def gradients() -> list[torch.Tensor]:
        found = means(objective, student, batch)
        total = torch.stack([found[name] for name in objective.features.weights]).sum()
        given = torch.autograd.grad(total, student.parameters(), allow_unused=True)
        return [each for each in given if each is not None]

    expected = gradients()
    student.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(), expected, rtol=TOLERANCE, atol=1e-6)


def test_refuses_a_teacher_with_another_number_of_stacks() -> None:
    with pytest.raises(ValueError, match="the teacher GPT2LMHeadModel: one has an encoder and a"):
        prepared(t5(0), tiny("gpt2"), translations(4, 0), HiddenStates())
