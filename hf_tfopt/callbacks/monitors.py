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

    `tfo.attach(trainer, callbacks=tfo.monitors())` is bit-equal to training without them. One that
    cannot watch this model or engine (attention that is not seen, gradients under DeepSpeed) is
    switched off with a warning; made by its own name it refuses such a training.

    Args:
        every: steps from one measured step to the next, at least 1; None: the steps whose loss is
            logged, and of what costs more those at least 50 apart.

    Raises:
        ValueError: `every` below 1.
    """
    return [
        GroupRates(),
        GradientMonitor(every).where_possible(),
        GradientFlow(every).where_possible(),
        WeightMonitor(every).where_possible(),
        ActivationMonitor(every).where_possible(),
        AttentionMonitor(every).where_possible(),
        MemoryMonitor(every),
        ThroughputMonitor(),
        LossScaleMonitor(),
    ]
