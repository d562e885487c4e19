"""Tiny models of every family the losses must be exact for."""

from collections.abc import Callable

import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
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

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
BART_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
DISTILBERT_SIZES = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
}
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPECIAL = {
    "pad_token_id": 0,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _bart() -> PreTrainedModel:
    sizes = {**BART_SIZES, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    return BartForConditionalGeneration(BartConfig(**sizes, dropout=0.0))


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(**T5_SIZES, dropout_rate=0.0))


def _distilbert() -> PreTrainedModel:
    config = DistilBertConfig(**DISTILBERT_SIZES, dropout=0.0, attention_dropout=0.0)
    return DistilBertForMaskedLM(config)


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(**GPT2_SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config)


NARROW = {**SIZES, **NO_DROPOUT, "embedding_size": 16}

# The families issue by issue: every head of this table is trained by the invariance tests.
TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, **NO_DROPOUT)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, **NO_DROPOUT)),
    "distilbert": _distilbert,
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**NARROW)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**NARROW)),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, **NO_DROPOUT)),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, **SPECIAL)),
    "t5": _t5,
    "bart": _bart,
    "gpt2": _gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}

# Heads that do something to their logits after the output embedding.
EDITED_LOGITS: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES,
            num_key_value_heads=1,
            head_dim=16,
            final_logit_softcapping=3.0,
            pad_token_id=0,
        )
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, pad_token_id=0, logit_scale=0.0625)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    "bart-bias": _bart,
}


def tiny(name: str, seed: int = 0) -> PreTrainedModel:
    """The model of that name with random weights, biases too, so that none goes unseen."""
    torch.manual_seed(seed)
    model = {**TINY, **EDITED_LOGITS}[name]()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean().round()), std=0.1)
    if name == "bart-bias":
        model.final_logits_bias.normal_()
    return model


def batch_for(model: PreTrainedModel, num_rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids with a different number of labels in every row."""
    generator = torch.Generator().manual_seed(seed)
    width = 12
    ids = torch.randint(5, VOCABULARY, (num_rows, width), generator=generator)
    num_labels = 2 + torch.arange(num_rows) * 7 % (width - 3)
    kept = torch.arange(width) < num_labels.unsqueeze(1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.where(kept, ids, -100),
    }
