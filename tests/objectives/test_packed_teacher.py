"""A teacher that mixes the examples of packed rows is refused; one that does not, teaches."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import hf_tfopt as tfo
from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.classification_collator import ClassificationCollator
from hf_tfopt.data.packing import pack
from hf_tfopt.objectives.distillation import Distillation
from tests.data import test_causal_collator as causal
from tests.data import test_classification_collator as classes
from tests.data import test_collators as masked

ROW = 40


def documents() -> datasets.Dataset:
    rng = np.random.default_rng(0)
    lengths = [1, 1, *rng.integers(2, 24, 12)]
    ids = [rng.integers(5, masked.NUM_IDS, length).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids})


def batch_of(collator: Any) -> dict[str, Any]:
    return collator(list(pack(documents(), ROW)))


def with_opinions(model: PreTrainedModel) -> PreTrainedModel:
    """As of a trained model: what stands around a token weighs in."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    return model


def loss_of(objective: Distillation, model: PreTrainedModel, batch: Any) -> torch.Tensor:
    objective.prepare(model, batch)
    found, _ = objective.terms(model.train(), model, batch, False)
    return found["distillation"].sum


@pytest.mark.parametrize("implementation", ["sdpa", "unpadded"])
def test_causal_teachers(implementation: str) -> None:
    """Those that the collator finds out as students; the others teach."""
    student = causal.make_model("llama", implementation)
    batch = batch_of(CausalLMCollator(masked.make_tokenizer(), model=student))
    Distillation(causal.make_model("qwen3", implementation)).prepare(student, batch)
    if implementation == "sdpa":  # the host makes the mask of each one's attention
        Distillation(causal.make_model("mistral", "eager")).prepare(student, batch)
        for build, _ in causal.MIXING.values():
            with pytest.raises(ValueError, match=r"would say other things than of each alone \("):
                Distillation(with_opinions(build())).prepare(student, batch)


def test_a_mask_is_of_one_attention() -> None:
    """Added to the scores, as eager attention does, truth values mask nothing."""
    student, teacher = (masked.make_model("bert", "sdpa") for _ in range(2))
    batch = batch_of(masked.make_collator(masked.make_tokenizer(), model=student, probability=0.3))
    Distillation(with_opinions(teacher)).prepare(student, batch)
    teacher.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="'eager' would read them as one text"):
        Distillation(teacher).prepare(student, batch)


def test_packed_rows_have_cached_answers(tmp_path: Path) -> None:
    """Whatever rows they share a batch with, whose padding has no mask."""
    student, wise = causal.make_model("llama"), causal.make_model("qwen3")
    collator = CausalLMCollator(masked.make_tokenizer(), model=student)
    rows = pack(documents(), ROW)
    cached = tfo.cache_teacher(wise, rows, collator, tmp_path / "cache", k=None, batch_size=1)
    own = list(cached.dataset)
    assert len({len(row["input_ids"]) for row in own}) > 1, "else there is no padding"
    batch = cached.collator(collator)(own)
    found = [loss_of(Distillation(t), student, batch) for t in (cached, wise)]
    torch.testing.assert_close(*found, rtol=2e-5, atol=0)  # fp32 logits of other shapes
    mixing = with_opinions(causal.MIXING["a mask of its own"][0]())
    with pytest.raises(ValueError, match="would say other things"):
        tfo.cache_teacher(mixing, rows, collator, tmp_path / "mixed")


@pytest.mark.parametrize("implementation", ["sdpa", "unpadded"])
def test_several_examples_in_a_row_have_none(implementation: str, tmp_path: Path) -> None:
    model = classes.attended(classes.model_for("classes"), implementation)
    data = datasets.Dataset.from_list(classes.examples("classes", 8))
    collator = ClassificationCollator(masked.make_tokenizer(), model=model)
    with pytest.raises(ValueError, match=r"several examples in a row, .* is_packed=False"):
        tfo.cache_teacher(model, data, collator, tmp_path)
