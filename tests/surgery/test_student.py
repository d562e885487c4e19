"""A student made of a teacher's layers computes what those layers compute, and is a plain model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    EncoderDecoderConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_tfopt.surgery.attention import unpadded_attention
from hf_tfopt.surgery.layer_stacks import layer_stacks
from hf_tfopt.surgery.student import _carry_attention, student_from
from tests.models import SIZES, SPECIAL, batch_for

DEEP = {**SIZES, "num_hidden_layers": 5}
PAIR = {
    "vocab_size": SIZES["vocab_size"],
    "d_model": 32,
    "decoder_start_token_id": 0,
}
TEACHERS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(**DEEP, num_labels=3)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**DEEP)),
    "electra": (ElectraForMaskedLM, ElectraConfig(**DEEP, embedding_size=16)),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(vocab_size=97, dim=32, n_layers=5, n_heads=2, hidden_dim=48),
    ),
    "deberta-v2": (
        DebertaV2ForMaskedLM,
        DebertaV2Config(**DEEP, relative_attention=True, conv_kernel_size=3, position_buckets=8),
    ),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**DEEP, **SPECIAL, local_attention=4)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=97, n_embd=32, n_layer=5, n_head=2, bos_token_id=1, eos_token_id=2),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**DEEP, tie_word_embeddings=False)),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(**PAIR, d_kv=16, d_ff=48, num_layers=5, num_decoder_layers=4, num_heads=2),
    ),
    "bart": (
        BartForConditionalGeneration,
        BartConfig(
            **PAIR,
            encoder_layers=5,
            decoder_layers=4,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
        ),
    ),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = TEACHERS[name]
    model = kind(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, that none goes unseen
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def outputs(model: PreTrainedModel) -> torch.Tensor:
    batch = batch_for(model)
    labels = batch.pop("labels")
    if hasattr(model.config, "use_cache"):
        batch["use_cache"] = False  # a thinned model's layers still have their old numbers in it
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = labels.clamp(min=0)
    with torch.no_grad():
        return model(**batch).logits


def thinned(model: Any, numbers: list[int]) -> Any:
    """The same model with the other layers taken out of its lists, by hand."""
    model = copy.deepcopy(model)
    for stack in layer_stacks(model).values():
        for name in stack.lists:
            parent, _, child = name.rpartition(".")
            layers = model.get_submodule(name)
            kept = torch.nn.ModuleList(layers[number] for number in numbers)
            setattr(model.get_submodule(parent), child, kept)
    if hasattr(model.config, "layer_types"):
        model.config.layer_types = [model.config.layer_types[number] for number in numbers]
    for setting in ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers"):
        if hasattr(model.config, setting):
            setattr(model.config, setting, len(numbers))
    return model


@pytest.mark.parametrize("name", TEACHERS)
def test_computes_what_the_chosen_layers_compute(name: str, tmp_path: Path) -> None:
    teacher = made(name)
    before = copy.deepcopy(teacher.state_dict())
    said = outputs(teacher)
    numbers = [0, 2, 3]
    student = student_from(teacher, numbers)
    assert type(student) is type(teacher) and not student.training
    torch.testing.assert_close(outputs(student), outputs(thinned(teacher, numbers)))
    assert not torch.allclose(outputs(student), said), "the other layers must have mattered"

    own = {parameter.data_ptr() for parameter in student.parameters()}
    assert not own & {parameter.data_ptr() for parameter in teacher.parameters()}
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    torch.testing.assert_close(outputs(teacher), said)

    embeddings = [model.get_input_embeddings().weight for model in (student, teacher)]
    if teacher.get_output_embeddings() is not None:
        heads = [model.get_output_embeddings().weight for model in (student, teacher)]
        assert (heads[0] is embeddings[0]) == (heads[1] is embeddings[1])

    student.save_pretrained(tmp_path)
    loaded, report = type(teacher).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(outputs(loaded.eval()), outputs(student))
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 3


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder_apart(name: str) -> None:
    teacher = made(name)
    student = student_from(teacher, {"decoder": [0, 3]})
    lengths = {part: stack.length for part, stack in layer_stacks(student).items()}
    assert lengths == {"encoder": 5, "decoder": 2}
    student = student_from(teacher, {"encoder": range(2), "decoder": [1]})
    lengths = {part: stack.length for part, stack in layer_stacks(student).items()}
    assert lengths == {"encoder": 2, "decoder": 1}
    assert outputs(student).isfinite().all()


def test_the_table_of_relative_positions_stays_though_its_layer_goes() -> None:
    teacher = made("t5")
    student = student_from(teacher, {"encoder": [2, 4]})
    tables = [
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        for model in (student, teacher)
    ]
    assert torch.equal(*tables) and tables[0] is not tables[1]


def test_all_layers_are_a_copy() -> None:
    teacher = made("bert")
    student = student_from(teacher, range(5))
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=0, atol=0)
    assert student.config.to_dict() == teacher.config.to_dict()


def test_what_is_listed_layer_by_layer_is_picked_too() -> None:
    teacher = made("modernbert")
    assert teacher.config.layer_types[3] == "full_attention"
    student = student_from(teacher, [0, 1, 3])
    assert student.config.layer_types == [teacher.config.layer_types[i] for i in (0, 1, 3)]


def test_types_and_generation_settings_are_kept() -> None:
    teacher = made("llama").to(torch.bfloat16)
    teacher.generation_config.max_new_tokens = 7
    student = student_from(teacher.train(), [1])
    assert student.dtype == torch.bfloat16 and student.training
    assert student.generation_config.max_new_tokens == 7
    assert student.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("name", TEACHERS)
def test_the_attention_implementation_is_kept(name: str) -> None:
    teacher = made(name)
    assert student_from(teacher, [0]).config._attn_implementation == (
        teacher.config._attn_implementation
    )
    if teacher.config._attn_implementation == "sdpa":  # the others have only one
        teacher.set_attn_implementation("eager")
    student = student_from(teacher, [0, 1])
    seen = {
        module.config._attn_implementation
        for module in student.modules()
        if isinstance(module, PreTrainedModel)
    }
    assert seen == {"eager"}


def test_an_attention_that_is_registered_here_is_kept() -> None:
    student = student_from(unpadded_attention(made("bert")), [0, 2])
    assert student.config._attn_implementation == "unpadded"
    ids = torch.arange(5, 13).unsqueeze(0)
    ends = torch.tensor([0, 5, 8], dtype=torch.int32)
    attention = student.bert.encoder.layer[0].attention.self
    inputs = student.bert.embeddings(ids)
    joined = attention(inputs, cu_seq_lens_q=ends)[0]
    first = attention(inputs[:, :5])[0]
    torch.testing.assert_close(joined[:, :5], first)


def test_the_attention_of_parts_is_kept_apart() -> None:
    encoder, decoder = BertConfig(**DEEP), BertConfig(**DEEP, is_decoder=True)
    decoder.add_cross_attention = True
    old = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    new = copy.deepcopy(old)
    old._attn_implementation = {"encoder": "eager", "decoder": "sdpa"}
    _carry_attention(old, new)
    assert [new.encoder._attn_implementation, new.decoder._attn_implementation] == ["eager", "sdpa"]


def test_layers_that_are_scaled_by_their_number_keep_it() -> None:
    teacher = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97, n_embd=32, n_layer=4, n_head=2, scale_attn_by_inverse_layer_idx=True
        )
    ).eval()
    with pytest.raises(ValueError, match=r"layers=\[0, 2\] get .* first layers, such as \[0, 1\]"):
        student_from(teacher, [0, 2])
    student = student_from(teacher, [0, 1, 2])
    torch.testing.assert_close(outputs(student), outputs(thinned(teacher, [0, 1, 2])))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one"),
        ([0, 5], "rising numbers from 0 to 4"),
        ([2, 0], "rising"),
        ([0, 0], "rising"),
        ([-1], "from 0"),
        ({"encodr": [0]}, "did you mean 'encoder'"),
    ],
)
def test_refuses_layers(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_from(made("bert"), layers)


def test_refuses_teachers_whose_layers_cannot_be_chosen() -> None:
    albert = AlbertForMaskedLM(AlbertConfig(**DEEP, embedding_size=16))
    with pytest.raises(ValueError, match="share their weights"):
        student_from(albert, [0, 1])
    with pytest.raises(ValueError, match="layer 0 first"):  # only the first has no norm before it
        student_from(made("modernbert"), [1, 2])
    with pytest.raises(ValueError, match="the teacher is Linear"):
        student_from(torch.nn.Linear(2, 2), [0])


def test_refuses_weights_that_only_the_config_ties() -> None:
    teacher = made("gpt2")
    teacher.lm_head.weight = torch.nn.Parameter(torch.randn(97, 32))
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        student_from(teacher, [0, 1])
