"""A teacher that mixes the examples of packed rows is refused; one that does not, teaches."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import hf_tfopt as tfo
from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.packing import pack
from tests.data import test_causal_collator as causal
from tests.data import test_collators as masked

ROW = 40


def batch_of(collator: Any, width: int = ROW) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lengths = [1, 1, *rng.integers(2, 24, 12)]
    ids = [rng.integers(5, masked.NUM_IDS, length).tolist() for length in lengths]
    return collator(list(pack(datasets.Dataset.from_dict({"input_ids": ids}), width)))


def with_opinions(model: PreTrainedModel) -> PreTrainedModel:
    """As of a trained model: what stands around a token weighs in."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "unpadded"])
def test_causal_teachers(implementation: str) -> None:
    """Those that the collator finds out as students; the others teach."""
    student = causal.make_model("llama", implementation)
    batch = batch_of(CausalLMCollator(masked.make_tokenizer(), model=student))
    tfo.Distillation(causal.make_model("qwen3", implementation)).prepare(student, batch)
    if implementation == "sdpa":  # the host makes the mask of each one's attention
        tfo.Distillation(causal.make_model("mistral", "eager")).prepare(student, batch)
        for build, _ in causal.MIXING.values():
            with pytest.raises(ValueError, match=r"would say other things than of each alone \("):
                tfo.Distillation(with_opinions(build())).prepare(student, batch)


def test_a_mask_is_of_one_attention() -> None:
    """Added to the scores, as eager attention does, truth values mask nothing."""
    student, teacher = (masked.make_model("bert", "sdpa") for _ in range(2))
    batch = batch_of(masked.make_collator(masked.make_tokenizer(), model=student, probability=0.3))
    tfo.Distillation(with_opinions(teacher)).prepare(student, batch)
    teacher.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="'eager' would read them as one text"):
        tfo.Distillation(teacher).prepare(student, batch)
