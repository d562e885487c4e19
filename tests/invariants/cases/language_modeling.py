"""Every family of language models, and the options of its loss."""

import torch

from hf_tfopt.objectives.language_modeling import LanguageModeling
from tests.invariants.cases import Case
from tests.models import TINY, VOCABULARY, batch_for, tiny

# 0 for some tokens; the labels of one row weigh much more than those of another.
WEIGHTS = torch.arange(VOCABULARY) % 7 / 3


def rows(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    return batch_for(None, num_rows, seed)


def few(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Most rows without any label: most batches of one, and a process's part of the first step."""
    batch = rows(num_rows, seed)
    batch["labels"][torch.arange(num_rows) % 6 != 0] = -100
    return batch


CASES = {
    **{name: Case(lambda name=name: tiny(name), rows, LanguageModeling) for name in TINY},
    "smoothing": Case(
        lambda: tiny("bert"), rows, lambda: LanguageModeling(label_smoothing=0.1, z_loss=1e-2)
    ),
    "few labels": Case(lambda: tiny("bert"), few, LanguageModeling),
    "focal": Case(lambda: tiny("gpt2"), rows, lambda: LanguageModeling(focal_gamma=2.0)),
    "token weights": Case(
        lambda: tiny("bert"), few, lambda: LanguageModeling(class_weights=WEIGHTS)
    ),
    "token weights causal": Case(
        lambda: tiny("gpt2"), rows, lambda: LanguageModeling(0.1, 1e-2, class_weights=WEIGHTS)
    ),
    "full logits": Case(lambda: tiny("t5"), rows, lambda: LanguageModeling(at_head=False)),
}
