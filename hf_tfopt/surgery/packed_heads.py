"""Heads that classify examples, and read the first state of each where several share a row."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.surgery.attention import NAME as UNPADDED

# The model's new arguments, and what a batch calls them
STARTS, NUMBER = "example_starts", "num_examples"
LENGTHS = (5, 7, 3)  # of the examples by which a head is tried
# Of the range of the logits; those of another position, or of mixed examples, are about 1 apart.
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.1


def packed_classification(model: Any) -> Any:
    """Let the head of a sequence classifier read every example of packed rows; returns the model.

    The model takes one argument more, `example_starts` [n]: where examples begin among the
    rows * width positions of the batch (and `num_examples`, by which it is checked). Its head then
    sees, in the place of the states of whole rows, those of the examples' first tokens, and gives
    one row of logits for each example,

        states.flatten(0, 1)[example_starts].unsqueeze(1)

    so that logits, loss and gradients are those of the same examples padded (dropout draws other
    numbers). Without that argument nothing is changed, and what is saved has no trace of it.
    `ClassificationCollator` makes such batches. The model is tried before it is returned: three
    random examples, in one row and alone, must give the same logits.

    Args:
        model: a `PreTrainedModel`, also inside PEFT, whose head reads the first position: BERT,
            RoBERTa, ELECTRA, DistilBERT, ALBERT, ModernBERT with classifier_pooling="cls".

    Raises:
        ValueError: the logits differ: a head that reads other positions or none (those of tokens
            need no surgery), or an attention of its own that mixes packed examples (DeBERTa).

    Paper: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination",
    https://arxiv.org/abs/2107.02027, section 3.2: attention and loss of packed examples apart. The
    paper pre-trains; heads that read first positions are our addition.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "reads_example_starts", False):
        return model
    if not (getattr(base, "_supports_attention_backend", False) and base._supports_sdpa):
        raise ValueError(_refusal(base, "an attention of its own"))
    body: Any = base.base_model
    if body is base:
        raise ValueError(_refusal(base, "no head"))
    reason = "nothing to hook"
    for place in (body, getattr(body, "encoder", None)):
        if not isinstance(place, nn.Module):
            continue
        states = FirstStates()
        handles = (
            body.register_forward_pre_hook(states.take, with_kwargs=True),
            place.register_forward_hook(states.gather),
        )
        reason = _difference(base)
        if reason is None:
            base.reads_example_starts = True  # an attribute of the module: copied, never saved
            return model
        for handle in handles:
            handle.remove()
    raise ValueError(_refusal(base, reason))


