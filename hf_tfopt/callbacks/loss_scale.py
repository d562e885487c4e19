"""What fp16's loss scaling does."""

from typing import Any

from hf_tfopt.callbacks.base import Monitor
from hf_tfopt.callbacks.training import Scalars, Training


class LossScaleMonitor(Monitor):
    """The factor that keeps fp16's gradients from vanishing, and the updates it has cost.

    Where the loss is not scaled (fp32, bf16, fp16 on a CPU, and DeepSpeed, which scales it itself)
    nothing is logged.

    | name | what |
    |---|---|
    | `loss_scale` | what the loss is multiplied with, as of the next step |
    | `num_skipped_updates` | steps since the last log whose gradients overflowed: not updated |

    Costs nothing in a step; a log reads one number back.

    Paper: none.
    """

    def __init__(self) -> None:
        super().__init__()

    def begin(self, training: Training) -> None:
        """Count from where it was."""
        self.remembered.setdefault("num_skipped", 0)

    def updated(self, training: Training) -> None:
        """Count the updates that accelerate did not make."""
        if _scaler_of(training) is not None and training.optimizer.step_was_skipped:
            self.remembered["num_skipped"] += 1

    def scalars(self, training: Training) -> Scalars:
        """The scale as it is."""
        scaler = _scaler_of(training)
        if scaler is None or not scaler.is_enabled():
            return {}
        num_skipped, self.remembered["num_skipped"] = self.remembered["num_skipped"], 0
        return {"loss_scale": scaler.get_scale(), "num_skipped_updates": num_skipped}


def _scaler_of(training: Training) -> Any:
    return getattr(training.optimizer, "scaler", None)  # of accelerate's wrapper
