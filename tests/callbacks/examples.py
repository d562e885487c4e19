"""One of every callback that the contract tests train with, at settings that act in four steps.

A line for each entry of `CALLBACKS`; those that measure do so in every step.
"""

from collections.abc import Callable

from transformers import TrainerCallback

import hf_tfopt as tfo

EXAMPLES: dict[str, Callable[[], TrainerCallback]] = {
    "activation_monitor": lambda: tfo.ActivationMonitor(every=1),
    "adaptive_gradient_clipping": lambda: tfo.AdaptiveGradientClipping(0.001),
    "adaptive_weight_decay": lambda: tfo.AdaptiveWeightDecay(0.02),
    "attention_monitor": lambda: tfo.AttentionMonitor(every=1, num_examples=2),
    "clip_by_value": lambda: tfo.ClipByValue(0.01),
    "gradient_clipping": lambda: tfo.GradientClipping("layer", {"encoder.*": 0.05, "head": 0.2}),
    "gradient_noise": lambda: tfo.GradientNoise(eta=1e-6),
    "percentile_clipping": lambda: tfo.PercentileClipping(window=3),
    "zclip": lambda: tfo.ZClip(z=0.1, warmup_steps=2),
    "gradient_flow": lambda: tfo.GradientFlow(every=1),
    "gradient_monitor": lambda: tfo.GradientMonitor(every=1),
    "loss_scale_monitor": lambda: tfo.LossScaleMonitor(),
    "noise_scale": lambda: tfo.NoiseScale(every=1),
    "weight_monitor": lambda: tfo.WeightMonitor(every=1),
    "group_rates": lambda: tfo.GroupRates(),
    "length_curriculum": lambda: tfo.LengthCurriculum(4, 3, end=12, multiple=4),
    "masking_schedule": lambda: tfo.MaskingSchedule(0.3, 0.1, probability=0.3),
    "live_log": lambda: tfo.LiveLog(),
    "memory_monitor": lambda: tfo.MemoryMonitor(every=1),
    "throughput_monitor": lambda: tfo.ThroughputMonitor(peak_flops=1e12, num_warmup_steps=0),
    "exponential_average": lambda: tfo.ExponentialAverage(decay=0.9),
    "stochastic_weight_average": lambda: tfo.StochasticWeightAverage(start=0.25),
    "latest_weight_average": lambda: tfo.LatestWeightAverage(num=2, every=1),
    "stream_state": lambda: tfo.StreamState(),
    "stability_guard": lambda: tfo.StabilityGuard(snapshot_every=1),
    "gradual_unfreezing": lambda: tfo.GradualUnfreezing(every=1),
    # none in these steps: dropout is not the same on two processes as on one
    "dropout_schedule": lambda: tfo.DropoutSchedule(0.0, 1.0, start=1.0, end=1.0, rate=0.2),
    "stop_on_plateau": lambda: tfo.StopOnPlateau("loss", patience=9, num_smoothed=3),
}
# Callbacks of the host's own kind, whose tests are their own.
PLAIN = {"dataset_epochs", "evaluation_weights"}
# What they do is not for the callbacks of a stock Trainer; they say so before the first step.
JOINED = {"length_curriculum", "masking_schedule"}
# Without fp16 it has nothing to log.
SILENT = {"loss_scale_monitor"}