class FirstStates:
    """The hooks: one takes `example_starts` from the model's arguments, one gathers states there.

    A class rather than closures, so that a model with them can be copied and pickled. The first
    sits on the body, as adapters (PEFT) call the forward of the whole model past its hooks.
    """

    def __init__(self) -> None:
        self.starts: Tensor | None = None

    def take(
        self, _module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the body: keep `example_starts`, which no layer knows.

        Raises:
            ValueError: there are not `num_examples` of them (or a multiple, where a batch is given
                several times at once): something has cut the batch by its rows.
        """
        options = dict(options)
        self.starts, number = options.pop(STARTS, None), options.pop(NUMBER, None)
        if self.starts is not None and number and (len(self.starts) or 1) % number:
            raise ValueError(
                f"{len(self.starts)} of the {number} examples of a packed batch are left: batches "
                "were cut by their rows, as accelerate does with a streamed dataset; give the "
                "TrainingArguments accelerator_config={'dispatch_batches': False}"
            )
        return inputs, options

    def gather(self, _module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        """Behind the layers: the states at the starts, [n, 1, hidden], for those of all rows."""
        starts, self.starts = self.starts, None
        if starts is None:
            return outputs
        states: Tensor = outputs[0]
        first = states.reshape(-1, states.shape[-1]).index_select(0, starts).unsqueeze(1)
        if isinstance(outputs, tuple):
            return first, *outputs[1:]
        outputs[next(iter(outputs))] = first  # a ModelOutput made for this call
        return outputs


def _difference(model: Any) -> str | None:
    """Why the logits of packed examples are not those of each alone; None: they are."""
    generator = torch.Generator().manual_seed(0)
    try:
        ids = _random_ids(model, generator)
        with torch.no_grad(), _in_evaluation(model), _with_random_head(model, generator):
            alone = [model(input_ids=part[None]).logits for part in ids.split(LENGTHS)]
            packed = model(input_ids=ids[None], **_one_row(model, ids.device)).logits
    except Exception as error:  # a model of any kind may be given, and fail in any way
        return f"{type(error).__name__} when tried with packed examples: {error}"
    if alone[0].dim() != 2:
        return f"logits of shape {tuple(alone[0].shape)} for one example, not [1, classes]"
    expected = torch.cat(alone).float()
    if packed.shape != expected.shape:
        return "a head that gives one row of logits for each row, not for each example"
    spread = float((expected - expected.mean(0)).abs().max())
    share = TOLERANCE if alone[0].dtype.itemsize > 2 else LOW_PRECISION_TOLERANCE
    error = float((packed.float() - expected).abs().max())
    if error <= share * spread and spread > 0:
        return None
    return f"logits that differ by {error:.2g} between packed examples and each alone"


def _random_ids(model: Any, generator: torch.Generator) -> Tensor:
    """Token ids, none of them the one by which RoBERTa knows padding."""
    weight = model.get_input_embeddings().weight
    ids = torch.randint(len(weight) - 1, (sum(LENGTHS),), generator=generator)
    padding = getattr(model.config, "pad_token_id", None)
    return (ids if padding is None else ids + (ids >= padding)).to(weight.device)


def _one_row(model: Any, device: torch.device) -> dict[str, Any]:
    """What places the examples of the trial end to end."""
    bounds = torch.tensor([0, *LENGTHS], device=device).cumsum(0)
    first = _first_position(model)
    positions = torch.cat([torch.arange(first, first + n, device=device) for n in LENGTHS])
    ends = {name: bounds.to(torch.int32) for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
    longest = {name: max(LENGTHS) for name in ("max_length_q", "max_length_k")}
    return {"position_ids": positions[None], STARTS: bounds[:-1], **ends, **longest}


def _first_position(model: nn.Module) -> int:
    """RoBERTa and its kin number positions from padding_idx + 1, all others from 0."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padding = next((m.padding_idx for m in tables if isinstance(m, nn.Embedding)), None)
    return 0 if padding is None else padding + 1


@contextmanager
def _in_evaluation(model: nn.Module) -> Generator[None]:
    """For its length no dropout, and unpadded attention, which takes examples end to end."""
    training = {module: module.training for module in model.modules()}
    owners: list[Any] = [module for module in training if hasattr(module, "config")]
    configs = {id(owner.config): owner.config for owner in owners}.values()
    names = [config._attn_implementation for config in configs]
    try:
        model.eval()
        for config in configs:  # the property would set it in every config below, too
            config._attn_implementation_internal = UNPADDED
        yield
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _with_random_head(model: Any, generator: torch.Generator) -> Generator[None]:
    """For its length a head of random weights: one of zeros gives the same whatever it reads."""
    body = {id(parameter) for parameter in model.base_model.parameters()}
    head = [p for p in model.parameters() if id(p) not in body and p.is_floating_point()]
    kept = [parameter.clone() for parameter in head]
    try:
        for parameter in head:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values / max(1, parameter.shape[-1]) ** 0.5)
        yield
    finally:
        for parameter, values in zip(head, kept, strict=True):
            parameter.copy_(values)


def _refusal(model: Any, reason: str) -> str:
    return (
        f"{type(model).__name__} cannot classify packed examples: it has {reason}. Pad its batches "
        "(ClassificationCollator(tokenizer, is_packed=False)), or take a model whose head reads "
        "the first position, such as BertForSequenceClassification; heads of tokens need no surgery"
    )
