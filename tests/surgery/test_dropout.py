"""Every dropout rate of a model is found, and known for attention's or not."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

import hf_tfopt as tfo
from hf_tfopt.surgery.dropout import dropout_sites
from tests.models import BART_SIZES, SIZES, SPECIAL, batch_for

HIDDEN, ATTENTION = 0.125, 0.25
COMMON = {**SIZES, "hidden_dropout_prob": HIDDEN, "attention_probs_dropout_prob": ATTENTION}
OTHER = {"dropout": HIDDEN, "attention_dropout": ATTENTION}
NARROW = {"vocab_size": 97, "num_layers": 1, "num_heads": 2, "d_model": 32}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**COMMON)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**COMMON)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**COMMON)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**COMMON)),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(
        DebertaV2Config(**COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=97, dim=32, n_layers=1, n_heads=2, hidden_dim=48, **OTHER)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97,
            n_embd=32,
            n_layer=1,
            n_head=2,
            resid_pdrop=HIDDEN,
            embd_pdrop=HIDDEN,
            attn_pdrop=ATTENTION,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=ATTENTION)),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            **BART_SIZES,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            activation_dropout=HIDDEN,
            encoder_layerdrop=0.5,
            **OTHER,
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=48,
            word_embed_proj_dim=32,
            layerdrop=0.5,
            **OTHER,
        )
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_rates_are_told_apart(name: str) -> None:
    """By what the config says of each: the two are never equal here."""
    sites = dropout_sites(MODELS[name]())
    found = {(site.rate, site.is_attention) for site in sites.values()}
    expected = {(HIDDEN, False), (ATTENTION, True)}
    assert found == (expected if name != "llama" else {(ATTENTION, True)})


def test_t5_and_modernbert_say_one_rate_for_several() -> None:
    config = T5Config(**NARROW, d_kv=16, d_ff=48, dropout_rate=HIDDEN)
    sites = dropout_sites(T5ForConditionalGeneration(config))
    of_attention = {name for name, site in sites.items() if site.is_attention}
    assert of_attention == {name for name in sites if name.endswith("Attention.dropout")}
    config = ModernBertConfig(**SIZES, **SPECIAL, attention_dropout=ATTENTION)
    sites = dropout_sites(ModernBertForMaskedLM(config))
    of_attention = {name for name, site in sites.items() if site.is_attention}
    assert of_attention == {f"model.layers.{i}.attn.attention_dropout" for i in (0, 1)}
    assert not sites["model.layers.0.attn.out_drop.p"].is_attention


@pytest.mark.parametrize("name", MODELS)
def test_without_dropout_two_passes_are_equal_and_with_it_they_differ(name: str) -> None:
    model = MODELS[name]().train()
    if hasattr(model, "layerdrop") or name in ("bart", "opt"):
        for module in model.modules():
            if hasattr(module, "layerdrop"):
                module.layerdrop = 0.0
    config = model.config.to_dict()
    batch = {k: v for k, v in batch_for(model).items() if k != "labels"}

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(**batch).logits for _ in range(2)]

    for rate, attention, are_equal in [(0.0, None, True), (0.0, 0.5, False), (0.5, 0.0, False)]:
        if name == "llama" and attention == 0.0:
            continue  # has no other
        report = tfo.set_dropout(model, rate, attention)
        assert set(report.values()) <= {rate, attention}
        assert torch.equal(*outputs()) == are_equal, (rate, attention)
    assert model.config.to_dict() == config


def test_what_cannot_be_set_is_refused() -> None:
    for rate, attention in [(1.0, None), (-0.1, None), (0.1, 1.5)]:
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            tfo.set_dropout(MODELS["bert"](), rate, attention)
    with pytest.raises(ValueError, match="has no dropout to set"):
        tfo.set_dropout(nn.Linear(2, 2), 0.1)
