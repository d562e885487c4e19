"""Schedules: number of updates made -> multiplier of every group's learning rate.

An entry takes the run's updates and how many of them warm up, then its own options, and returns a
`curves.Curve`.
"""

from hf_tfopt.registry import Lazy, Registry

SCHEDULES = Registry(
    "schedule",
    {
        "constant": Lazy("hf_tfopt.schedules.curves:constant"),
        "cosine": Lazy("hf_tfopt.schedules.curves:cosine"),
        "cosine_with_restarts": Lazy("hf_tfopt.schedules.curves:cosine_with_restarts"),
        "exponential": Lazy("hf_tfopt.schedules.curves:exponential"),
        "inverse_sqrt": Lazy("hf_tfopt.schedules.curves:inverse_sqrt"),
        "linear": Lazy("hf_tfopt.schedules.curves:linear"),
        "noam": Lazy("hf_tfopt.schedules.curves:noam"),
        "one_cycle": Lazy("hf_tfopt.schedules.curves:one_cycle"),
        "polynomial": Lazy("hf_tfopt.schedules.curves:polynomial"),
        "warmup_stable_decay": Lazy("hf_tfopt.schedules.curves:warmup_stable_decay"),
    },
)
