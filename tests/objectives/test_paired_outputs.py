"""A batch given twice, and what of it can be repeated."""

import pytest
import torch

from hf_tfopt.objectives.adversarial import FGM, FreeLB
from hf_tfopt.objectives.consistency import RDrop
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.paired_outputs import twice
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from hf_tfopt.surgery.attention import unpadded_attention
from tests.models import tiny
from tests.objectives.adversarial_models import assert_same, gradients, tokens, trained


def test_rows_are_repeated_and_numbers_are_not() -> None:
    batch = {
        "input_ids": torch.arange(6).view(2, 3),
        "labels": torch.tensor([1, 0]),
        "masks": {"full": torch.zeros(2, 1, 3, 3)},
        "scale": torch.tensor(2.0),
        "max_length_q": 3,
        "cu_seq_lens_q": torch.tensor([0, 2, 5, 6], dtype=torch.int32),
    }
    both = twice(batch)
    assert both["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5]] * 2
    assert both["labels"].tolist() == [1, 0, 1, 0]
    assert both["masks"]["full"].shape == (4, 1, 3, 3)
    assert both["scale"] == 2 and both["max_length_q"] == 3
    assert both["cu_seq_lens_q"].tolist() == [0, 2, 5, 6, 8, 11, 12]
    assert both["cu_seq_lens_q"].dtype == torch.int32


def test_what_has_no_rows_is_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"position_ids of the batch \(Tensor of shape \(3, 2, 3"):
        twice({"input_ids": ids, "position_ids": torch.zeros(3, 2, 3)})
    with pytest.raises(ValueError, match=r"attention_mask of the batch \(object\) cannot be"):
        twice({"input_ids": ids, "attention_mask": object()})


@pytest.mark.parametrize("kind", [FGM, FreeLB, RDrop, VirtualAdversarial, SMART])
def test_examples_end_to_end_are_the_padded_ones(kind: type) -> None:
    """The same sentences with and without padding: the same terms and gradients."""
    batch = tokens()
    model = tiny("modernbert").double().train()
    expected = trained(kind(LanguageModeling()), model, batch)
    of_padded = gradients(model)
    keep = batch["attention_mask"].bool()
    ends = torch.cat([torch.zeros(1), keep.sum(1).cumsum(0)]).int()
    flat = {
        "input_ids": batch["input_ids"][keep].unsqueeze(0),
        "labels": batch["labels"][keep].unsqueeze(0),
        "position_ids": (keep.cumsum(1) - 1)[keep].unsqueeze(0),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": 12,
        "max_length_k": 12,
    }
    unpadded_attention(model)
    found = trained(kind(LanguageModeling()), model, flat)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-12), name
    assert_same(gradients(model), of_padded)
