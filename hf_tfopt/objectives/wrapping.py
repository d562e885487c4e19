"""An objective around another: what the inner one says, but for what the outer one changes."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hf_tfopt.losses.reduction import Terms
from hf_tfopt.objectives.base import Objective


class Wrapping(Objective):
    """Counts, evaluates and measures as `objective` does.

    Args:
        objective: what to wrap: one pass over a batch, and not itself wrapped.

    Raises:
        ValueError: anything else.
    """

    def __init__(self, objective: Objective):
        name = type(self).__name__
        given: Any = objective
        if not isinstance(given, Objective):
            raise ValueError(
                f"{name} wraps an objective, such as {name}(LanguageModeling()); it was given "
                f"{given!r}"
            )
        has_own_passes = type(given).passes is not Objective.passes
        if isinstance(given, Wrapping) or has_own_passes or given.num_passes != 1:
            raise ValueError(
                f"{name} cannot wrap {type(given).__name__}: it wraps objectives of one plain pass "
                "over the batch. Choose one of the two"
            )
        self.objective = objective
        self.targets = objective.targets

    @property
    def weights(self) -> Mapping[str, float]:
        """Those of the wrapped objective."""
        return self.objective.weights

    def bind(self, module: nn.Module) -> None:
        """Bind the wrapped objective."""
        self.objective.bind(module)

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Prepare the wrapped objective."""
        self.objective.prepare(model, batch)
        self.targets = self.objective.targets

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those of the wrapped objective."""
        return self.objective.counts(batch)

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """Those of the wrapped objective, at its price."""
        self.objective.step = self.step
        return self.objective.terms(model, module, batch, with_outputs)

    def gradients_ready(self, module: nn.Module, mean: Callable[[Tensor], Tensor]) -> None:
        """Hand on to the wrapped objective."""
        self.objective.gradients_ready(module, mean)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Those of the wrapped objective."""
        return self.objective.metrics(means)


def check_positive(**numbers: float) -> None:
    """Refuse a number that is not above 0 and finite, by its name."""
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} is {number}; it must be above 0 and finite")


def check_steps(steps: int) -> None:
    """Refuse a number of ascent steps that is not a whole one, at least 1."""
    given: Any = steps
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ValueError(f"steps is {given!r}; it must be a whole number, at least 1")
