"""The objective that suits a model and its first batch, found by trying."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.gradient_balance import objective_for
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.model_loss import ModelLoss
from hf_tfopt.objectives.pretraining import Pretraining
from hf_tfopt.objectives.sentence_head import pair_label, sentence_head
from hf_tfopt.surgery.multitask import MultitaskModel

logger = logging.getLogger(__name__)


def automatic(model: nn.Module, batch: Mapping[str, Any]) -> Objective | None:
    """The first objective that equals the model's own loss, prepared; None if none does.

    For a `MultitaskModel` that of its tasks. Else in this order: words and pairs of sentences where
    the batch has labels of pairs, language modelling (through the head, where it can),
    classification, and the model's own loss with its mean undone. Each compares itself with the
    model's loss; where none fits, the log says why.

    Args:
        model: without wrappers.
        batch: a first batch on its device, with labels.
    """
    reasons: list[str] = []
    for objective in _candidates(model, batch):
        try:
            objective.bind(model)
            objective.prepare(model, batch)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if reasons and isinstance(objective, ModelLoss):
            mean = objective.mean
            logger.warning("Training on the model's own loss, a mean over %s: %s", mean, reasons[0])
        return objective
    logger.warning("Training on the model's own loss, scaled by the host: %s", reasons[0])
    return None


def _candidates(model: Any, batch: Mapping[str, Any]) -> list[Objective]:
    if isinstance(model, MultitaskModel):
        return [objective_for(model)]
    embedding = getattr(model, "get_output_embeddings", lambda: None)()
    has_pairs = pair_label(batch) is not None and sentence_head(model) is not None
    has_classes = "Classification" in type(model).__name__
    return [
        *([Pretraining()] if has_pairs else []),
        *([LanguageModeling()] if embedding is not None else []),
        *([Classification()] if has_classes else []),
        ModelLoss(),
    ]
