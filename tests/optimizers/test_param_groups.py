from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import hf_tfopt as tfo
from hf_tfopt.optimizers.param_groups import named_roles

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert(**options: Any) -> nn.Module:
    return BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=8, **options))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **IDS, tie_word_embeddings=False))


def modernbert() -> nn.Module:
    special = {**IDS, "cls_token_id": 1, "sep_token_id": 2}
    return ModernBertForMaskedLM(ModernBertConfig(**SIZES, **special))


def t5() -> nn.Module:
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24}
    return T5ForConditionalGeneration(T5Config(**sizes, num_layers=1, num_heads=2))


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(
            **{k: v for k, v in SIZES.items() if k != "vocab_size"}, image_size=8, patch_size=4
        )
    )


MODELS = {f.__name__: f for f in (bert, gpt2, llama, modernbert, t5, vit)}


def roles(model: nn.Module) -> dict[str, str]:
    return {parameter.name: parameter.role for parameter in named_roles(model)}


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_is_in_exactly_one_group(name) -> None:
    model = MODELS[name]()
    frozen = next(model.parameters()).requires_grad_(False)
    groups = tfo.param_groups(model, lr=1e-3, weight_decay=0.1)
    grouped = [tensor for group in groups for tensor in group["params"]]
    expected = {id(tensor) for tensor in model.parameters() if tensor is not frozen}
    assert sorted(map(id, grouped)) == sorted(expected)
    named = dict(model.named_parameters())
    for group in groups:
        pairs = zip(group["param_names"], group["params"], strict=True)
        assert all(named[name] is tensor for name, tensor in pairs)
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MODELS)
def test_biases_and_norms_are_never_decayed_and_the_rest_is(name) -> None:
    model = MODELS[name]()
    decayed = {
        tensor_name
        for group in tfo.param_groups(model, lr=1e-3, weight_decay=0.1)
        for tensor_name in group["param_names"]
        if group["weight_decay"] == 0.1
    }
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    of_norms = {id(tensor) for module in norms for tensor in module.parameters()}
    assert of_norms
    for tensor_name, tensor in model.named_parameters():
        is_spared = tensor.ndim < 2 or id(tensor) in of_norms or tensor_name.endswith("cls_token")
        assert (tensor_name in decayed) != is_spared, tensor_name


def test_berts_roles() -> None:
    found = roles(bert())
    matrices = {name for name, role in found.items() if role == "matrices"}
    layer = (
        *(f"attention.self.{part}.weight" for part in ("query", "key", "value")),
        *("attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight"),
    )
    assert matrices == {
        *(f"bert.encoder.layer.{index}.{part}" for index in range(2) for part in layer),
        "cls.predictions.transform.dense.weight",  # from hidden state to hidden state
    }
    assert {name for name, role in found.items() if role == "embeddings"} == {
        f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }  # the output layer is tied to the words
    assert "heads" not in found.values()


def test_an_output_layer_of_its_own_is_a_head() -> None:
    assert roles(llama())["lm_head.weight"] == "heads"
    untied = roles(bert(tie_word_embeddings=False))
    assert untied["cls.predictions.decoder.weight"] == "heads"
    # a model whose body and head are one module
    assert roles(Whole())["output.weight"] == "heads"


def test_a_classifier_is_a_head() -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    found = roles(model)
    assert found["classifier.weight"] == "heads"
    assert found["bert.pooler.dense.weight"] == "matrices"
    assert roles(vit())["classifier.weight"] == "heads"


def test_images_have_embeddings_that_are_bare_parameters_and_convolutions() -> None:
    found = roles(vit())
    assert found["vit.embeddings.position_embeddings"] == "embeddings"
    assert found["vit.embeddings.cls_token"] == "vectors"
    assert found["vit.embeddings.patch_embeddings.projection.weight"] == "others"


def test_t5s_relative_positions_are_embeddings() -> None:
    found = roles(t5())
    (name,) = (n for n in found if "relative_attention_bias" in n and n.startswith("encoder"))
    assert found[name] == "embeddings"


def test_gpt2s_matrices_are_known_to_be_transposed() -> None:
    groups = {group["name"]: group for group in tfo.param_groups(gpt2(), lr=1e-3)}
    assert "matrices" not in groups
    transposed = groups["matrices_transposed"]
    assert transposed["is_transposed"] is True
    assert transposed["role"] == "matrices"
    assert len(transposed["params"]) == 4
    assert not groups["embeddings"]["is_transposed"]


