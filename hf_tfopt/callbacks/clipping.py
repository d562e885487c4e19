"""Gradients no longer than they may be: by groups of the model, and number by number."""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.blocks import Groups, roles
from hf_tfopt.callbacks.training import Place, Scalars, Training
from hf_tfopt.optimizers.checks import check_positive
from hf_tfopt.optimizers.group_clipping import clip_groups, clip_values
from hf_tfopt.places import named_places
from hf_tfopt.registry import check_name, nearest

logger = logging.getLogger(__name__)

Grouping = Literal["global", "layer", "role"]
NO_GROUPS = Groups((), (), ())


class Clipping(Intervention):
    """Shortens what the host leaves of the gradients, and counts how often.

    The host clips first (`max_grad_norm`, 1.0 unless it is set), and what it has shortened is what
    comes here: set `max_grad_norm=0` in the TrainingArguments where this is to be all.
    """

    needs_gradients = True
    place = Place.CLIPPING
    needs_unclipped = False  # by the host

    def __init__(self) -> None:
        super().__init__()
        self._names: Sequence[str] = ()
        self._shares: Tensor | None = None
        self._num_steps = 0

    def begin(self, training: Training) -> None:
        """Refuse what the host's clipping would make useless, and count on."""
        limit = training.args.max_grad_norm
        if limit > 0:
            self._beside(limit, training)
        self.remembered.setdefault("shortened", {})
        self.remembered.setdefault("num_steps", 0)

    def release(self) -> None:
        """Drop what was counted and not kept."""
        super().release()
        self._names, self._shares, self._num_steps = (), None, 0

    def _beside(self, limit: float, training: Training) -> None:
        who, advice = type(self).__name__, "set max_grad_norm=0 in the TrainingArguments"
        if self.needs_unclipped:
            raise ValueError(
                f"{who} learns from the norms of gradients as they are, but max_grad_norm="
                f"{limit:g} (the host's default is 1.0) clips them before: {advice}"
            )
        smallest = self.smallest_norm()
        if smallest is not None and smallest >= limit:
            raise ValueError(
                f"{who} would never act: the host clips all gradients together to max_grad_norm="
                f"{limit:g} before it, so that none is longer than {smallest:g}: {advice}"
            )
        if training.state.is_world_process_zero:
            logger.warning(
                "%s: the host clips all gradients together to max_grad_norm=%g before it; %s if it "
                "is to be the only one",
                who,
                limit,
                advice,
            )

    def smallest_norm(self) -> float | None:
        """The smallest global norm at which it may act, if that can be told."""
        return None

    def count(self, names: Sequence[str], shares: Tensor) -> None:
        """Of one step, for each group: 1 if its gradient was shortened, or a share of it."""
        self._num_steps += 1
        self._names = names
        self._shares = shares if self._shares is None else self._shares.to(shares.device) + shares

    def stepped(self, training: Training) -> None:
        """What is counted is in a checkpoint."""
        if training.control.should_save:
            self._keep()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is counted is in a checkpoint made at the end of an epoch."""
        if control.should_save:
            self._keep()

    def _keep(self) -> None:
        shares = [] if self._shares is None else self._shares.tolist()
        kept = self.remembered["shortened"]
        for name, share in zip(self._names, shares, strict=True):
            kept[name] = kept.get(name, 0.0) + share
        self.remembered["num_steps"] += self._num_steps
        self._names, self._shares, self._num_steps = (), None, 0

    def scalars(self, training: Training) -> Scalars:
        """The shares since the last log."""
        self._keep()
        kept, num_steps = self.remembered["shortened"], self.remembered["num_steps"]
        shares = {f"clip_share/{name}": value / num_steps for name, value in kept.items()}
        self.remembered.update(shortened={}, num_steps=0)
        return shares


class GradientClipping(Clipping):
    """An intervention: g ← g · min(1, max_norm / ‖g_group‖) for each group of the weights.

    ‖g_group‖ is the norm of a group's gradients as one vector, whole where they are sharded. A
    group whose norm is not finite is left as it is: clipping makes nothing good, and hides nothing.
    With `max_grad_norm=0` the host, which takes the norm all the same, spreads an infinite gradient
    to all others as NaN before this is asked.

    | name | what |
    |---|---|
    | `clip_share/<group>` | the share of the steps since the last log that were clipped |

    Costs one reading of the gradients for the norms, and one pass where they are shortened (on CUDA
    in every step: nothing is read back, so none is left out).

    Args:
        by: "global": all weights are one group; "layer": the embeddings, each layer and the head;
            "role": embeddings, attention, feed-forward, norms and head, in all layers together.
        max_norm: of each group, above 0; or of some: name or pattern ("encoder.*") to number, where
            the first that matches counts and the other groups are not clipped.

    Raises:
        ValueError: an unknown grouping, a norm that is not above 0; before the first step, a name
            or pattern that no group of the model has, an engine that hides the gradients, or norms
            that the host's own clipping (`max_grad_norm`) keeps from ever being reached.

    Paper: Pascanu et al. 2013, On the difficulty of training Recurrent Neural Networks,
        https://arxiv.org/abs/1211.5063, algorithm 1. Differs: group by group.
    """

    def __init__(self, by: Grouping = "layer", max_norm: float | Mapping[str, float] = 1.0):
        super().__init__()
        check_name("grouping", by, get_args(Grouping))
        if isinstance(max_norm, Mapping):
            if not max_norm:
                raise ValueError("max_norm names no group: nothing would be clipped")
            for name, value in max_norm.items():
                check_positive(f"max_norm[{name!r}]", value)
        else:
            check_positive("max_norm", max_norm)
        self.by: Grouping = by
        self.max_norm = max_norm
        self._groups = NO_GROUPS
        self._limits = torch.zeros(0)
        self._limited: dict[str, float] = {}

    def begin(self, training: Training) -> None:
        """Find the groups."""
        self._groups = grouped_by(training.model, self.by)
        self._limited = limits_of(self._groups.names, self.max_norm)
        limits = [self._limited.get(name, torch.inf) for name in self._groups.names]
        self._limits = torch.tensor(limits)
        super().begin(training)
        if isinstance(self.max_norm, Mapping):
            for name in self._limited:
                say_if_at_rest(training, f"GradientClipping: {name}", self._groups.of(name))

    def release(self) -> None:
        """Let go of the model."""
        super().release()
        self._groups = NO_GROUPS

    def smallest_norm(self) -> float:
        """The smallest of the limits: no group is longer than all of them together."""
        return min(self._limited.values())

    def gradients(self, training: Training) -> None:
        """Shorten them."""
        groups, gradients = self._groups, self._groups.gradients()
        norms = groups.norms(gradients)
        self._limits = self._limits.to(norms.device)
        shortened = clip_groups(gradients, groups.members, norms, self._limits)
        self.count(groups.names, shortened)

    def scalars(self, training: Training) -> Scalars:
        """The shares since the last log, of the groups that have a limit."""
        shares = super().scalars(training)
        limited = {f"clip_share/{name}" for name in self._limited}
        return {key: share for key, share in shares.items() if key in limited}


def say_if_at_rest(training: Training, what: str, parameters: Sequence[Tensor]) -> None:
    """Warn where nothing of what is to be clipped is trained, at least for now."""
    if training.state.is_world_process_zero and not any(p.requires_grad for p in parameters):
        logger.warning("%s: nothing of it is trained, so there is nothing to clip", what)


def grouped_by(model: nn.Module, by: Grouping) -> Groups:
    """All parameters of a model, those that rest included: they may be trained later."""
    parameters = dict(model.named_parameters())
    if by == "layer":
        group_of = {name: place.label for name, place in named_places(model).items()}
    else:
        group_of = roles(model) if by == "role" else dict.fromkeys(parameters, "global")
    names = tuple(dict.fromkeys(group_of[name] for name in parameters))
    members = tuple(names.index(group_of[name]) for name in parameters)
    return Groups(names, tuple(parameters.values()), members)


def limits_of(names: tuple[str, ...], max_norm: float | Mapping[str, float]) -> dict[str, float]:
    """The largest norm of each group that has one.

    Raises:
        ValueError: a name or pattern that is no group's, or that comes too late.
    """
    if not isinstance(max_norm, Mapping):
        return dict.fromkeys(names, max_norm)
    found: dict[str, float] = {}
    for pattern, value in max_norm.items():
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(
                f"max_norm has {pattern!r}, which is no group of the model"
                f"{nearest(pattern, names)}; groups: {', '.join(names)}"
            )
        left = [name for name in matched if name not in found]
        if not left:
            raise ValueError(
                f"max_norm has {pattern!r}, but those before it have a number for "
                f"{', '.join(matched)} already, and the first counts: put it first"
            )
        found |= dict.fromkeys(left, value)
    return found


class ClipByValue(Clipping):
    """An intervention: every number of the gradients into [-max_value, max_value].

    It changes the gradient's direction. A tensor (of a sharded one, a process's shard) with a
    number that is not finite is left as it is.

    | name | what |
    |---|---|
    | `clip_share/value` | the share of the steps since the last log with a larger number |

    Costs one reading of the gradients, and one pass over those with a larger number (on CUDA over
    all).

    Args:
        max_value: above 0.

    Raises:
        ValueError: a `max_value` that is not above 0; before the first step, an engine that hides
            the gradients, or a value that the host's own clipping (`max_grad_norm`) keeps from ever
            being reached.

    Paper: none; Mikolov 2012 clipped so (Statistical Language Models Based on Neural Networks,
        section 3.2.2).
    """

    def __init__(self, max_value: float):
        super().__init__()
        check_positive("max_value", max_value)
        self.max_value = max_value

    def smallest_norm(self) -> float:
        """No number is larger than the norm of all."""
        return self.max_value

    def gradients(self, training: Training) -> None:
        """Clamp them."""
        parameters = training.model.parameters()
        flags = clip_values([p.grad for p in parameters if p.grad is not None], self.max_value)
        self.count(("value",), flags.sum().sign().unsqueeze(0))
