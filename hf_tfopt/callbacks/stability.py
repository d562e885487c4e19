"""A run that outlives NaN, infinity and spikes: found before the update, and never trained on."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.base import Intervention, logger
from hf_tfopt.callbacks.lowered_rates import scale_rates
from hf_tfopt.callbacks.recovery import Recovery
from hf_tfopt.callbacks.spikes import is_spike, remember
from hf_tfopt.callbacks.step_losses import SinceLog, pass_losses_through
from hf_tfopt.callbacks.suspects import cause_of, described, facts_of
from hf_tfopt.callbacks.training import Scalars, Training, training_of
from hf_tfopt.callbacks.vitals import Vitals, loss_scale, read_vitals
from hf_tfopt.optimizers.checks import check_count, check_positive
from hf_tfopt.registry import check_name

Action = Literal["warn", "skip", "rollback", "lower_lr", "stop"]
SERIES = ("loss", "gradient")


class StabilityGuard(Intervention):
    """Finds a non-finite loss, gradient or weight, and spikes, before the update; and acts.

    In every step it looks at the loss of each micro-batch, ‖gradient‖ of each block before the
    host clips it, and whether one of them is a spike (`spikes.spike_threshold`, over the last good
    steps). All processes see the same numbers, and so do the same. Of a bad step every action but
    "warn" makes no update: all gradients become None, weights and optimizer state stay as they are,
    bit for bit. The actions:

    - "warn": says so, and lets it happen;
    - "skip": goes on with the next batch;
    - "rollback": goes back to a snapshot in memory, of the last `snapshot_every` steps, too. The
      data go on, so the batches since the snapshot and the bad one are not seen again. So do the
      count of steps and the schedule; rates and weight decay are not part of a snapshot;
    - "lower_lr": multiplies all learning rates by `lr_factor` for the rest of the run, too; once
      where several bad steps follow each other;
    - "stop": ends the training, and writes no checkpoint any more.

    Weights that are not finite themselves are mended from the snapshot by every action but "warn".
    They are looked for in a bad step, before a snapshot, an evaluation and a checkpoint, and at the
    end of an epoch: none is saved. After `patience` bad steps in a row the run is stopped; if they
    are spikes, their level is taken for the new one instead.

    Under fp16 an overflow of the gradients is the loss scaler's business, unless its scale has
    fallen below 1.

    Each event in `log_history` tells its cause, the numbers, and the suspects: `batches`, with
    `process`, `epoch`, `batch` (its position in the epoch, from 0), `loss` and `rows` of the
    dataset, where the sampler's order can be known (the host's shuffling and sequential ones). They
    are those whose loss is not finite, or all of the step where every loss is.

    The losses are seen through `tfo.attach` or `TfoptTrainer`; in `Trainer(callbacks=[...])` only
    gradients, clipped by then, and weights are. Other interventions should come behind it: they
    see no gradient in a step that is skipped.

    | name | what |
    |---|---|
    | `num_bad_steps` | bad steps of the run so far |
    | `good_loss` | the mean loss of the good steps since the last log, if there were others |

    `loss` itself is NaN in a log with a non-finite loss among its steps, also where the host (5.23,
    `logging_nan_inf_filter`) shows the mean of the others, or 0.

    The cost of a step: one pass over the gradients, one reduction of a few numbers over all
    processes, and one wait for the device. Of memory: a snapshot, as large as weights and optimizer
    state.

    Args:
        action: what to do.
        snapshot_every: good steps from one snapshot to the next; None: no snapshot, and weights
            that are not finite end the run with an error.
        is_snapshot_on_cpu: keep it in the host's memory rather than on the device.
        lr_factor: of "lower_lr", above 0 and below 1.
        threshold: of a spike, in standard deviations of the logarithm; infinity: no spike is looked
            for.
        ratio: of a spike to the median, above 1.
        window: good steps that a spike is judged by.
        patience: bad steps in a row before the run is stopped.

    Raises:
        ValueError: an option out of its range; before the first step, weights that are not finite,
            or an engine that hides gradients.
        FloatingPointError: weights that are not finite and cannot be mended.

    Paper: Chowdhery et al. 2022, PaLM, https://arxiv.org/abs/2204.02311, section 5.1 (go back some
        100 steps and leave out the data). Differs: the snapshot is at most `snapshot_every` steps
        old, and of the data only what was seen since is left out.
    """

    needs_gradients = True

    def __init__(
        self,
        action: Action = "skip",
        snapshot_every: int | None = 100,
        is_snapshot_on_cpu: bool = True,
        lr_factor: float = 0.5,
        threshold: float = 6.0,
        ratio: float = 3.0,
        window: int = 500,
        patience: int = 20,
    ):
        super().__init__()
        check_name("action", action, get_args(Action))
        for name, count in (("window", window), ("patience", patience)):
            check_count(name, count)
        if snapshot_every is not None:
            check_count("snapshot_every", snapshot_every)
        elif action == "rollback":
            raise ValueError("action='rollback' needs a snapshot: give snapshot_every a number")
        if threshold != math.inf:
            check_positive("threshold", threshold)
        if not 1 < ratio < math.inf:
            raise ValueError(f"ratio must be above 1, got {ratio!r}")
        if not 0 < lr_factor < 1:
            raise ValueError(f"lr_factor must be above 0 and below 1, got {lr_factor!r}")
        self.action = action
        self.snapshot_every = snapshot_every
        self.is_snapshot_on_cpu = is_snapshot_on_cpu
        self.lr_factor = lr_factor
        self.threshold = threshold
        self.ratio = ratio
        self.window = window
        self.patience = patience
        self._recovery: Recovery | None = None
        self._forget()

    def _forget(self) -> None:
        self._losses: list[Tensor] = []
        self._norms: Tensor | None = None
        self._has_update = self._is_stopping = False
        self._since_log = SinceLog()

    def join(self, trainer: Any) -> None:
        """See the loss of each micro-batch, and the gradients before they are clipped."""
        super().join(trainer)
        pass_losses_through(trainer, lambda loss: self._seen(loss, trainer))

    def _seen(self, loss: Tensor, trainer: Any) -> Tensor:
        if self._recovery is None:
            return loss
        self._losses.append(loss.detach())
        if trainer.accelerator.sync_gradients:
            self._norms = self._recovery.body.gradient_norms()
        if trainer.args.logging_nan_inf_filter:
            return loss
        # once NaN, the host's running sum stays so (5.23, trainer.py:2252)
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    def begin(self, training: Training) -> None:
        """Look at the weights, and take the first snapshot."""
        self._forget()
        for count in ("num_bad_steps", "num_in_a_row"):
            self.remembered.setdefault(count, 0)
        for series in SERIES:
            self.remembered.setdefault(series, [])
        has_snapshot = self.snapshot_every is not None and self.action != "warn"
        self._recovery = Recovery(training, has_snapshot, self.is_snapshot_on_cpu)
        if not self.is_joined and training.state.is_world_process_zero:
            logger.warning(
                "StabilityGuard sees no loss, and gradients only after clipping, in a stock "
                "Trainer(callbacks=[...]); use tfo.attach(trainer, callbacks=[...])"
            )

    @property
    def _healer(self) -> Recovery:
        assert self._recovery is not None
        return self._recovery

    def before_step(self, training: Training) -> None:
        """Nothing of this step was seen yet."""
        self._losses, self._norms = [], None

    def gradients(self, training: Training) -> None:
        """Judge the step, and act before the update."""
        norms = self._healer.body.gradient_norms() if self._norms is None else self._norms
        vitals = read_vitals(self._losses, norms)
        scale = loss_scale(training.optimizer)
        is_overflow = not vitals.num_bad_losses and not math.isfinite(vitals.gradient_norm)
        if is_overflow and scale is not None and scale >= 1:
            return
        self._has_update = True
        values = {"loss": vitals.loss or 0.0, "gradient": vitals.gradient_norm / (scale or 1.0)}
        spikes = [
            series
            for series, value in values.items()
            if is_spike(value, self.remembered[series], self.threshold, self.ratio)
        ]
        if cause := cause_of(vitals, spikes):
            self._bad(training, vitals, cause)
            return
        self.remembered["num_in_a_row"] = 0
        self._since_log.good += [] if vitals.loss is None else [vitals.loss]
        for series, value in values.items():
            remember(value, self.remembered[series], self.window)

    def _bad(self, training: Training, vitals: Vitals, cause: str) -> None:
        """Count the step, act, and tell of it."""
        self.remembered["num_bad_steps"] += 1
        self._since_log.has_bad_step = True
        self.remembered["num_in_a_row"] += 1
        self._since_log.has_bad_loss |= vitals.num_bad_losses > 0
        is_spike = cause.startswith("spike")
        weights = [] if is_spike else self._healer.body.bad_weights()
        facts = facts_of(training, vitals, self._losses, self._healer.body, weights)
        kind, row = "non-finite weight" if weights else cause, self.remembered["num_in_a_row"]
        done = self._act(training, weights, row, is_spike)
        if self.action != "warn" or row <= self.patience:
            self.tell(training, kind, f"{described(kind, facts)}: {done}", **facts)

    def _act(self, training: Training, weights: list[str], row: int, is_spike: bool) -> str:
        """Do what the action says; what was done, in words."""
        done: list[str] = []
        is_worn = row >= self.patience
        if is_worn and is_spike:
            done.append("from now on this is the usual level")
            self.remembered.update({series: [] for series in SERIES}, num_in_a_row=0)
        if self.action == "warn":
            return ", ".join(["nothing was done about it", *done])
        done.append("the step was left out")
        if weights or self.action == "rollback":
            done.append(self._healer.put_back(training, weights))
        self._healer.skip(training)
        if self.action == "lower_lr" and row == 1:
            scale_rates(training.optimizer, training.scheduler, self.lr_factor)
            done.append(f"learning rates were multiplied by {self.lr_factor}")
        if self.action == "stop" or (is_worn and not is_spike):
            self._is_stopping = training.control.should_training_stop = True
            done.append("the run ends" + (f" after {row} bad steps in a row" if is_worn else ""))
        return ", ".join(done)

    def updated(self, training: Training) -> None:
        """Of a step left out, the optimizer has counted nothing."""
        self._healer.skipped(training)

    def stepped(self, training: Training) -> None:
        """Look at the weights where they are about to be saved, evaluated or kept."""
        if self._has_update and not self.remembered["num_in_a_row"]:
            self._healer.age += 1
        self._has_update = False
        self._keep(training, training.control.should_save or training.control.should_evaluate)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the weights: every run ends with the end of an epoch."""
        self._keep(training_of(args, state, control, kwargs), True)

    def ended(self, training: Training) -> None:
        """What happened after the last log is told in the host's summary."""
        history: list[dict[str, Any]] = training.state.log_history
        if history and (events := self.remembered.pop("events", None)):
            history[-1]["events"] = [*history[-1].get("events", []), *events]

    def _keep(self, training: Training, is_wanted: bool) -> None:
        """Mend the weights if need be; take the next snapshot if it is due."""
        control = training.control
        if self._is_stopping:
            control.should_save, control.should_log = False, True
            return
        every, age = self.snapshot_every, self._healer.age
        is_due = every is not None and age >= every
        if self.action == "warn" or not (is_wanted or is_due):
            return
        # a resumed run begins with a snapshot of its checkpoint: so has one that was never stopped
        is_best = control.should_evaluate and training.args.save_strategy == "best"
        if weights := self._healer.body.bad_weights():
            self.remembered["num_bad_steps"] += 1
            self._since_log.has_bad_step = True
            text = f"non-finite weight in {', '.join(weights)}"
            done = self._healer.put_back(training, weights)
            self.tell(training, "non-finite weight", f"{text}: {done}", weights=weights)
        elif is_due or control.should_save or is_best:
            self._healer.take(training)

    def scalars(self, training: Training) -> Scalars:
        """The count, and the mean of the good steps."""
        return {"num_bad_steps": self.remembered["num_bad_steps"], **self._since_log.scalars()}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Its numbers; and NaN for the loss, where one was not finite."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        if logs is not None and "loss" in logs:
            entry: dict[str, Any] = state.log_history[-1]
            self._since_log.mark(logs, entry)
            self._since_log = SinceLog()
