"""A run that outlives NaN, infinity and spikes: found before the update, and never trained on."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.base import Intervention, logger
from hf_tfopt.callbacks.lowered_rates import scale_rates
from hf_tfopt.callbacks.recovery import Recovery
from hf_tfopt.callbacks.spikes import check_limits, remember, spikes_in
from hf_tfopt.callbacks.step_losses import SinceLog
from hf_tfopt.callbacks.suspects import cause_of, described, facts_of
from hf_tfopt.callbacks.training import Place, Scalars, Training, training_of
from hf_tfopt.callbacks.vitals import Vitals, loss_scale, read_vitals
from hf_tfopt.optimizers.checks import check_count
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
    end of an epoch: none is saved. After `patience` bad steps in a row, or mendings from one
    snapshot, the run is stopped; spikes in a row are taken for the new level instead.

    Under fp16 an overflow of the gradients is the loss scaler's business, unless its scale has
    fallen below 1.

    Each event in `log_history` tells its cause, the numbers, and the suspects: `batches`, with
    `process`, `epoch`, `batch` (its position in the epoch, from 0), `loss` and `rows` of the
    dataset, where the sampler's order can be known (the host's shuffling and sequential ones). They
    are those whose loss is not finite, or all of the step where every loss is.

    The losses are seen through `tfo.attach` or `TfoptTrainer`; in `Trainer(callbacks=[...])` only
    gradients, clipped by then, and weights are, and it must be given before all other
    interventions: they see no gradient in a step that is left out.

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
        patience: bad steps in a row, or mendings, before the run is stopped.

    Raises:
        ValueError: an option out of its range; before the first step, weights that are not finite,
            or an engine that hides gradients.
        FloatingPointError: weights that are not finite and cannot be mended.

    Paper: Chowdhery et al. 2022, PaLM, https://arxiv.org/abs/2204.02311, section 5.1 (go back some
        100 steps and leave out the data). Differs: the snapshot is at most `snapshot_every` steps
        old, and of the data only what was seen since is left out.
    """

    needs_gradients = True
    place = Place.GUARD
    _recovery: Recovery  # while it trains

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
        check_count("patience", patience)
        check_limits(threshold, ratio, window)
        if snapshot_every is not None:
            check_count("snapshot_every", snapshot_every)
        elif action == "rollback":
            raise ValueError("action='rollback' needs a snapshot: give snapshot_every a number")
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
        self._forget()

    def _forget(self) -> None:
        vars(self).pop("_recovery", None)
        self._losses: list[Tensor] = []
        self._norms: Tensor | None = None
        self._has_update = self._is_stopping = False
        self._since_log = SinceLog()

    def _seen(self, loss: Tensor) -> Tensor:
        """The loss of a micro-batch, after its backward pass; what is logged of it."""
        self._losses.append(loss.detach())
        trainer = self.trainer
        if trainer.accelerator.sync_gradients:
            self._norms = self._recovery.body.gradient_norms()
        if trainer.args.logging_nan_inf_filter:
            return loss
        # once NaN, the host's running sum stays so (5.23, trainer.py:2252)
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    def begin(self, training: Training) -> None:
        """Look at the weights; from now on see losses, and gradients before they are clipped."""
        for count in ("num_bad_steps", "num_in_a_row", "num_mended"):
            self.remembered.setdefault(count, 0)
        for series in SERIES:
            self.remembered.setdefault(series, [])
        has_snapshot = self.snapshot_every is not None and self.action != "warn"
        self._recovery = Recovery(training, has_snapshot, self.is_snapshot_on_cpu)
        if self.trainer is not None:
            self.listen(self.trainer, "training_step", change=self._seen)
        elif training.state.is_world_process_zero:
            logger.warning(
                "StabilityGuard sees no loss, and gradients only after clipping, in a stock "
                "Trainer(callbacks=[...]); use tfo.attach(trainer, callbacks=[...])"
            )

    def release(self) -> None:
        """Drop snapshot, model and losses."""
        super().release()
        self._forget()

    def before_step(self, training: Training) -> None:
        """Nothing of this step was seen yet; before the first, take a snapshot."""
        self._recovery.start(training)
        self._losses, self._norms = [], None

    def gradients(self, training: Training) -> None:
        """Judge the step, and act before the update."""
        norms = self._recovery.body.gradient_norms() if self._norms is None else self._norms
        vitals = read_vitals(self._losses, norms, loss_scale(training.optimizer, norms.device))
        scale = vitals.scale
        is_overflow = not vitals.num_bad_losses and not math.isfinite(vitals.gradient_norm)
        if is_overflow and scale is not None and scale >= 1:
            return
        self._has_update = True
        # the host has unscaled them since it clipped
        factor = 1.0 if self._norms is None else scale or 1.0
        values = {"loss": vitals.loss or 0.0, "gradient": vitals.gradient_norm / factor}
        spikes = spikes_in(values, self.remembered, self.threshold, self.ratio)
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
        weights = [] if is_spike else self._recovery.body.bad_weights()
        facts = facts_of(training, vitals, self._losses, self._recovery.body, weights)
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
            done.append(self._put_back(training, weights))
        self._recovery.skip(training)
        if self.action == "lower_lr" and row == 1:
            scale_rates(training.optimizer, training.scheduler, self.lr_factor)
            done.append(f"learning rates were multiplied by {self.lr_factor}")
        if self.action == "stop" or (is_worn and not is_spike):
            self._stop(training)
            done.append("the run ends" + (f" after {row} bad steps in a row" if is_worn else ""))
        return ", ".join(done)

    def _put_back(self, training: Training, weights: list[str]) -> str:
        """Go back to the snapshot; in words. Too often from weights that are bad: stop."""
        done = self._recovery.put_back(training, weights)
        self.remembered["num_mended"] += bool(weights)
        if self.remembered["num_mended"] < self.patience:
            return done
        self._stop(training)
        return f"{done}, for the {self.patience}th time since these were kept: the run ends"

    def _stop(self, training: Training) -> None:
        self._is_stopping = training.control.should_training_stop = True

    def updated(self, training: Training) -> None:
        """Of a step left out, the optimizer has counted nothing."""
        self._recovery.skipped(training)

    def stepped(self, training: Training) -> None:
        """Look at the weights where they are about to be saved, evaluated or kept."""
        if self._has_update and not self.remembered["num_in_a_row"]:
            self._recovery.age += 1
        self._has_update = False
        self._keep(training, training.control.should_save or training.control.should_evaluate)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the weights: every run ends with the end of an epoch."""
        self._keep(training_of(args, state, control, kwargs), True)

    def _keep(self, training: Training, is_wanted: bool) -> None:
        """Mend the weights if need be, and take the next snapshot if it is due."""
        if not self._is_stopping:
            self._look(training, is_wanted)
        if self._is_stopping:
            training.control.should_save, training.control.should_log = False, True

    def _look(self, training: Training, is_wanted: bool) -> None:
        control = training.control
        every, age = self.snapshot_every, self._recovery.age
        is_due = every is not None and age >= every
        if self.action == "warn" or not (is_wanted or is_due):
            return
        # a resumed run begins with a snapshot of its checkpoint: so has one that was never stopped
        is_best = control.should_evaluate and training.args.save_strategy == "best"
        if weights := self._recovery.body.bad_weights():
            self.remembered["num_bad_steps"] += 1
            self._since_log.has_bad_step = True
            text = f"non-finite weight in {', '.join(weights)}"
            done = self._put_back(training, weights)
            self.tell(training, "non-finite weight", f"{text}: {done}", weights=weights)
        elif is_due or control.should_save or is_best:
            self.remembered["num_mended"] = 0
            self._recovery.take(training)

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
