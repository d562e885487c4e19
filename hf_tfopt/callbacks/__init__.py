"""Callbacks: monitors watch, interventions do one named thing."""

from hf_tfopt.registry import Lazy, Registry

CALLBACKS = Registry(
    "callback",
    {
        "adaptive_weight_decay": Lazy("hf_tfopt.callbacks.weight_decay:AdaptiveWeightDecay"),
        "dataset_epochs": Lazy("hf_tfopt.callbacks.dataset_epochs:DatasetEpochs"),
        "evaluation_weights": Lazy("hf_tfopt.callbacks.evaluation_weights:EvaluationWeights"),
        "group_rates": Lazy("hf_tfopt.callbacks.group_rates:GroupRates"),
    },
)
