"""Where the time of a step goes, how many tokens pass in it, and when training ends."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from hf_tfopt.callbacks.base import Monitor
from hf_tfopt.callbacks.model_flops import ModelFlops, model_flops, peak_flops_of, token_counts
from hf_tfopt.callbacks.step_clock import (
    BESIDE_STEPS,
    PHASES,
    StepClock,
    Times,
    WallStamps,
    stamps_for,
)
from hf_tfopt.callbacks.training import Scalars, Training

# What the host does until it calls an event, and what is done in it; else "other" and "callbacks".
_UNTIL = {
    "on_step_begin": "data",
    "on_pre_optimizer_step": "optimizer",
    "on_optimizer_step": "optimizer",
    "on_step_end": "optimizer",
    "on_evaluate": "evaluation",
    "on_predict": "evaluation",
    "on_prediction_step": "evaluation",
    "on_save": "saving",
}
_WITHIN = {"on_evaluate": "evaluation", "on_predict": "evaluation"}


class ThroughputMonitor(Monitor):
    """Times every step by phase, and counts its tokens.

    | name | what |
    |---|---|
    | `time/step` | seconds of an optimizer step, without evaluation and saving |
    | `time/data` | of it, waiting for the batches |
    | `time/forward` | of it, from the batch to the loss: the move to the device, a teacher too |
    | `time/backward` | of it, `accelerator.backward` |
    | `time/optimizer` | of it, clipping, the update, the schedule |
    | `time/callbacks` | of it, all callbacks' events and the trackers; not hooks |
    | `time/tokens_per_second` | tokens of all processes, without padding |
    | `time/mfu` | share of the peak that the model's own FLOPs take; see `model_flops` |
    | `time/remaining` | seconds to the end of training |
    | `padding_share` | share of the input that is padding, of all processes |

    All are means since the last log; the first steps, in which things are compiled and cached, are
    left out of the times. `time/remaining` is the mean step of the run so far times the steps that
    remain, and what evaluations and checkpoints have taken so far times those that are planned; the
    first one of each is unforeseen. Times are those of the logging process. On a GPU they are read
    from events in its stream, after it has come to them: nothing waits. What the GPU does while the
    host works is not counted to the host's work. DeepSpeed makes its update within
    `accelerator.backward`. The split and the tokens need `attach` or `TfoptTrainer`.

    Costs two readings of the clock for each event, and counting the tokens of each batch.

    Args:
        peak_flops: of one device, FLOP/s, above 0, for `time/mfu`; None: of known GPUs, what they
            can do at best in 16 bits, whatever the precision of the run. Not known: no `time/mfu`.
        num_warmup_steps: steps that are not timed, after each start of a process; at least 0.

    Raises:
        ValueError: a number out of its range.

    Paper: Chowdhery et al. 2022, "PaLM" (https://arxiv.org/abs/2204.02311), appendix B, for the
    FLOPs; `model_flops` says where we differ.
    """

    def __init__(self, peak_flops: float | None = None, num_warmup_steps: int = 3):
        super().__init__()
        if peak_flops is not None and not 0 < peak_flops < float("inf"):
            raise ValueError(f"peak_flops is {peak_flops}, FLOP/s of a device; it must be above 0")
        if num_warmup_steps < 0:
            raise ValueError(f"num_warmup_steps is {num_warmup_steps}; it must be at least 0")
        self.peak_flops = peak_flops
        self.num_warmup_steps = num_warmup_steps
        self._main_input = "input_ids"
        self._peak: float | None = None
        self._flops: ModelFlops | None = None
        self._restart()

    def _restart(self) -> None:
        self._clock = StepClock(WallStamps(), self.num_warmup_steps)
        self._all, self._events, self._is_evaluating = Times(), list[str](), False
        self._num_steps, self._step = 0, 0
        # the steps after which it was done: several evaluation sets count as one evaluation
        self._done: dict[str, set[int]] = {phase: set() for phase in BESIDE_STEPS}
        self._counts: Tensor | None = None

    def begin(self, training: Training) -> None:
        """Start the clock, and listen to batches, backward passes and events."""
        self._restart()
        self._clock = StepClock(stamps_for(training.args.device), self.num_warmup_steps)
        self._step = training.state.global_step
        self._peak = self.peak_flops or peak_flops_of(training.args.device)
        self._flops = model_flops(training.model) if self._peak else None
        self._main_input = getattr(training.model, "main_input_name", "input_ids")
        trainer = self.trainer
        if trainer is not None:
            self.listen(
                trainer.callback_handler, "call_event", before=self._enter, after=self._exit
            )
            self.listen(
                trainer.accelerator,
                "backward",
                before=self._backward_begins,
                after=self._backward_ends,
            )
            self.listen(trainer, "get_batch_samples", after=self._count)

    def stepped(self, training: Training) -> None:
        """A step more."""
        self._num_steps, self._step = self._num_steps + 1, training.state.global_step
        if self.trainer is None:
            self._clock.lap("other")
            self._clock.end_step()

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What a stock Trainer tells of an evaluation."""
        if self.trainer is None and self._has_begun:
            self._lap_beside("evaluation")

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """What a stock Trainer tells of a checkpoint."""
        if self.trainer is None and self._has_begun:
            self._lap_beside("saving")

    def scalars(self, training: Training) -> Scalars:
        """Means since the last log."""
        times = self._clock.collect()
        self._all.add(times)
        found = self._of_tokens(times)
        if times.num_steps:
            found["time/step"] = times.of_steps() / times.num_steps
        if times.num_steps and self._splits(training.args.device):
            for phase in PHASES[:-1]:
                found[f"time/{phase}"] = times.seconds.get(phase, 0.0) / times.num_steps
        if self._all.num_steps:
            found["time/remaining"] = self._remaining(training)
        return found

    def _splits(self, device: torch.device) -> bool:
        # elsewhere calls return before the work is done
        return self.trainer is not None and device.type in ("cpu", "cuda")

    def _of_tokens(self, times: Times) -> dict[str, float]:
        counts, num_steps = self._counts, self._num_steps
        self._counts, self._num_steps = None, 0
        if counts is None or not num_steps:
            return {}
        summed: Any = reduce(counts, "sum")
        tokens, places, squares, labels = summed.tolist()
        found = {"padding_share": 1 - tokens / max(1, places)}
        if times.num_steps:
            steps = times.num_steps / num_steps / times.of_steps()
            num_copies = self.trainer.get_tp_size()  # such processes work on the same tokens
            found["time/tokens_per_second"] = tokens / num_copies * steps
            if self._flops is not None and self._peak:
                num_devices = self.trainer.accelerator.num_processes
                flops = self._flops.of(tokens, squares, labels) / num_copies
                found["time/mfu"] = flops * steps / (self._peak * num_devices)
        return found

    def _remaining(self, training: Training) -> float:
        args: Any = training.args
        state, spent = training.state, self._all.seconds
        steps = max(0, state.max_steps - state.global_step)
        seconds = steps * self._all.of_steps() / self._all.num_steps
        beside = (
            ("evaluation", args.eval_strategy, state.eval_steps),
            ("saving", args.save_strategy, state.save_steps),
        )
        for phase, strategy, interval in beside:
            num_planned = num_to_come(training, strategy, interval)
            seconds += num_planned * spent.get(phase, 0.0) / max(1, len(self._done[phase]))
        return seconds

    def _enter(self, arguments: Sequence[Any]) -> None:
        event = arguments[0]
        self._events.append(event)
        if event == "on_step_begin":  # whatever an evaluation that was broken off has left
            self._is_evaluating = False
        if not self._is_evaluating:
            self._clock.lap(_UNTIL.get(event, "other"))
        if event == "on_prediction_step":
            self._is_evaluating = True
        if event in _WITHIN and self._is_evaluating:
            self._is_evaluating = False
            self._lap_beside("evaluation")

    def _exit(self, control: Any) -> None:
        event = self._events.pop() if self._events else ""
        if self._is_evaluating:
            return
        if event == "on_save":
            self._lap_beside("saving")
        else:
            self._clock.lap(_WITHIN.get(event, "callbacks"))
        if event == "on_step_end":
            self._clock.end_step()

    def _lap_beside(self, phase: str) -> None:
        """An evaluation or a checkpoint is over."""
        self._clock.lap(phase)
        if self._clock.is_warm:
            self._done[phase].add(self._step)

    def _backward_begins(self, arguments: Sequence[Any]) -> None:
        self._clock.lap("forward")

    def _backward_ends(self, result: Any) -> None:
        self._clock.lap("backward")

    def _count(self, samples: tuple[list[Any], Any]) -> None:
        for batch in samples[0]:
            counts = token_counts(batch, self._main_input)
            if counts is not None:
                self._counts = counts if self._counts is None else self._counts + counts


def num_to_come(training: Training, strategy: str, interval: float) -> int:
    """How often something is done from now to the end of training.

    Args:
        training: where it is now.
        strategy: "steps", "epoch" or another, of which nothing is known.
        interval: in steps.
    """
    state = training.state
    if strategy == "steps" and interval >= 1:
        return int(state.max_steps // interval) - int(state.global_step // interval)
    if strategy == "epoch":
        return max(0, int(state.num_train_epochs) - int(state.epoch or 0))
    return 0
