"""A recipe's run that is ended in its midst, as a person would end it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from transformers import TrainerCallback

from hf_tfopt.recipe import execution


@contextmanager
def killed_after(num_steps: int) -> Iterator[None]:
    """A run in here ends as Ctrl-C would end it, once it has taken so many steps."""

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == num_steps:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(execution, "ProgressBar", Stop)
        yield
