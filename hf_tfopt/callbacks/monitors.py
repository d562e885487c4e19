"""The monitors that any training can have."""

from hf_tfopt.callbacks.activations import ActivationMonitor
from hf_tfopt.callbacks.attention import AttentionMonitor
from hf_tfopt.callbacks.base import Monitor
from hf_tfopt.callbacks.gradient_flow import GradientFlow
from hf_tfopt.callbacks.gradients import GradientMonitor
from hf_tfopt.callbacks.group_rates import GroupRates
from hf_tfopt.callbacks.loss_scale import LossScaleMonitor
from hf_tfopt.callbacks.memory import MemoryMonitor
from hf_tfopt.callbacks.throughput import ThroughputMonitor
from hf_tfopt.callbacks.weights import WeightMonitor


def monitors(every: int | None = None) -> list[Monitor]:
    """All monitors, new ones, but `NoiseScale`: it needs several micro-batches or processes.

    `tfo.attach(trainer, callbacks=tfo.monitors())` is bit-equal to training without them. Leave out
    what your model or engine does not have: `AttentionMonitor` refuses models whose attention it
    cannot see, and the monitors of gradients refuse DeepSpeed.

    Args:
        every: steps from one measured step to the next, at least 1; None: the steps whose loss is
            logged.

    Raises:
        ValueError: `every` below 1.
    """
    return [
        GroupRates(),
        GradientMonitor(every),
        GradientFlow(every),
        WeightMonitor(every),
        ActivationMonitor(every),
        AttentionMonitor(every),
        MemoryMonitor(every),
        ThroughputMonitor(),
        LossScaleMonitor(),
    ]
