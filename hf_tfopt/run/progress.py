"""The progress bar of a run that is watched by a person."""

from typing import Any

from transformers import ProgressCallback


class ProgressBar(ProgressCallback):
    """The host's bar, with the newest loss beside it instead of a line of text for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss and the held-out loss of this log."""
        found = {name: logs[name] for name in ("loss", "eval_loss") if name in (logs or {})}
        if self.training_bar is not None and found:
            self.training_bar.set_postfix({name: f"{value:.3f}" for name, value in found.items()})
