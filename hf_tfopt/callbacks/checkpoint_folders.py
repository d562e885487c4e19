"""Where the checkpoints of a run are."""

import os
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_tfopt.callbacks.training import Training


def own_checkpoint(trainer: Any, training: Training) -> Path:
    """The checkpoint of now, written or not.

    Args:
        trainer: of the training; None where it is not known, and not in a search.
        training: of the step.
    """
    name = f"{PREFIX_CHECKPOINT_DIR}-{training.state.global_step}"
    if trainer is None:
        return Path(training.args.output_dir or ".") / name
    # private in the host (5.23, trainer.py:3336): each trial of a search has its own folder
    return Path(trainer._get_output_dir(getattr(trainer, "_trial", None))) / name


def checkpoint_folders(trainer: Any, training: Training) -> list[Path]:
    """The checkpoints that a run may have gone on from, before its first step; likeliest first.

    Args:
        trainer: of the training; None where it is not known: nothing tells what `train` was told.
        training: that begins.
    """
    resumed = getattr(trainer, "resumed_from", None)
    named = training.args.resume_from_checkpoint
    own = own_checkpoint(trainer, training)
    if isinstance(resumed, str | os.PathLike):
        places = [resumed, named]
    else:
        places = [own, named] if resumed is True else [named, own]
    return [Path(place) for place in places if isinstance(place, str | os.PathLike)]
