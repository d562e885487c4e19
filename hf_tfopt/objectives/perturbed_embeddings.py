"""A perturbation of the input embeddings, added where the model looks them up.

A hook adds it to what the embedding gives, so the model sees its usual token ids: the result is
that of `inputs_embeds = embedding(input_ids) + delta`, also for models that make positions or masks
of the ids, and no parameter is touched.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from hf_tfopt.losses.perturbation import (
    Examples,
    end_to_end_examples,
    packed_examples,
    padded_examples,
)
from hf_tfopt.objectives.wrapping import Wrapping
from hf_tfopt.surgery.packed_heads import STARTS


class Perturbation:
    """Delta [B, T, E] in fp32 (or wider): a leaf whose gradient says where the loss grows.

    Of an encoder-decoder model the encoder's input is perturbed. Special tokens are perturbed like
    any others; padding is not.

    Args:
        module: the model without wrappers.
        batch: its inputs; the examples of a batch with `cu_seq_lens_q` lie end to end, else each
            row is one (a row packed with several, too).
        start: (zeros [B, T, E], this) -> delta at first.

    Raises:
        ValueError: a model or a batch without token embeddings.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Mapping[str, Any],
        start: Callable[[Tensor, "Perturbation"], Tensor],
    ):
        self.name = type(module).__name__
        self.ids = token_ids(batch).flatten(0, -2)  # of several choices each is an example
        self.embedding = input_embedding(module)
        self.examples = _examples(batch)
        self._start = start
        self._delta: Tensor | None = None
        self._random = torch.get_rng_state(), get_device_states(self.ids)

    @property
    def delta(self) -> Tensor:
        """The values; there once the model has looked its embeddings up for the first time."""
        assert self._delta is not None, "the model has not run yet"
        return self._delta

    @property
    def gradient(self) -> Tensor:
        """What the last backward pass left; raises ValueError where it left none."""
        return self.reached(self.delta.grad)

    def reached(self, gradient: Tensor | None) -> Tensor:
        """The gradient; raises ValueError where the model cuts it off on the way."""
        if gradient is None:
            raise ValueError(
                f"no gradient reaches the input embeddings of {self.name}: what is between them "
                "and the loss must not be detached"
            )
        return gradient

    def move(self, to: Tensor, is_last: bool = False) -> None:
        """Take new values; the last ones need no gradient."""
        self._delta = to.detach().requires_grad_(not is_last)

    @contextmanager
    def added(self) -> Generator[None]:
        """Within, the model runs once, perturbed; of a batch given twice, the second half is.

        Every time the random state is that of the first: the same dropout.

        Raises:
            ValueError: the model did not look up its embeddings, or not one for each token.
        """
        num_calls = 0

        def add(_module: nn.Module, _inputs: Any, embeds: Tensor) -> Tensor:
            nonlocal num_calls
            num_calls += 1
            # A decoder may share the encoder's embedding, and looks it up later.
            return self._add(embeds) if num_calls == 1 else embeds

        self._restore_random_state()
        handle = self.embedding.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
        if not num_calls:
            raise ValueError(
                f"{self.name} did not call its input embedding: it cannot be perturbed there"
            )

    def _restore_random_state(self) -> None:
        on_cpu, (devices, states) = self._random
        torch.set_rng_state(on_cpu)
        if devices:
            set_device_states(devices, states, device_type=self.ids.device.type)

    def _add(self, embeds: Tensor) -> Tensor:
        num_copies, rest = divmod(embeds.numel(), self.ids.numel() * embeds.shape[-1])
        if rest or num_copies not in (1, 2):
            raise ValueError(
                f"the input embedding of {self.name} gave {tuple(embeds.shape)} for token ids of "
                f"shape {tuple(self.ids.shape)}: one vector for each token is expected"
            )
        if self._delta is None:
            wide = torch.promote_types(embeds.dtype, torch.float32)
            shape = (*self.ids.shape, embeds.shape[-1])
            empty = torch.zeros(shape, dtype=wide, device=embeds.device)
            self.move(self._start(empty, self))
        shift = self.delta
        if num_copies == 2:
            shift = torch.cat([torch.zeros_like(shift), shift])
        return embeds + shift.to(embeds.dtype).view_as(embeds)


class OnEmbeddings(Wrapping):
    """An objective that perturbs token embeddings: refuses models and batches that have none."""

    def bind(self, module: nn.Module) -> None:
        """Bind the wrapped objective; refuse a model without token embeddings."""
        input_embedding(module)
        super().bind(module)

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Prepare the wrapped objective; refuse a batch without token ids."""
        token_ids(batch)
        super().prepare(model, batch)


def input_embedding(module: nn.Module) -> nn.Module:
    """The token embedding of a model, or of its encoder.

    Raises:
        ValueError: it has none.
    """
    model: Any = module
    embedding: Any = None
    try:
        if getattr(model.config, "is_encoder_decoder", False):
            # T5's encoder has a module of its own, which shares only the weight
            model = model.get_encoder()
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise ValueError(
            f"{type(module).__name__} has no input embeddings to perturb (get_input_embeddings())"
        )
    return embedding


def token_ids(batch: Mapping[str, Any]) -> Tensor:
    """The token ids of a batch; raises ValueError where there are none."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        raise ValueError(
            "token embeddings are perturbed, but the batch has no input_ids, only "
            f"{', '.join(batch)}"
        )
    return ids


def refuse_compiled(model: nn.Module) -> None:
    """Raise ValueError for a compiled model: it would not see the hook on its embedding."""
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "a compiled model (torch_compile) does not see that its embeddings are perturbed; "
            "train without torch_compile"
        )


def unsynchronized(model: Any) -> AbstractContextManager[Any]:
    """A pass that leaves no gradients in the parameters: DDP must not wait for any."""
    return model.no_sync() if hasattr(model, "no_sync") else nullcontext()


def ascent(model: nn.Module, perturbation: Perturbation, loss: Callable[[], Tensor]) -> Tensor:
    """The gradient of a loss by delta, from a pass that leaves the parameters' gradients alone.

    Not with reentrant checkpoints of activations, which PyTorch cannot differentiate so.
    """
    with unsynchronized(model), perturbation.added():
        value = loss()
    # the trainer's autocast is on here, where a backward pass does not belong
    with torch.autocast(value.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(value, perturbation.delta, allow_unused=True)
    return perturbation.reached(gradient)


def zeros(empty: Tensor, _perturbation: Perturbation) -> Tensor:
    """No perturbation at first."""
    return empty


def _examples(batch: Mapping[str, Any]) -> Examples:
    ids = token_ids(batch)
    if "cu_seq_lens_q" in batch:
        return end_to_end_examples(batch["cu_seq_lens_q"], ids.numel())
    if STARTS in batch:
        return packed_examples(batch[STARTS], batch["position_ids"])
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        mask = torch.ones_like(ids)
    return padded_examples(mask.flatten(0, -2))
