"""Callbacks: monitors watch, interventions do one named thing."""

from hf_tfopt.registry import Lazy, Registry

CALLBACKS = Registry(
    "callback",
    {
        "activation_monitor": Lazy("hf_tfopt.callbacks.activations:ActivationMonitor"),
        "adaptive_gradient_clipping": Lazy(
            "hf_tfopt.callbacks.adaptive_clipping:AdaptiveGradientClipping"
        ),
        "adaptive_weight_decay": Lazy("hf_tfopt.callbacks.weight_decay:AdaptiveWeightDecay"),
        "attention_monitor": Lazy("hf_tfopt.callbacks.attention:AttentionMonitor"),
        "clip_by_value": Lazy("hf_tfopt.callbacks.clipping:ClipByValue"),
        "dataset_epochs": Lazy("hf_tfopt.callbacks.dataset_epochs:DatasetEpochs"),
        "dropout_schedule": Lazy("hf_tfopt.callbacks.dropout:DropoutSchedule"),
        "evaluation_weights": Lazy("hf_tfopt.callbacks.evaluation_weights:EvaluationWeights"),
        "exponential_average": Lazy("hf_tfopt.callbacks.averaging:ExponentialAverage"),
        "gradual_unfreezing": Lazy("hf_tfopt.callbacks.freezing:GradualUnfreezing"),
        "gradient_clipping": Lazy("hf_tfopt.callbacks.clipping:GradientClipping"),
        "gradient_flow": Lazy("hf_tfopt.callbacks.gradient_flow:GradientFlow"),
        "gradient_monitor": Lazy("hf_tfopt.callbacks.gradients:GradientMonitor"),
        "gradient_noise": Lazy("hf_tfopt.callbacks.gradient_noise:GradientNoise"),
        "group_rates": Lazy("hf_tfopt.callbacks.group_rates:GroupRates"),
        "latest_weight_average": Lazy("hf_tfopt.callbacks.averaging:LatestWeightAverage"),
        "length_curriculum": Lazy("hf_tfopt.callbacks.length_curriculum:LengthCurriculum"),
        "live_log": Lazy("hf_tfopt.callbacks.live_log:LiveLog"),
        "loss_scale_monitor": Lazy("hf_tfopt.callbacks.loss_scale:LossScaleMonitor"),
        "masking_schedule": Lazy("hf_tfopt.callbacks.masking_schedule:MaskingSchedule"),
        "noise_scale": Lazy("hf_tfopt.callbacks.noise_scale:NoiseScale"),
        "percentile_clipping": Lazy("hf_tfopt.callbacks.adaptive_clipping:PercentileClipping"),
        "stability_guard": Lazy("hf_tfopt.callbacks.stability:StabilityGuard"),
        "stop_on_plateau": Lazy("hf_tfopt.callbacks.plateau:StopOnPlateau"),
        "stream_state": Lazy("hf_tfopt.callbacks.stream_state:StreamState"),
        "stochastic_weight_average": Lazy("hf_tfopt.callbacks.averaging:StochasticWeightAverage"),
        "memory_monitor": Lazy("hf_tfopt.callbacks.memory:MemoryMonitor"),
        "throughput_monitor": Lazy("hf_tfopt.callbacks.throughput:ThroughputMonitor"),
        "weight_monitor": Lazy("hf_tfopt.callbacks.weights:WeightMonitor"),
        "zclip": Lazy("hf_tfopt.callbacks.adaptive_clipping:ZClip"),
    },
)
