"""The progress bars of a run that is watched by a person."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import datasets
from datasets.utils import is_progress_bar_enabled
from transformers import ProgressCallback

_LONG = 100 << 20  # bytes of text: a minute or more of tokenizing


class ProgressBar(ProgressCallback):
    """The host's bar, with the newest loss beside it instead of a line of text for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss and the held-out loss of this log."""
        found = {name: logs[name] for name in ("loss", "eval_loss") if name in (logs or {})}
        if self.training_bar is not None and found:
            self.training_bar.set_postfix({name: f"{value:.3f}" for name, value in found.items()})


@contextmanager
def progress_where_long(num_bytes: int) -> Generator[None]:
    """Around work on so many bytes of text: `datasets` shows its progress where it takes minutes.

    So it does even if it was told to show none; of less text it does as it was told.
    """
    if num_bytes < _LONG or is_progress_bar_enabled():
        yield
        return
    datasets.enable_progress_bars()
    try:
        yield
    finally:
        datasets.disable_progress_bars()
