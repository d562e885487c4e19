"""What can be done about a bad step: no update, back to a snapshot."""

from typing import Any

from hf_tfopt.callbacks.remembered import companions
from hf_tfopt.callbacks.snapshot import Snapshot, extras, put_extras, trained_tensors
from hf_tfopt.callbacks.trained import innermost
from hf_tfopt.callbacks.training import Training
from hf_tfopt.callbacks.vitals import Body


class Recovery:
    """Leaves a step out, and puts weights back that were good.

    Args:
        training: whose weights, gradients and optimizer state these are.
        has_snapshot: whether there is to be one; the first is taken in the first step.
        is_on_cpu: where; see `Snapshot`.

    Raises:
        ValueError: weights that are not finite now.
    """

    def __init__(self, training: Training, has_snapshot: bool, is_on_cpu: bool):
        self.body = Body(training.model)
        self.age = 0  # good steps since the snapshot
        self._snapshot = Snapshot(is_on_cpu) if has_snapshot else None
        self._groups: list[dict[str, Any]] | None = None
        if bad := self.body.bad_weights():
            raise ValueError(f"weights are not finite before the first step: {', '.join(bad)}")
        if callable(getattr(training.optimizer, "train", None)):
            training.optimizer.train()  # Schedule-Free's checkpoints hold other weights

    def start(self, training: Training) -> None:
        """The first snapshot, when every callback has begun."""
        if self._snapshot is not None and not self._snapshot.is_taken:
            self.take(training)

    def take(self, training: Training) -> None:
        """A snapshot of now, if there is to be one."""
        if self._snapshot is not None:
            tensors = trained_tensors(training.model, training.optimizer)
            self._snapshot.take(tensors, training.optimizer)
            for companion in companions(training.state):
                companion.kept(training)
        self.age = 0

    def put_back(self, training: Training, bad: list[str]) -> str:
        """Go back to the snapshot; what was done, in words.

        Args:
            training: of the step in which it happens.
            bad: the blocks whose weights are not finite.

        Raises:
            FloatingPointError: they are not finite after that either, or there is no snapshot.
        """
        if self._snapshot is not None:
            self._put_back(self._snapshot, training)
            bad = self.body.bad_weights() if bad else []
        if bad:
            reason = (
                "no snapshot was kept: give StabilityGuard snapshot_every a number"
                if self._snapshot is None
                else "a snapshot does not hold them, as they are not trained"
            )
            raise FloatingPointError(
                f"weights are not finite in {', '.join(bad)} after step "
                f"{training.state.global_step}, and {reason}; go on from the last checkpoint"
            )
        age, self.age = self.age, 0
        return f"back to the weights of {age} good step{'s' * (age != 1)} before"

    def _put_back(self, snapshot: Snapshot, training: Training) -> None:
        """All that was, but in the mode of now: Schedule-Free's weights are others in each."""
        optimizer = training.optimizer
        modes = [group.get("train_mode", True) for group in optimizer.param_groups]
        snapshot.put_back(optimizer)
        if callable(getattr(type(innermost(optimizer)), "train", None)):
            (optimizer.train if all(modes) else optimizer.eval)()
        for companion in companions(training.state):
            companion.put_back(training)

    def skip(self, training: Training) -> None:
        """Let the optimizer's step change nothing, also not what it counts in its groups."""
        for tensor in trained_tensors(training.model, training.optimizer):
            tensor.grad = None
        groups = training.optimizer.param_groups
        self._groups = [extras(group) for group in groups]

    def skipped(self, training: Training) -> None:
        """After the optimizer's step."""
        if self._groups is not None:
            groups = training.optimizer.param_groups
            for group, saved in zip(groups, self._groups, strict=True):
                put_extras(group, saved)
            self._groups = None
