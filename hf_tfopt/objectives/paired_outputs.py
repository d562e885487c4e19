"""The outputs that two passes over one batch are compared by, and the batch given twice at once.

What is compared are a model's logits at the items of its objective: at the labelled tokens, or of
whole examples, labelled or not.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.consistency import kl_from, squared_distance, symmetric_kl
from hf_tfopt.losses.cross_entropy import cross_entropy
from hf_tfopt.losses.head import LinearHead, forward_at_head, labelled_positions, logits_of
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum, Terms, unlabelled
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import LanguageModeling, model_inputs
from hf_tfopt.surgery.packed_heads import STARTS

Comparable = LanguageModeling | Classification
Divergence = Callable[[Tensor, Tensor], LossSum]


def comparable(objective: Objective, name: str) -> Comparable:
    """The objective, if its outputs can be compared.

    Raises:
        ValueError: it is neither `LanguageModeling` nor `Classification`, or trains more than they.
    """
    plain = (LanguageModeling.terms, Classification.terms)
    if isinstance(objective, Comparable) and type(objective).terms in plain:
        return objective
    raise ValueError(
        f"{name} compares a model's logits and wraps LanguageModeling or Classification, not "
        f"{type(objective).__name__}"
    )


def symmetric_divergence(objective: Comparable) -> Divergence:
    """`losses.consistency.symmetric_kl`, or the squared distance of numbers."""
    problem = "" if isinstance(objective, LanguageModeling) else objective.problem
    if problem == "regression":
        return squared_distance
    is_multi_label = problem == "multi_label_classification"
    return lambda first, second: symmetric_kl(first, second, is_multi_label)


def divergence_from(objective: Comparable) -> Divergence:
    """`losses.consistency.kl_from`, or the squared distance of numbers, to the second alone."""
    problem = "" if isinstance(objective, LanguageModeling) else objective.problem
    if problem == "regression":
        return lambda fixed, numbers: squared_distance(fixed.detach(), numbers)
    is_multi_label = problem == "multi_label_classification"
    return lambda fixed, logits: kl_from(fixed, logits, is_multi_label)


def num_compared(objective: Comparable, batch: Mapping[str, Any]) -> Tensor:
    """The count of a divergence of the batch's outputs: tokens, examples, or single numbers."""
    if isinstance(objective, LanguageModeling):
        return objective.labels(batch).ne(IGNORE_INDEX).sum()
    labels: Tensor = batch["labels"]
    if objective.problem == "single_label_classification" and labels.dim() > 1:
        return labels.ne(IGNORE_INDEX).sum()
    return torch.tensor(labels.numel(), device=labels.device)


def compare(
    objective: Comparable,
    model: nn.Module,
    module: nn.Module,
    batch: Mapping[str, Any],
    use: Callable[[Tensor], Terms],
    num_copies: int = 1,
    num_labelled: int = 0,
) -> Terms:
    """One training pass over a batch, or over the batch twice.

    Args:
        objective: whose items are compared.
        model: as called, in its wrappers.
        module: without wrappers.
        batch: the model's inputs and labels.
        use: logits [num_copies * n, C] of the items -> terms.
        num_copies: 1, or 2: the batch twice, one after the other.
        num_labelled: copies that the objective's own terms are of; 0: none.
    """
    copies = batch if num_copies == 1 else twice(batch)
    if isinstance(objective, LanguageModeling):
        return _compare_tokens(objective, model, module, batch, copies, use, num_labelled)
    labels = copies["labels"]
    if num_labelled < num_copies:
        size = batch["labels"].shape[0]
        copies = unlabelled(copies, ("labels",), num_labelled * size, num_copies * size)
    terms, outputs = objective.terms(model, module, copies, True)
    logits = logits_of(outputs)
    if logits.dim() > 2 and objective.problem == "single_label_classification":
        logits = logits[labels.ne(IGNORE_INDEX)]
    return {**(terms if num_labelled else {}), **use(logits)}


def _compare_tokens(
    objective: LanguageModeling,
    model: nn.Module,
    module: nn.Module,
    batch: Mapping[str, Any],
    copies: Mapping[str, Any],
    use: Callable[[Tensor], Terms],
    num_labelled: int,
) -> Terms:
    assert objective.plan is not None, "prepare() comes first"
    targets = objective.labels(batch)
    index, picked = labelled_positions(targets)
    if copies is not batch:
        index = torch.cat([index, index + targets.numel()])

    def at_rows(rows: Tensor, head: LinearHead | None) -> Terms:
        logits = rows if head is None else head(rows)
        if not num_labelled:
            return use(logits)
        labelled = logits[: num_labelled * len(picked)]
        term = cross_entropy(
            labelled,
            picked.repeat(num_labelled),
            **vars(objective.form),
            class_weights=objective.class_weights.on(labelled.device),
        )
        return {"cross_entropy": term, **use(logits)}

    inputs = model_inputs(module, copies)
    return forward_at_head(objective.plan, module, lambda: model(**inputs), index, at_rows)[0]


def twice(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch and the batch again, as one batch of twice as many rows.

    Raises:
        ValueError: something in it that has no rows to repeat.
    """
    ids = next(value for value in batch.values() if _has_rows(value))
    starts = batch.get(STARTS)
    if starts is None:
        return {name: _repeated(name, value, ids.shape[0]) for name, value in batch.items()}
    # packed examples that are classified: the labels are theirs, not the rows'
    own = {STARTS: torch.cat([starts, starts + ids.numel()])}
    if "labels" in batch:
        own["labels"] = _repeated("labels", batch["labels"], len(starts))
    rest = {name: value for name, value in batch.items() if name not in own}
    return {name: _repeated(name, value, ids.shape[0]) for name, value in rest.items()} | own


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def _repeated(name: str, value: Any, size: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _repeated(f"{name}.{key}", item, size) for key, item in value.items()}
    if isinstance(value, bool | int | float | str | None) or _is_scalar(value):
        return value
    if isinstance(value, Tensor) and name.startswith("cu_seq_lens"):
        return torch.cat([value, value[1:] + value[-1]])
    if isinstance(value, Tensor) and value.shape[0] == size:
        return torch.cat([value, value])
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    raise ValueError(
        f"{name} of the batch ({type(value).__name__}{shape}) cannot be repeated for a second pass "
        f"over its {size} rows"
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0