def test_embeddings_are_spared_if_asked() -> None:
    groups = tfo.param_groups(bert(), lr=1e-3, weight_decay=0.1, decay_embeddings=False)
    decay = {group["name"]: group["weight_decay"] for group in groups}
    assert decay == {"matrices": 0.1, "embeddings": 0.0, "vectors": 0.0}


def test_the_first_group_is_the_one_the_host_logs() -> None:
    for build in MODELS.values():
        assert tfo.param_groups(build(), lr=1e-3)[0]["role"] == "matrices"


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(4, 4), nn.Linear(4, 4)

    def get_output_embeddings(self) -> nn.Module:
        return self.output


class Gain(nn.Module):
    """A normalisation that no class name gives away."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))


class LlamaStyleRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class NormalizedLinear(nn.Linear):
    """A matrix, whatever its name begins with."""


@pytest.mark.parametrize(
    ("module", "role"),
    [
        (nn.LayerNorm((4, 4)), "vectors"),
        (nn.RMSNorm((4, 4)), "vectors"),
        (nn.BatchNorm1d(4), "vectors"),
        (LlamaStyleRMSNorm(), "vectors"),
        (Gain((1, 1, 8)), "vectors"),
        (Gain((8, 1)), "vectors"),
        (Gain((2, 8)), "others"),
        (nn.Linear(8, 1, bias=False), "matrices"),
        (NormalizedLinear(8, 8, bias=False), "matrices"),
        (nn.Embedding(1, 8), "embeddings"),
        (nn.Conv1d(4, 4, 1, bias=False), "others"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_roles_by_class_and_by_behaviour(module, role) -> None:
    assert set(roles(module).values()) == {role}


def test_tied_matrices_are_grouped_once_under_their_first_name() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    (group,) = tfo.param_groups(nn.Sequential(first, second), lr=1e-3)
    assert group["param_names"] == ["0.weight"]


def test_adapters_are_matrices_and_the_head_beside_them_is_a_head() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    found = roles(peft.get_peft_model(model, config))
    assert {role for name, role in found.items() if "lora_" in name} == {"matrices"}
    (head,) = (
        role for name, role in found.items() if name.endswith("default.weight") and "class" in name
    )
    assert head == "heads"


def lr_of(model: nn.Module, **options: Any) -> dict[str, float]:
    return {
        name: group["lr"]
        for group in tfo.param_groups(model, lr=1.0, **options)
        for name in group["param_names"]
    }


def test_layers_learn_slower_the_deeper_they_are() -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    groups = tfo.param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    found = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert found["classifier.weight"] == found["bert.pooler.dense.bias"] == 1.0
    assert found["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert found["bert.encoder.layer.0.output.LayerNorm.bias"] == 0.25
    assert found["bert.embeddings.word_embeddings.weight"] == 0.125
    assert groups[0]["lr"] == 1.0  # what the host logs
    by_name = {group["name"]: group for group in groups}
    assert len(by_name) == len(groups)
    assert by_name["encoder.0.vectors"]["weight_decay"] == 0.0
    assert by_name["encoder.0.matrices"]["weight_decay"] == 0.1
    assert "head.heads" in by_name


def test_both_stacks_of_an_encoder_decoder_decay() -> None:
    found = lr_of(t5(), layer_decay=0.5)
    for stack in ("encoder", "decoder"):
        assert found[f"{stack}.block.0.layer.0.SelfAttention.q.weight"] == 0.5
        assert found[f"{stack}.final_layer_norm.weight"] == 1.0
    assert found["shared.weight"] == 0.25


def test_multipliers_by_part_and_pattern_the_first_that_matches() -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    found = lr_of(
        model, multipliers={r"layer\.1\.": 3.0, "head": 5.0, "encoder": 2.0, "word_emb": 0.5}
    )
    assert found["bert.encoder.layer.1.output.dense.weight"] == 3.0
    assert found["bert.encoder.layer.0.output.dense.weight"] == 2.0
    assert found["classifier.weight"] == found["classifier.bias"] == 5.0
    assert found["bert.embeddings.word_embeddings.weight"] == 0.5
    assert found["bert.embeddings.position_embeddings.weight"] == 1.0
    names = [g["name"] for g in tfo.param_groups(model, lr=1.0, multipliers={"head": 5.0})]
    assert names == ["matrices", "embeddings", "heads*5", "vectors", "vectors*5"]


def test_layer_decay_and_multipliers_multiply_and_muon_keeps_its_matrices() -> None:
    model = bert()
    optimizer = tfo.build_optimizer(
        model, "muon", lr=0.02, layer_decay=0.5, multipliers={"embeddings": 0.1}
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["encoder.0.matrices"]["use_muon"]
    assert not groups["embeddings.embeddings*0.1"]["use_muon"]
    assert groups["encoder.1.matrices"]["lr"] == 0.01


def test_adapters_learn_by_layer_too() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    found = lr_of(peft.get_peft_model(model, config), layer_decay=0.5)
    prefix = "base_model.model.bert.encoder.layer"
    assert found[f"{prefix}.0.attention.self.query.lora_A.default.weight"] == 0.25
    assert found[f"{prefix}.1.attention.self.query.lora_B.default.weight"] == 0.5
    assert found["base_model.model.classifier.modules_to_save.default.weight"] == 1.0


@pytest.mark.parametrize(
    ("multipliers", "words"),
    [
        ({"heads": 2.0}, "'heads' matches no parameter.*did you mean 'head'"),
        ({"decoder": 2.0, "nothing": 2.0}, "'decoder' matches no parameter"),
        ({"bert": 2.0, r"bert\.encoder": 3.0}, "no earlier pattern matches"),
        ({"[": 2.0}, "'\\[' is no regular expression"),
        ({"head": 0}, "multipliers\\['head'\\] must be a number above 0, got 0"),
    ],
)
def test_refuses_patterns_without_effect(multipliers: dict[str, float], words: str) -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    with pytest.raises(ValueError, match=words):
        tfo.param_groups(model, lr=1e-3, multipliers=multipliers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 1e-3, "layer_decay": 0}, "layer_decay must be a number above 0, got 0"),
        ({"lr": 1e-3, "layer_decay": 1.1}, "layer_decay must be above 0 and at most 1, got 1.1"),
        ({"lr": 1e-3, "layer_decay": 0.9}, "layer_decay: Linear has no list of layers"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0.0"),
        ({"lr": "1e-3"}, "lr must be a number above 0, got the text '1e-3'"),
        ({"lr": True}, "lr must be a number above 0"),
        ({"lr": 1e-3, "weight_decay": -0.1}, "weight_decay must be a number, 0 or above, got -0.1"),
    ],
)
def test_refuses_numbers_outside_their_range(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        tfo.param_groups(nn.Linear(2, 2), **options)


def test_refuses_a_frozen_model() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        tfo.param_groups(nn.Linear(2, 2).requires_grad_(False), lr=1e-3)


def test_quantised_weights_rest_and_their_adapters_learn() -> None:
    """QLoRA: 4-bit matrices are no parameters to train, nor part of any group's count."""
    peft = pytest.importorskip("peft")
    quantised = pytest.importorskip("bitsandbytes").nn
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    for layer in model.bert.encoder.layer:
        whole = layer.attention.self.query
        layer.attention.self.query = quantised.Linear4bit(*whole.weight.shape, quant_type="nf4")
        layer.attention.self.query.load_state_dict(whole.state_dict())
    model = model.to("cpu")  # which quantises
    assert model.bert.encoder.layer[0].attention.self.query.weight.dtype == torch.uint8
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(model, config)
    groups = tfo.param_groups(model, lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    prefix = "base_model.model.bert.encoder.layer"
    assert rates[f"{prefix}.0.attention.self.query.lora_A.default.weight"] == 0.25e-3
    optimizer = tfo.build_optimizer(model, "adamw", lr=1e-2, weight_decay=0.1)
    before = model.state_dict()[f"{prefix}.0.attention.self.query.base_layer.weight"].clone()
    model(input_ids=torch.arange(6)[None], labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    after = model.state_dict()
    assert after[f"{prefix}.0.attention.self.query.base_layer.weight"].equal(before)
    assert after[f"{prefix}.0.attention.self.query.lora_B.default.weight"].any()


def test_what_fsdp1_has_flattened_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        """Stands for FSDP1's, whose pieces of parameters are all vectors."""

        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    with pytest.raises(ValueError, match="use FSDP2"):
        tfo.param_groups(FullyShardedDataParallel(), lr=1e-3)
