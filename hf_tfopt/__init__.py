"""hf_tfopt: how well and how fast a Transformer trains, as an add-on to the Hugging Face Trainer.

Every public name, grouped by station in the order of the data's flow. Names load on first use, so
`import hf_tfopt` imports neither torch nor transformers.
"""

from hf_tfopt.registry import public_names

__version__ = "0.1.0"

_EXPORTS = {
    # data: text -> documents -> rows -> batch
    "load_corpus": "hf_tfopt.data.corpus",
    "train_tokenizer": "hf_tfopt.data.tokenizer",
    "tokenize": "hf_tfopt.data.tokenizer",
    "sentence_pairs": "hf_tfopt.data.sentence_pairs",
    "pack": "hf_tfopt.data.packing",
    "ArrowRows": "hf_tfopt.data.rows",
    "mix": "hf_tfopt.data.mixing",
    "MaskedLMCollator": "hf_tfopt.data.collators",
    "CausalLMCollator": "hf_tfopt.data.causal_collator",
    "MultitaskCollator": "hf_tfopt.data.multitask_collator",
    "COLLATORS": "hf_tfopt.data",
    # surgery: model -> the same model, edited
    "initialize_from_corpus": "hf_tfopt.surgery.initialization",
    "unpadded_attention": "hf_tfopt.surgery.attention",
    "student_from": "hf_tfopt.surgery.student",
    "freeze": "hf_tfopt.surgery.freezing",
    "set_dropout": "hf_tfopt.surgery.dropout",
    "MultitaskModel": "hf_tfopt.surgery.multitask",
    "SURGERIES": "hf_tfopt.surgery",
    # losses: tensors -> (sum, count)
    "LossSum": "hf_tfopt.losses.reduction",
    "loss_func": "hf_tfopt.losses.for_trainer",
    "LOSSES": "hf_tfopt.losses",
    # objectives: model, batch -> named loss sums
    "LanguageModeling": "hf_tfopt.objectives.language_modeling",
    "Pretraining": "hf_tfopt.objectives.pretraining",
    "Classification": "hf_tfopt.objectives.classification",
    "ModelLoss": "hf_tfopt.objectives.model_loss",
    "Distillation": "hf_tfopt.objectives.distillation",
    "HiddenStates": "hf_tfopt.objectives.features",
    "AttentionMaps": "hf_tfopt.objectives.features",
    "Relations": "hf_tfopt.objectives.features",
    "CosineStates": "hf_tfopt.objectives.features",
    "FeatureProjection": "hf_tfopt.objectives.projection",
    "cache_teacher": "hf_tfopt.objectives.teacher_cache",
    "CachedTeacher": "hf_tfopt.objectives.cached_rows",
    "Multitask": "hf_tfopt.objectives.multitask",
    "UncertaintyWeighting": "hf_tfopt.objectives.multitask",
    "GradNorm": "hf_tfopt.objectives.gradient_balance",
    "PCGrad": "hf_tfopt.objectives.gradient_balance",
    "FGM": "hf_tfopt.objectives.adversarial",
    "PGD": "hf_tfopt.objectives.adversarial",
    "FreeLB": "hf_tfopt.objectives.adversarial",
    "VirtualAdversarial": "hf_tfopt.objectives.virtual_adversarial",
    "SMART": "hf_tfopt.objectives.virtual_adversarial",
    "RDrop": "hf_tfopt.objectives.consistency",
    "OBJECTIVES": "hf_tfopt.objectives",
    # optimizers: model -> parameter groups -> optimizer
    "optimizer": "hf_tfopt.optimizers.for_trainer",
    "build_optimizer": "hf_tfopt.optimizers.for_trainer",
    "param_groups": "hf_tfopt.optimizers.param_groups",
    "Lamb": "hf_tfopt.optimizers.lamb",
    "Muon": "hf_tfopt.optimizers.muon",
    "linear_scaling": "hf_tfopt.optimizers.scaling",
    "square_root_scaling": "hf_tfopt.optimizers.scaling",
    "width_scaling": "hf_tfopt.optimizers.scaling",
    "mup_multipliers": "hf_tfopt.optimizers.scaling",
    "clip_grad_norm": "hf_tfopt.optimizers.clipping",
    "OPTIMIZERS": "hf_tfopt.optimizers",
    # schedules: number of updates -> multiplier of each group's lr
    "schedule": "hf_tfopt.schedules.for_trainer",
    "build_scheduler": "hf_tfopt.schedules.for_trainer",
    "SCHEDULES": "hf_tfopt.schedules",
    # callbacks: monitors watch, interventions do one named thing
    "DatasetEpochs": "hf_tfopt.callbacks.dataset_epochs",
    "AdaptiveWeightDecay": "hf_tfopt.callbacks.weight_decay",
    "EvaluationWeights": "hf_tfopt.callbacks.evaluation_weights",
    "GroupRates": "hf_tfopt.callbacks.group_rates",
    "LiveLog": "hf_tfopt.callbacks.live_log",
    "estimate_memory": "hf_tfopt.callbacks.memory_estimate",
    "MemoryMonitor": "hf_tfopt.callbacks.memory",
    "ThroughputMonitor": "hf_tfopt.callbacks.throughput",
    "GradientClipping": "hf_tfopt.callbacks.clipping",
    "ClipByValue": "hf_tfopt.callbacks.clipping",
    "AdaptiveGradientClipping": "hf_tfopt.callbacks.adaptive_clipping",
    "ZClip": "hf_tfopt.callbacks.adaptive_clipping",
    "PercentileClipping": "hf_tfopt.callbacks.adaptive_clipping",
    "GradientNoise": "hf_tfopt.callbacks.gradient_noise",
    "ActivationMonitor": "hf_tfopt.callbacks.activations",
    "AttentionMonitor": "hf_tfopt.callbacks.attention",
    "ExponentialAverage": "hf_tfopt.callbacks.averaging",
    "StochasticWeightAverage": "hf_tfopt.callbacks.averaging",
    "LatestWeightAverage": "hf_tfopt.callbacks.averaging",
    "GradualUnfreezing": "hf_tfopt.callbacks.freezing",
    "DropoutSchedule": "hf_tfopt.callbacks.dropout",
    "StopOnPlateau": "hf_tfopt.callbacks.plateau",
    "load_average": "hf_tfopt.callbacks.averaged_weights",
    "GradientMonitor": "hf_tfopt.callbacks.gradients",
    "GradientFlow": "hf_tfopt.callbacks.gradient_flow",
    "NoiseScale": "hf_tfopt.callbacks.noise_scale",
    "WeightMonitor": "hf_tfopt.callbacks.weights",
    "LossScaleMonitor": "hf_tfopt.callbacks.loss_scale",
    "StabilityGuard": "hf_tfopt.callbacks.stability",
    "monitors": "hf_tfopt.callbacks.monitors",
    "CALLBACKS": "hf_tfopt.callbacks",
    # trainer: the few overrides that have no constructor slot
    "TfoptMixin": "hf_tfopt.trainer",
    "TfoptTrainer": "hf_tfopt.trainer",
    "TfoptSeq2SeqTrainer": "hf_tfopt.trainer",
    "attach": "hf_tfopt.attachment",
    "check_loss_scaling": "hf_tfopt.loss_scaling",
    # the run
    "PRESETS": "hf_tfopt.presets",
    "Recipe": "hf_tfopt.recipe",
    "load_recipe": "hf_tfopt.recipe",
}

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public_names(__name__, _EXPORTS)
