"""The average of the weights over training is what is evaluated, and what training ends with."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks import averaged_weights
from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.checkpoint_folders import checkpoint_folders, own_checkpoint
from hf_tfopt.callbacks.remembered import companions, settle
from hf_tfopt.callbacks.stability import StabilityGuard
from hf_tfopt.callbacks.trained import check_weights, innermost, trained_parameters
from hf_tfopt.callbacks.training import Scalars, Training, training_of
from hf_tfopt.optimizers.checks import check_count, check_not_negative

logger = logging.getLogger(__name__)


class WeightAverage(Intervention):
    """Keeps an average of the trained weights, for evaluation and for the end of training.

    The host tells the optimizer when it evaluates and when it trains (`optimizer.eval()`,
    `optimizer.train()`: made for Schedule-Free): there the average goes into the model, and the
    weights that are trained come back. So every evaluation and prediction sees the average, and
    every checkpoint holds the weights from which training goes on bit for bit, also without this
    callback. Beside them, in `weight_average.safetensors`, it holds the average, for resuming, for
    `load_best_model_at_end`, and for `tfo.load_average(model, checkpoint)`. After training the
    model is the average: `save_model` and `push_to_hub` write it as any other model.

    Of several in a run the first is evaluated and ends the run; the others are in files of their
    own (`weight_average_2.safetensors` ...). Buffers are not averaged: the statistics of batch
    normalisation would have to be computed anew (`torch.optim.swa_utils.update_bn`). Beside a
    `StabilityGuard` the average goes back with its snapshot: another copy, where that one lies.

    Works with AMP, DDP, FSDP2 (the file is whole, for any number of processes) and PEFT.

    Args:
        every: steps from one averaged weight to the next.
        start: what passes before: below 1 a share of the run, else steps.

    Raises:
        ValueError: numbers out of range; when training begins: DeepSpeed or FSDP1, which train
            joined copies; an optimizer that averages itself (Schedule-Free); a run that goes on
            from a checkpoint whose average cannot be found.
    """

    def __init__(self, every: int, start: float):
        super().__init__()
        check_count("every", every)
        check_not_negative("start", start)
        if start >= 1 and start != int(start):
            raise ValueError(
                f"start={start} is neither a share below 1 nor a whole number of steps"
            )
        self.every = every
        self.start = start
        self._forget()

    def _forget(self) -> None:
        self._model: Any = None
        self._optimizer: Any = None
        self._parts: list[list[Tensor]] = []
        self._trained: list[Tensor] | None = None  # while the average is in the model
        self._parameters: dict[str, nn.Parameter] = {}
        self._saved_step = -1
        self._is_first = False
        self._has_to_keep = False
        self._kept: list[list[Tensor]] = []
        self._kept_counts: dict[str, Any] = {}

    def include(self, parts: list[list[Tensor]], num_averaged: int) -> list[list[Tensor]]:
        """The parts of the average, with the weights as they are now.

        Args:
            parts: as of the last call, to be changed in place or not.
            num_averaged: the weights in them.
        """
        raise NotImplementedError

    def copied(
        self, parts: list[list[Tensor]], known: list[list[Tensor]], is_on_cpu: bool
    ) -> list[list[Tensor]]:
        """The parts, as `include` will not change them; what was copied before may be."""
        return averaged_weights.copied_parts(parts, known, is_on_cpu)

    def put(self, parts: list[list[Tensor]], saved: list[list[Tensor]]) -> list[list[Tensor]]:
        """The parts as they were when they were copied."""
        return averaged_weights.put_parts(parts, saved)

    @property
    def _weights(self) -> list[Tensor]:
        return list(self._parameters.values())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation before the first step is of the average too: begin with it."""
        if state.global_step:
            self._trained = None  # the host has loaded other weights since
        super().on_train_begin(args, state, control, **kwargs)
        optimizer = innermost(kwargs.get("optimizer"))
        if args.eval_on_start and "eval" not in vars(optimizer):
            self._optimizer, self._is_first = optimizer, True

            def show() -> None:
                self.on_epoch_begin(args, state, control, **kwargs)
                self._show()

            optimizer.eval = show

    def begin(self, training: Training) -> None:
        """Find the average of a run that goes on, and be heard when the host evaluates."""
        self._model, self._optimizer = training.model, innermost(training.optimizer)
        check_weights(type(self).__name__, training, self._optimizer)
        self._parameters = trained_parameters(training.model, training.optimizer)
        averages = [one for one in companions(training.state) if isinstance(one, WeightAverage)]
        number = averages.index(self)
        self._is_first = number == 0
        self.remembered.setdefault("has_new", False)
        if self.remembered.setdefault("num_averaged", 0):
            self._load(training)
        ending = "" if self._is_first else f"_{number + 1}"
        stem = Path(averaged_weights.FILE)
        self.remembered["file"] = f"{stem.stem}{ending}{stem.suffix}"
        if self._is_first:
            self._optimizer.eval = self._show
            self._optimizer.train = self._hide

    def release(self) -> None:
        """Give back the weights that are trained, if training broke off in an evaluation."""
        super().release()
        self._hide()
        if self._is_first:
            _drop_methods(self._optimizer)
        self._forget()

    def before_step(self, training: Training) -> None:
        """Keep the average beside the first snapshot."""
        self._keep(training)

    def updated(self, training: Training) -> None:
        """Whether there are new weights: not after a step that was left out."""
        was_left_out = getattr(training.optimizer, "step_was_skipped", False)
        if not was_left_out and any(weight.grad is not None for weight in self._weights):
            self.remembered["has_new"] = True

    def stepped(self, training: Training) -> None:
        """Take new weights in, if it is their turn; write the average of a checkpoint.

        Weights that turn out to be spoilt are taken out again by `put_back`.
        """
        self._hide()
        state = training.state
        is_turn = averaged_weights.is_averaged(
            state.global_step, self.start, self.every, state.max_steps
        )
        if is_turn and self.remembered["has_new"]:
            self._parts = self.include(self._parts, self.remembered["num_averaged"])
            self.remembered["num_averaged"] += 1
            self.remembered["has_new"] = False
        self._keep(training)
        self._save_if_due(training)

    def kept(self, training: Training) -> None:
        """Keep the average too, when this step's weights are in it."""
        self._has_to_keep = True

    def put_back(self, training: Training) -> None:
        """The average as it was, without the weights that were given up."""
        self._parts = self.put(self._parts, self._kept)
        self.remembered.update(self._kept_counts)

    def _keep(self, training: Training) -> None:
        guard = _guard_of(training)
        if self._has_to_keep and guard is not None:
            self._has_to_keep = False
            self._kept = self.copied(self._parts, self._kept, guard.is_snapshot_on_cpu)
            self._kept_counts = {k: self.remembered[k] for k in ("num_averaged", "has_new")}

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may be due at the end of an epoch."""
        self._hide()
        training = training_of(args, state, control, kwargs)
        self._keep(training)
        self._save_if_due(training)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the average, if it was not known before that a checkpoint was due."""
        self._save(training_of(args, state, control, kwargs))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The weights that are trained come back."""
        self._hide()

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """The weights that are trained come back."""
        self._hide()

    def ended(self, training: Training) -> None:
        """Leave the average in the model: of the best checkpoint, if the host has loaded that."""
        if not self._has_begun:  # nothing was left to train
            settle(training.state)
            self.begin(training)
        self._hide()
        parts = self._parts
        best = training.state.best_model_checkpoint
        if training.args.load_best_model_at_end and best is not None:
            path = averaged_weights.find([Path(best)], self.remembered["file"])
            # where there is none the best model was evaluated before the average began
            parts = [] if path is None else self._read(path)
        if self._is_first and parts:
            averaged_weights.put(self._model, self._weights, averaged_weights.mean(parts))
        elif self._is_first:
            logger.warning("the model after training is no average: none had begun")

    def scalars(self, training: Training) -> Scalars:
        """How many weights are in the average."""
        return {"num_averaged": self.remembered["num_averaged"]}

    def _show(self) -> None:
        """Put the average into the model."""
        if self._trained is None and self._parts:
            self._trained = [weight.detach().clone() for weight in self._weights]
            averaged_weights.put(self._model, self._weights, averaged_weights.mean(self._parts))

    def _hide(self) -> None:
        """Put the weights that are trained back."""
        if self._trained is not None:
            averaged_weights.put(self._model, self._weights, self._trained)
            self._trained = None

    def _save_if_due(self, training: Training) -> None:
        # with "best" the host decides after its evaluation
        if training.control.should_save and training.args.save_strategy != "best":
            self._save(training)

    def _save(self, training: Training) -> None:
        """Before the host writes `trainer_state.json`, so that a whole checkpoint has the average.

        In a search whose trainer is not known, no event tells the folder; nothing of it is resumed.
        """
        state, step = training.state, training.state.global_step
        if not self._parts or step == self._saved_step:
            return
        if state.is_hyper_param_search and self._host(training) is None:
            return
        self._saved_step = step
        path = own_checkpoint(self._host(training), training) / self.remembered["file"]
        averaged_weights.save_parts(
            path, [*self._parameters], self._parts, training.args.should_save, step
        )

    def _host(self, training: Training) -> Any:
        """The Trainer of this training, if it is known."""
        trainer = self.trainer
        return trainer if trainer is not None and trainer.args is training.args else None

    def _load(self, training: Training) -> None:
        step, file = training.state.global_step, self.remembered["file"]
        folders = checkpoint_folders(self._host(training), training)
        found = averaged_weights.find(folders, file, step)
        if found is None:
            raise ValueError(
                f"the run goes on from a checkpoint of step {step} with an average of "
                f"{self.remembered['num_averaged']} weights, but {file} of that step is not in "
                f"{', '.join(str(folder) for folder in folders)} (seen by every process): set "
                f"args.resume_from_checkpoint to the folder of the checkpoint that has it, or "
                f"leave {type(self).__name__} out"
            )
        self._parts = self._read(found)

    def _read(self, path: Path) -> list[list[Tensor]]:
        return averaged_weights.load_parts(path, [*self._parameters], self._weights)


def _guard_of(training: Training) -> StabilityGuard | None:
    guards = (one for one in companions(training.state) if isinstance(one, StabilityGuard))
    return next((guard for guard in guards if guard.action != "warn"), None)


def _drop_methods(optimizer: Any) -> None:
    for name in ("eval", "train"):
        vars(optimizer).pop(name, None)
