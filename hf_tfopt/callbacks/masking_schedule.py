"""A masking rate that changes with the steps."""

from typing import Any

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.ramp import SHAPES, check_ramp, ramp
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.data.masking_rule import check_rate
from hf_tfopt.data.thinning import thinned
from hf_tfopt.registry import check_name


class MaskingSchedule(Intervention):
    """Mask a share of the tokens that moves over the run, down from what the collator masks.

    The collator runs ahead of the training, in processes of its own, and masks at one rate, the
    highest. Before a step's items are counted, `data.thinning.thinned` lets go of as many of its
    targets as the step's rate is lower: they are seen again, and not guessed. Words and spans stay
    whole. All is a function of the step and the text: a resumed run goes on as one that was never
    stopped would, and evaluation keeps the collator's rate.

    For any collator of masked words, the host's too. It goes into `TfoptTrainer(curriculum=...)`,
    or into the `callbacks` of it or of `tfo.attach`. For a rate that changes with the epochs, give
    the collator a function of them: `tfo.linear_rate`.

    | name | what |
    |---|---|
    | `masking_rate` | of the last step |

    Args:
        first: the rate at the beginning, in (0, 1).
        last: the rate in the end, in (0, 1).
        start: the share of the run at which the change begins, in [0, 1].
        end: the share at which it is complete; equal to `start`: at once.
        shape: "linear" or "cosine".
        probability: what the collator masks; None: its `probability` (the host's:
            `mlm_probability`).

    Raises:
        ValueError: numbers out of range; when training begins: a stock Trainer without
            `tfo.attach`, a collator that tells no rate, or one below `first` or `last`; with the
            first batch: no input_ids and labels of one shape.

    Paper: Yang, Zhang, Zhao 2023, "Learning Better Masking for Better Language Model Pre-training",
    https://arxiv.org/abs/2208.10806, section 3 (masking ratio decay, linear and cosine). Differs:
    the rate need not end at 0.
    """

    def __init__(
        self,
        first: float,
        last: float,
        start: float = 0.0,
        end: float = 1.0,
        shape: str = "linear",
        probability: float | None = None,
    ):
        super().__init__()
        self.first, self.last = check_rate(first), check_rate(last)
        check_ramp(start, end)
        self.start, self.end = start, end
        self.shape = check_name("shape", shape, SHAPES)
        self.probability = None if probability is None else check_rate(probability)
        self._highest = 1.0

    def begin(self, training: Training) -> None:
        """Look at what the collator masks."""
        if self.trainer is None:
            raise ValueError(
                "MaskingSchedule changes batches before they are counted, which a stock Trainer's "
                "callbacks cannot: use tfo.TfoptTrainer, or tfo.attach(trainer, callbacks=[...])"
            )
        self._highest = self.probability or _rate_of(self.trainer.data_collator)
        needed = max(self.first, self.last)
        if needed > self._highest:
            raise ValueError(
                f"the collator masks {self._highest:g} of the tokens, and the schedule goes up to "
                f"{needed:g}: give the collator probability={needed:g}"
            )

    def rate(self, training: Training) -> float:
        """The masking rate of the step that begins."""
        share = training.state.global_step / max(1, training.state.max_steps)
        return ramp(share, self.first, self.last, self.start, self.end, self.shape)

    def collected(self, training: Training, batches: list[Any]) -> list[Any]:
        """The micro-batches with as many targets as the rate of this step gives them."""
        step, share = training.state.global_step, self.rate(training) / self._highest
        return [self._thinned(batch, share, step) for batch in batches]

    def _thinned(self, batch: Any, share: float, step: int) -> dict[str, Any]:
        ids, labels = batch.get("input_ids"), batch.get("labels")
        if ids is None or labels is None or ids.shape != labels.shape:
            raise ValueError(
                f"MaskingSchedule is for batches with input_ids and labels of one shape; these "
                f"have {', '.join(batch)}"
            )
        ids, labels = thinned(ids, labels, share, step)
        return {**batch, "input_ids": ids, "labels": labels}

    def scalars(self, training: Training) -> Scalars:
        """The rate of the last step."""
        share = (training.state.global_step - 1) / max(1, training.state.max_steps)
        return {
            "masking_rate": ramp(share, self.first, self.last, self.start, self.end, self.shape)
        }


def _rate_of(collator: Any) -> float:
    """The rate that a collator, perhaps one inside another, masks at."""
    while collator is not None:
        for name in ("probability", "mlm_probability"):
            found = getattr(collator, name, None)
            if callable(found):
                raise ValueError(
                    "the collator's rate changes with the epochs already; give it one number, the "
                    "highest of the schedule"
                )
            if found is not None:
                return float(found)
        collator = getattr(collator, "data_collator", getattr(collator, "collator", None))
    raise ValueError(
        "MaskingSchedule must know what share of the tokens the collator masks, which it does not "
        "tell: give probability="
    )
