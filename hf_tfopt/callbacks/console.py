"""The host's console output, without the many numbers of the monitors."""

from typing import Any

from transformers import PrinterCallback, ProgressCallback


def without_groups(logs: dict[str, Any] | None) -> dict[str, Any]:
    """What is logged, but not what is told of one group, layer or head: names with a "/"."""
    return {name: value for name, value in (logs or {}).items() if "/" not in name}


class QuietProgress(ProgressCallback):
    """The host's bar; its lines leave out names with a "/"."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The host's, of fewer numbers."""
        super().on_log(args, state, control, logs=without_groups(logs), **kwargs)


class QuietPrinter(PrinterCallback):
    """The host's printed lines, without names with a "/"."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The host's, of fewer numbers."""
        super().on_log(args, state, control, logs=without_groups(logs), **kwargs)


QUIET = {ProgressCallback: QuietProgress, PrinterCallback: QuietPrinter}
