"""The average of the weights over training is what is evaluated, and what training ends with."""

import functools
import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_tfopt.callbacks import averaged_weights
from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.remembered import settle
from hf_tfopt.callbacks.trained import innermost, trained_parameters
from hf_tfopt.callbacks.training import Scalars, Training, training_of
from hf_tfopt.optimizers.checks import check_count, check_not_negative

logger = logging.getLogger(__name__)

_AVERAGES = "_hf_tfopt_averages"  # of a run, in its TrainerState; no field: never saved


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
    normalisation would have to be computed anew (`torch.optim.swa_utils.update_bn`).

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
        self._trainer: Any = None
        self._resumed_from: Any = None
        self._forget()

    def _forget(self) -> None:
        self._model: Any = None
        self._optimizer: Any = None
        self._parts: list[list[Tensor]] = []
        self._trained: list[Tensor] | None = None  # while the average is in the model
        self._parameters: dict[str, nn.Parameter] = {}
        self._saved_step = -1
        self._is_first = False

    def include(self, parts: list[list[Tensor]], num_averaged: int) -> list[list[Tensor]]:
        """The parts of the average, with the weights as they are now.

        Args:
            parts: as of the last call, to be changed in place or not.
            num_averaged: the weights in them.
        """
        raise NotImplementedError

    @property
    def _weights(self) -> list[Tensor]:
        return list(self._parameters.values())

    def join(self, trainer: Any) -> None:
        """Hear from which checkpoint `train` goes on: no event tells."""
        super().join(trainer)
        self._trainer = trainer
        train = trainer.train

        @functools.wraps(train)
        def heard(resume_from_checkpoint: Any = None, *rest: Any, **named: Any) -> Any:
            self._resumed_from = resume_from_checkpoint
            return train(resume_from_checkpoint, *rest, **named)

        trainer.train = heard

    def begin(self, training: Training) -> None:
        """Find the average of a run that goes on, and be heard when the host evaluates."""
        self._forget()
        self._model, self._optimizer = training.model, innermost(training.optimizer)
        _check_weights(type(self).__name__, training, self._optimizer)
        self._parameters = trained_parameters(training.model, training.optimizer)
        averages: list[WeightAverage] = vars(training.state).setdefault(_AVERAGES, [])
        self._is_first = not averages
        averages.append(self)
        if self.remembered.setdefault("num_averaged", 0):
            self._load(training)
        ending = "" if self._is_first else f"_{len(averages)}"
        stem = Path(averaged_weights.FILE)
        self.remembered["file"] = f"{stem.stem}{ending}{stem.suffix}"
        if self._is_first:
            self._optimizer.eval = self._show
            self._optimizer.train = self._hide

    def stepped(self, training: Training) -> None:
        """Take the new weights in, if it is their turn; write the average of a checkpoint."""
        self._hide()
        state = training.state
        if averaged_weights.is_averaged(state.global_step, self.start, self.every, state.max_steps):
            self._parts = self.include(self._parts, self.remembered["num_averaged"])
            self.remembered["num_averaged"] += 1
        self._save_if_due(training)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may be due at the end of an epoch."""
        self._hide()
        self._save_if_due(training_of(args, state, control, kwargs))

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
            path = Path(best) / self.remembered["file"]
            # where there is none the best model was evaluated before the average began
            parts = self._read(path) if path.is_file() else []
        if self._is_first:
            _drop_methods(self._optimizer)
            if parts:
                averaged_weights.put(self._model, self._weights, averaged_weights.mean(parts))
            else:
                logger.warning("the model after training is no average: none had begun")
        self._forget()

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
        if state.is_hyper_param_search and self._trainer is None:
            return
        self._saved_step = step
        path = self._folder(training) / f"{PREFIX_CHECKPOINT_DIR}-{step}" / self.remembered["file"]
        averaged_weights.save_parts(
            path, [*self._parameters], self._parts, training.args.should_save
        )

    def _folder(self, training: Training) -> Path:
        if self._trainer is None:
            return Path(training.args.output_dir or ".")
        # private in the host (5.23, trainer.py:3336): each trial of a search has its own folder
        return Path(self._trainer._get_output_dir(getattr(self._trainer, "_trial", None)))

    def _load(self, training: Training) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{training.state.global_step}"
        told = [self._resumed_from, training.args.resume_from_checkpoint]
        folders = [Path(given) for given in told if isinstance(given, str | os.PathLike)]
        folders.append(self._folder(training) / name)
        paths = [folder / self.remembered["file"] for folder in folders]
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            raise ValueError(
                f"the run goes on from a checkpoint with an average of "
                f"{self.remembered['num_averaged']} weights, but {self.remembered['file']} is not "
                f"in {', '.join(str(folder) for folder in folders)}: set "
                f"args.resume_from_checkpoint to the folder of the checkpoint that has it, or "
                f"leave {type(self).__name__} out"
            )
        self._parts = self._read(found)

    def _read(self, path: Path) -> list[list[Tensor]]:
        return averaged_weights.load_parts(path, [*self._parameters], self._weights)


def _check_weights(who: str, training: Training, optimizer: Any) -> None:
    flat = any(type(tensor).__name__ == "FlatParameter" for tensor in training.model.parameters())
    if training.args.deepspeed_plugin is not None or flat:
        raise ValueError(
            f"{who} puts averages into the model's weights, but an engine trains joined copies "
            f"({'FSDP1' if flat else 'DeepSpeed'}): use DDP or FSDP2, or leave it out"
        )
    if callable(getattr(type(optimizer), "eval", None)):
        raise ValueError(
            f"{type(optimizer).__name__} evaluates an average of its own, and {who} would average "
            "other weights: leave one of them out"
        )
    if any(hasattr(module, "running_mean") for module in training.model.modules()):
        logger.warning(
            "%s averages no buffers: the statistics of batch normalisation are those of the "
            "weights that are trained; compute them anew with torch.optim.swa_utils.update_bn",
            who,
        )


def _drop_methods(optimizer: Any) -> None:
    for name in ("eval", "train"):
        vars(optimizer).pop(name, None)
