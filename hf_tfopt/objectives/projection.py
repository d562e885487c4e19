"""A linear map from a narrow student's hidden states to its teacher's, trained beside the student.

It is no part of the student: it is there from before the optimizer is made until training ends.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NAME = "distillation_projection"


class FeatureProjection(TrainerCallback):
    """Lets `HiddenStates` compare models of different widths: `states @ W.T`, W learned.

    To be made before the Trainer, and given to it: `projection = FeatureProjection(student,
    teacher); TfoptTrainer(student, ..., callbacks=[projection])`. W is then one of the student's
    parameters: the optimizer trains it, checkpoints hold it, and a resumed run goes on exactly.
    While it trains, the student puts out projected hidden states. When training ends W is taken
    away: the saved student is plain. (Of a checkpoint taken on the way `from_pretrained` says that
    it has one weight too many, and leaves it out.)

    Args:
        student: the model to be trained.
        teacher: its width, or the model.
        seed: of W, drawn as `nn.Linear` draws it.

    Raises:
        ValueError: a student that has one already; when training begins, one that was taken away.

    Paper: Jiao et al. 2020, "TinyBERT", https://arxiv.org/abs/1909.10351, equation 8 (W_h, one for
    all layers, here of both an encoder and a decoder; no other difference).
    """

    def __init__(self, student: Any, teacher: Any, seed: int = 0):
        if hasattr(student, NAME):
            raise ValueError(f"{type(student).__name__} has a {NAME} already")
        self.student = student
        own = width_of(student)
        width = teacher if isinstance(teacher, int) else width_of(teacher)
        like = next(student.parameters())
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(width, own).uniform_(-1, 1, generator=generator) / math.sqrt(own)
        linear = nn.Linear(own, width, bias=False, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
        setattr(student, NAME, linear)
        self._hook = student.register_forward_hook(_project_states)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """It must still be there."""
        if not hasattr(self.student, NAME):
            raise ValueError(
                "the projection was taken away when training ended; make another "
                "FeatureProjection and another Trainer to train again"
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take it away: what is saved from here on is the student alone."""
        self._hook.remove()
        delattr(self.student, NAME)


def _project_states(student: Any, _inputs: Any, outputs: Any) -> Any:
    """In the model's own forward, where DDP looks for what its outputs are made of."""
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        layers = getattr(outputs, name, None)
        if student.training and layers is not None:
            linear = getattr(student, NAME)
            setattr(outputs, name, tuple(linear(states) for states in layers))
    return outputs


def check_width(student: Any, width: int) -> None:
    """Refuse hidden states that cannot be compared with the teacher's.

    Raises:
        ValueError: different widths and no projection, or one to another width.
    """
    own, linear = width_of(student), getattr(student, NAME, None)
    given = own if linear is None else linear.out_features
    if given != width:
        raise ValueError(
            f"the student's hidden states are {own} wide"
            + ("" if linear is None else f", projected to {given},")
            + f" and the teacher's {width}: give the Trainer a FeatureProjection(student, teacher) "
            "as a callback, or take Relations(), which need no equal widths"
        )


def width_of(model: Any) -> int:
    """The width of a model's hidden states."""
    return model.config.hidden_size
