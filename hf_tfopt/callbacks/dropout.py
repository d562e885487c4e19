"""Dropout rates that rise or fall over the run."""

import logging

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.ramp import SHAPES, check_ramp, ramp
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.optimizers.checks import check_not_negative, check_share
from hf_tfopt.registry import check_name
from hf_tfopt.surgery.dropout import DropoutSite, dropout_sites

logger = logging.getLogger(__name__)


class DropoutSchedule(Intervention):
    """Scale all dropout rates, of hidden states and of attention, with a number that moves.

    The rates that the model has are multiplied with a function of the step, so that a resumed run
    has those of one that was never stopped; after training they are as they were, and the config is
    never touched. The default is early dropout: from the model's own rates to none at half of the
    run. Late dropout is `DropoutSchedule(first=0, last=1, start=0.3, end=0.3)`, from nothing to the
    model's rates at once. A step costs one attribute for each rate. Under `torch.compile` every
    new rate compiles the model anew: there use `start == end`.

    | name | what |
    |---|---|
    | `dropout` | the largest rate in the model |

    Args:
        first: the multiplier at the beginning, 0 or above.
        last: the multiplier in the end.
        start: the share of the run at which the change begins, in [0, 1].
        end: the share at which it is complete; equal to `start`: at once.
        shape: "linear" or "cosine".
        rate: what is multiplied, for hidden states and attention, in [0, 1); None: each rate as the
            model has it.

    Raises:
        ValueError: numbers out of range; when training begins: a model whose rates are all 0, or
            that would have one of 1 or more.

    Paper: Liu et al. 2023, "Dropout Reduces Underfitting", https://arxiv.org/abs/2303.01500,
    section 4 (early dropout falls linearly, late dropout is constant once it begins; their rates
    are those of the hidden states of vision models).
    """

    def __init__(
        self,
        first: float = 1.0,
        last: float = 0.0,
        start: float = 0.0,
        end: float = 0.5,
        shape: str = "linear",
        rate: float | None = None,
    ):
        super().__init__()
        for name, value in {"first": first, "last": last}.items():
            check_not_negative(name, value)
        check_ramp(start, end)
        if first == last:
            raise ValueError(
                f"first and last are both {first}: nothing would change; to set rates once use "
                "tfo.set_dropout(model, rate)"
            )
        self.first, self.last, self.start, self.end = first, last, start, end
        self.shape = check_name("shape", shape, SHAPES)
        if rate is not None:
            check_share("rate", rate)
        self.rate = rate
        self._sites: list[tuple[DropoutSite, float]] = []  # with the model's own rate

    def begin(self, training: Training) -> None:
        """Note the rates of the model."""
        found = dropout_sites(training.model)
        self._sites = [(site, site.rate) for site in found.values()]
        largest = max((self._base(rate) for _, rate in self._sites), default=0.0)
        if largest == 0:
            raise ValueError(
                f"all {len(found)} dropout rates of {type(training.model).__name__} are 0, so "
                "that nothing can be scaled; give a rate=0.1, or make the model with rates above 0"
            )
        if largest * max(self.first, self.last) >= 1:
            raise ValueError(
                f"the rate {largest} times {max(self.first, self.last)} is no rate below 1"
            )
        if training.args.torch_compile and self.start < self.end:
            logger.warning(
                "DropoutSchedule: under torch_compile each of the rates between the first and the "
                "last compiles the model anew; start == end has but two"
            )

    def before_step(self, training: Training) -> None:
        """The rates of this step."""
        share = training.state.global_step / max(1, training.state.max_steps)
        multiplier = ramp(share, self.first, self.last, self.start, self.end, self.shape)
        for site, own in self._sites:
            site.set(self._base(own) * multiplier)

    def release(self) -> None:
        """The model's own rates come back."""
        super().release()
        for site, own in self._sites:
            site.set(own)
        self._sites = []

    def scalars(self, training: Training) -> Scalars:
        """The rate of the last step."""
        return {"dropout": max(site.rate for site, _ in self._sites)}

    def _base(self, own: float) -> float:
        return own if self.rate is None else self.rate
