"""A Trainer that knows our callbacks: where they stand, and that they let go when training ends."""

from typing import Any

from transformers import Trainer

from hf_tfopt.callbacks.base import Callback
from hf_tfopt.slots import adopt_callbacks


class HostsCallbacks(Trainer):
    """The host's Trainer; our callbacks are put in their places, and let go of however it ends."""

    resumed_from: Any = None  # what `train` was told to go on from

    def add_callback(self, callback: Any) -> None:
        """The host's; one of ours is put where its numbers reach the trackers."""
        super().add_callback(callback)
        adopt_callbacks(self)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The host's; also after an error nothing of ours stays behind in model and optimizer."""
        self.resumed_from = resume_from_checkpoint
        adopt_callbacks(self)  # a copy of a trainer, or another since, shares its callbacks
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, Callback):
                    callback.release()


def become_host(trainer: Trainer) -> None:
    """Make an existing Trainer one, in place: as if made from a class derived from its own too."""
    kind = type(trainer)
    if not isinstance(trainer, HostsCallbacks):
        trainer.__class__ = type(kind.__name__, (HostsCallbacks, kind), {})
