"""Perturbed embeddings: directions and random starts belong to an example, not to a batch."""

from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification

from hf_tfopt.objectives.adversarial import FGM, PGD, FreeLB
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.consistency import RDrop
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.multitask import UncertaintyWeighting
from hf_tfopt.objectives.pretraining import Pretraining
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from tests.invariants.cases import Case, multitask, pretraining
from tests.invariants.cases.classification import NUM_CLASSES, bert, several, single
from tests.invariants.cases.language_modeling import rows
from tests.models import tiny


def classifier(**options: Any) -> Any:
    return bert(BertForSequenceClassification, num_labels=NUM_CLASSES, **options)


def with_two_masks(model: Any) -> Any:
    """Instead of dropout: the second half of a batch given twice loses other features."""

    def drop(_module: nn.Module, _inputs: Any, embeds: torch.Tensor) -> torch.Tensor:
        if not model.training:
            return embeds
        keep = torch.ones(2, 1, 1, embeds.shape[-1])
        keep[0, ..., ::3], keep[1, ..., 1::3] = 0, 0
        return (embeds.view(2, -1, *embeds.shape[1:]) * keep).view(embeds.shape)

    model.get_input_embeddings().register_forward_hook(drop)
    return model


CASES = {
    "fgm": Case(lambda: tiny("bert"), rows, lambda: FGM(LanguageModeling(), weight=0.5)),
    "pgd": Case(lambda: tiny("t5"), rows, lambda: PGD(LanguageModeling(), steps=2)),
    "fgm, tasks": Case(multitask.model, multitask.rows, lambda: FGM(UncertaintyWeighting())),
    "freelb": Case(lambda: tiny("gpt2"), rows, lambda: FreeLB(LanguageModeling(), steps=3)),
    # two terms with counts of their own, whose shares in a direction are those of the whole batch
    "pgd, words and pairs": Case(
        lambda: pretraining.made("bert"),
        pretraining.some_unlabelled,
        lambda: PGD(Pretraining(), steps=2),
    ),
    "fgm, classes": Case(classifier, single, lambda: FGM(Classification())),
    "r-drop": Case(
        lambda: with_two_masks(tiny("gpt2")), rows, lambda: RDrop(LanguageModeling(), alpha=2.0)
    ),
    "r-drop, several labels": Case(
        lambda: with_two_masks(classifier(problem_type="multi_label_classification")),
        several,
        lambda: RDrop(Classification()),
    ),
    # In fp64: the difference of two near outputs has too few digits in fp32 to agree to 1e-6.
    "vat": Case(
        lambda: classifier().double(),
        single,
        lambda: VirtualAdversarial(Classification(), steps=2),
    ),
    "smart": Case(
        lambda: tiny("t5").double(), rows, lambda: SMART(LanguageModeling(), epsilon=0.1)
    ),
}
