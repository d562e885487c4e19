"""Objectives: a model and a batch in, named loss sums out."""

from hf_tfopt.registry import Lazy, Registry

OBJECTIVES = Registry(
    "objective",
    {
        "language_modeling": Lazy("hf_tfopt.objectives.language_modeling:LanguageModeling"),
        "classification": Lazy("hf_tfopt.objectives.classification:Classification"),
        "model_loss": Lazy("hf_tfopt.objectives.model_loss:ModelLoss"),
    },
)

__all__ = ["OBJECTIVES"]
