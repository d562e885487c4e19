"""What fp16's loss scaling does."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hf_tfopt.callbacks.readings import Numbers, ReadingMonitor
from hf_tfopt.callbacks.training import Scalars, Training


class LossScaleMonitor(ReadingMonitor):
    """The factor that keeps fp16's gradients from vanishing, and the updates it has cost.

    An update is skipped where the scale is made smaller. (Accelerate's `step_was_skipped` is False
    with fused optimizers, the host's default, which skip by themselves.) Where the loss is not
    scaled (fp32, bf16, fp16 on a CPU, and DeepSpeed, which scales it itself) nothing is logged.

    | name | what |
    |---|---|
    | `loss_scale` | what the loss is multiplied with, as of the next step |
    | `num_skipped_updates` | steps since the last log whose gradients overflowed: not updated |

    Costs two copies of one number in a step.

    Paper: none.
    """

    def __init__(self) -> None:
        super().__init__(every=1)
        self._before: Tensor | None = None

    def release(self) -> None:
        """Nothing is measured."""
        super().release()
        self._before = None

    def begin(self, training: Training) -> None:
        """Count from where it was."""
        super().begin(training)
        self.remembered.setdefault("num_skipped", 0)

    def measure_gradients(self, training: Training) -> None:
        """The scale before the update, which may change it."""
        self._before = scale_of(training)

    def measure_update(self, training: Training) -> None:
        """The scale after the update."""
        before, after = self._before, scale_of(training)
        if before is not None and after is not None:
            self.take(training, (), {"is_skipped": after < before})

    def read(self, training: Training, step: int, names: Sequence[str], numbers: Numbers) -> None:
        """Count."""
        self.remembered["num_skipped"] += int(numbers["is_skipped"][0])

    def report(self, training: Training) -> Scalars:
        """The scale as it is, and what was counted."""
        scale = scale_of(training)
        if scale is None:
            return {}
        num_skipped, self.remembered["num_skipped"] = self.remembered["num_skipped"], 0
        return {"loss_scale": scale, "num_skipped_updates": num_skipped}


def scale_of(training: Training) -> Tensor | None:
    """A copy of what the loss is multiplied with: [] on its device; None: it is not scaled."""
    scaler: Any = getattr(training.optimizer, "scaler", None)  # of accelerate's wrapper
    # private in torch (2.13, amp/grad_scaler.py): `get_scale` waits for the device
    scale: Tensor | None = getattr(scaler, "_scale", None)
    return None if scale is None else scale.clone()
