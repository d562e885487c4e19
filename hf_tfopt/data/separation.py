"""Does a causal model keep the documents of a packed row apart? Tried out, on the model itself.

No list of architectures says it: one forward of a few tokens, and the gradient of some documents'
outputs with respect to all embedded tokens.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_tfopt.data.keyed_bits import Integers

# The documents of two packed rows; the second has padding.
LENGTHS = ((3, 5, 1), (4, 2))
WATCHED = (1, 4)  # of all documents: one with neighbours on both sides, one before padding
FIRST = LENGTHS[0][0]  # where the watched document of the first row begins
# Of the largest output: kernels differ, and TF32 and bfloat16 keep 10 and 7 bits. A position that
# does not restart makes as much difference as another token.
TOLERANCE = {torch.float32: 0.01, torch.float64: 1e-4}
HALF_TOLERANCE = 0.1

Documents = Sequence[Integers]
MakeBatch = Callable[[Sequence[Documents]], Mapping[str, Any]]


def why_mixed(
    model: nn.Module, packed: MakeBatch, padded: MakeBatch, ids: Integers, implementation: str
) -> str | None:
    """How this model mixes the documents of packed rows; None if it keeps them apart.

    Kept apart are documents if what one gives has a gradient of exactly 0 with respect to the
    embedded tokens of all others, and equals what it gives in a row of its own.

    Args:
        model: in whatever state; it is left as it was.
        packed: rows of documents -> the model's inputs, as they will be in training.
        padded: the same for rows of one document each, padded.
        ids: token ids to make documents of.
        implementation: of its attention.

    Raises:
        ValueError: a token's output depends on tokens behind it.
    """
    rng = np.random.default_rng(0)
    rows = [[rng.choice(ids, length) for length in lengths] for lengths in LENGTHS]
    documents = [document for row in rows for document in row]
    device = next(model.parameters()).device
    needs_half = implementation.startswith("flash")
    if device.type == "cpu" and (needs_half or implementation.startswith("flex")):
        return f"{implementation} trains on a GPU only, and the model is not on one (yet)"
    try:
        with _undisturbed(model, device, needs_half):
            together, of_watched, of_first = _try(model, packed(rows), device)
            with torch.no_grad():
                inputs = _on(padded([[document] for document in documents]), device)
                alone: Tensor = model(**inputs).logits
    except Exception as error:  # whatever a model of any kind may say to such a batch
        return f"it could not be tried out ({type(error).__name__}: {error})"
    first, end = FIRST, sum(LENGTHS[0][:2])
    if bool(of_first[0, first + 1 : end].any()):
        raise ValueError(
            f"{type(model).__name__} sees the tokens that it is to guess: it is not a causal "
            "model. Take MaskedLMCollator for it, or make it a decoder (config.is_decoder=True)"
        )
    return _verdict(documents, together, of_watched, alone)


def _verdict(documents: Documents, together: Tensor, gradient: Tensor, alone: Tensor) -> str | None:
    """What the outputs of both batches and the gradient of the watched documents say."""
    own = torch.zeros(gradient.shape[:2], dtype=torch.bool, device=gradient.device)
    largest, furthest, number = float(alone.abs().max()), 0.0, 0
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            places = slice(start, start + length)
            own[row, places] = number in WATCHED
            difference = together[row, places].float() - alone[number, :length].float()
            furthest = max(furthest, float(difference.abs().max()))
            start, number = start + length, number + 1
    assert number == len(documents)
    if not bool(gradient[own].any()):
        return "its outputs do not depend on its input embeddings"
    if bool(gradient[~own].any()):
        return "what one document gives depends on its neighbours in the row"
    tolerance = TOLERANCE.get(together.dtype, HALF_TOLERANCE)
    if not furthest <= tolerance * largest:
        return f"a document gives other outputs than alone (by {furthest:.2g} of {largest:.2g})"
    return None


def _try(
    model: Any, batch: Mapping[str, Any], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits; the gradients of the watched documents' and of the token's at `FIRST`.

    Both are with respect to the embedded tokens.
    """
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits: Tensor = model(**_on(batch, device)).logits
            (before, length, _), (start, rest) = LENGTHS
            watched = [logits[0, before:][:length], logits[1, start:][:rest]]
            gradients = [_gradient(parts, embedded) for parts in (watched, [logits[0, FIRST]])]
    finally:
        hook.remove()
    return logits.detach(), gradients[0], gradients[1]


def _gradient(outputs: Sequence[Tensor], embedded: Sequence[Tensor]) -> Tensor:
    """Of a sum of the outputs with different weights: that of a plain sum may vanish."""
    flat = torch.cat([output.flatten() for output in outputs]).float()
    weights = torch.linspace(-1, 1, len(flat), device=flat.device)
    return torch.autograd.grad((flat * weights).sum(), embedded, retain_graph=True)[0]


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The model's inputs on its device, without labels."""
    moved = {name: v.to(device) if hasattr(v, "to") else v for name, v in batch.items()}
    return {name: value for name, value in moved.items() if name != "labels"}


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device, needs_half: bool) -> Generator[None]:
    """Evaluation mode; afterwards every module and the random numbers are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    is_full = next(model.parameters()).dtype == torch.float32
    try:
        model.eval()
        with (
            torch.random.fork_rng(devices),
            torch.autocast(device.type, torch.bfloat16, enabled=needs_half and is_full),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
