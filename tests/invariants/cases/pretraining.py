"""Every head for words and pairs of sentences that the host has, with its two labels."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    BertConfig,
    BertForPreTraining,
    BigBirdConfig,
    BigBirdForPreTraining,
    ErnieConfig,
    ErnieForPreTraining,
    FNetConfig,
    FNetForPreTraining,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    MobileBertConfig,
    MobileBertForPreTraining,
)

from hf_tfopt.objectives.pretraining import Pretraining
from tests.invariants.cases import Case
from tests.models import NO_DROPOUT, SIZES, batch_for


def _mobilebert() -> Any:
    bottleneck = {"intra_bottleneck_size": 16, "embedding_size": 16, "num_feedforward_networks": 1}
    return MobileBertForPreTraining(MobileBertConfig(**SIZES, **NO_DROPOUT, **bottleneck))


def _albert() -> Any:
    sizes = {**SIZES, **NO_DROPOUT, "embedding_size": 16, "classifier_dropout_prob": 0.0}
    return AlbertForPreTraining(AlbertConfig(**sizes))


def _fnet() -> Any:
    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    return FNetForPreTraining(FNetConfig(**sizes, hidden_dropout_prob=0.0))


def _big_bird() -> Any:
    config = BigBirdConfig(**SIZES, **NO_DROPOUT, attention_type="original_full")
    return BigBirdForPreTraining(config)


MODELS: dict[str, Callable[[], Any]] = {
    "albert": _albert,
    "bert": lambda: BertForPreTraining(BertConfig(**SIZES, **NO_DROPOUT)),
    "big_bird": _big_bird,
    "ernie": lambda: ErnieForPreTraining(ErnieConfig(**SIZES, **NO_DROPOUT)),
    "fnet": _fnet,
    "megatron-bert": lambda: MegatronBertForPreTraining(MegatronBertConfig(**SIZES, **NO_DROPOUT)),
    "mobilebert": _mobilebert,
}


def made(name: str) -> Any:
    """The model with random weights, the same at every call."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean().round()), std=0.1)
    return model


def pairs(num_rows: int, seed: int, label: str = "next_sentence_label") -> dict[str, torch.Tensor]:
    """Token ids with other numbers of labelled words in every row, and a label of each pair."""
    batch = batch_for(None, num_rows, seed)
    generator = torch.Generator().manual_seed(seed)
    width = batch["input_ids"].shape[1]
    middle = torch.randint(2, width - 2, (num_rows, 1), generator=generator)
    return {
        **batch,
        "token_type_ids": (torch.arange(width) >= middle).long(),
        label: torch.randint(2, (num_rows,), generator=generator),
    }


def some_unlabelled(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Some pairs without a label, some rows without a labelled word."""
    batch = pairs(num_rows, seed)
    batch["next_sentence_label"][1::3] = -100
    batch["labels"][::4] = -100
    return batch


CASES = {
    **{
        f"pretraining-{name}": Case(lambda name=name: made(name), pairs, Pretraining)
        for name in ("bert", "albert", "mobilebert")
    },
    "pretraining-some": Case(
        lambda: made("bert"), some_unlabelled, lambda: Pretraining(label_smoothing=0.1)
    ),
}
