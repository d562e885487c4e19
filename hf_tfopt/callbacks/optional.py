"""Monitors that leave a training alone whose model or engine does not show what they measure."""

import logging
from typing import Any, Self

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.base import Monitor
from hf_tfopt.callbacks.training import Training

logger = logging.getLogger(__name__)


class OptionalMonitor(Monitor):
    """A monitor that may be switched off, for one training, with a warning.

    One that the user has named refuses before training (ValueError); one of `monitors()` is
    switched off instead. After the beginning both are: no monitor ends a training.
    """

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._is_optional = False
        self._is_off = False

    def where_possible(self) -> Self:
        """Be switched off where it would refuse; returns itself."""
        self._is_optional = True
        return self

    def switch_off(self, training: Training, reason: str) -> None:
        """Measure no more in this training."""
        self._is_off = True
        self._is_due = False
        self.unhook()
        if training.state.is_world_process_zero:
            logger.warning("%s is switched off: %s", type(self).__name__, reason)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`begin`, in the first epoch; a refusal ends no training that did not ask for this."""
        try:
            super().on_epoch_begin(args, state, control, **kwargs)
        except ValueError as error:
            if not self._is_optional:
                raise
            self.switch_off(Training(args, state, control), str(error))

    def before_step(self, training: Training) -> None:
        """Measure, if the step is due and the monitor is not off."""
        if not self._is_off:
            super().before_step(training)

    def release(self) -> None:
        """The next training is looked at anew."""
        super().release()
        self._is_off = False
