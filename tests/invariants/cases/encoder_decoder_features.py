"""What encoder-decoders learn from inside their teachers: each stack a term with its own count."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.features import AttentionMaps, CosineStates, HiddenStates, Relations
from hf_tfopt.objectives.projection import FeatureProjection
from tests.invariants.cases import Case
from tests.invariants.cases.distillation import NUM_CLASSES, in_eager, opinionated, padded
from tests.models import VOCABULARY

NUM_ENCODER, NUM_DECODER = 4, 3  # layers of a teacher; its student has two of each


def t5(seed: int, num_encoder: int = 2, num_decoder: int = 2, width: int = 32) -> PreTrainedModel:
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=width,
            d_kv=12,  # queries, keys and values are not as wide as the hidden states
            d_ff=48,
            num_layers=num_encoder,
            num_decoder_layers=num_decoder,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def bart(
    seed: int,
    num_encoder: int = 2,
    num_decoder: int = 2,
    kind: type[PreTrainedModel] = BartForConditionalGeneration,
    **sizes: object,
) -> PreTrainedModel:
    torch.manual_seed(seed)
    given = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": num_encoder,
        "decoder_layers": num_decoder,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "dropout": 0.0,
        "num_labels": NUM_CLASSES,
    }
    return kind(BartConfig(**{**given, **sizes}))


def wise_t5(width: int = 32) -> PreTrainedModel:
    return opinionated(t5(1, NUM_ENCODER, NUM_DECODER, width))


def wise_bart() -> PreTrainedModel:
    return opinionated(bart(1, NUM_ENCODER, NUM_DECODER))


def wise_classifier() -> PreTrainedModel:
    model = bart(1, NUM_ENCODER, NUM_DECODER, kind=BartForSequenceClassification)
    with torch.no_grad():  # as `opinionated`
        model.classification_head.out_proj.weight.mul_(200)
    return model


def translations(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Padded rows, and labels of another length that are padded differently."""
    labels = padded(num_rows, seed + 100)["input_ids"][:, :9].flip(0)
    return {**padded(num_rows, seed), "labels": torch.where(labels == 0, -100, labels)}


def texts(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Padded rows that end in BART's end of sentence, and their classes."""
    batch = padded(num_rows, seed)
    mask = batch["attention_mask"]
    is_last = torch.arange(mask.shape[1]) == mask.sum(-1, keepdim=True) - 1
    ids = batch["input_ids"].masked_fill(is_last, 2).masked_fill(mask == 0, 1)
    return {**batch, "input_ids": ids, "labels": batch["input_ids"][:, 0] % NUM_CLASSES}


CASES = {
    "features of t5": Case(
        lambda: t5(0),
        translations,
        lambda: Distillation(wise_t5(), features=[HiddenStates(0.1), Relations(num_heads=3)]),
    ),
    "features of t5 through a projection": Case(
        lambda: FeatureProjection(t5(0), 48).student,
        translations,
        lambda: Distillation(
            wise_t5(48), features=[HiddenStates(0.1, {"encoder": {-1: -1, 0: 1}, "decoder": None})]
        ),
    ),
    "features of bart": Case(
        lambda: in_eager(bart(0)),
        translations,
        lambda: Distillation(
            in_eager(wise_bart()),
            features=[AttentionMaps(), CosineStates(), Relations(layers={"decoder": {0: 1}})],
        ),
    ),
    "features of bart's classifier": Case(
        lambda: bart(0, kind=BartForSequenceClassification),
        texts,
        lambda: Distillation(
            wise_classifier(), features=[HiddenStates(), Relations(layers={"decoder": None})]
        ),
    ),
}
