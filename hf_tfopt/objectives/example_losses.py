"""What a model makes of every example of a dataset: its loss, one by one, kept on disk."""

import inspect
import logging
import random
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from torch import Tensor, nn
from transformers.trainer_utils import unwrap_peft_model

from hf_tfopt.data.columns import INPUT_IDS
from hf_tfopt.data.model_inputs import unwrapped
from hf_tfopt.losses.head import labelled_positions
from hf_tfopt.losses.linear_head import CHUNK_BYTES
from hf_tfopt.losses.reduction import IGNORE_INDEX, combine
from hf_tfopt.objectives.automatic import automatic
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.cached_rows import Collator
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.kept_losses import Floats, facts_of, keep, kept
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.teacher import Teacher
from hf_tfopt.registry import check_name

logger = logging.getLogger(__name__)

REDUCTIONS = ("mean", "sum")


def example_losses(
    model: Any,
    dataset: Any,
    collator: Collator,
    *,
    batch_size: int = 16,
    reduction: str = "mean",
    cache: str | Path | None = None,
) -> Floats:
    """The loss of every example alone: a `score` for `DifficultyCurriculum`.

    `np.array([model(**collator([row])).loss for row in dataset])`, by the objective that
    `TfoptTrainer` would choose, in fp32, in evaluation mode and without gradients. The model runs
    where it is and is left as it was, as are the generators of random numbers and the collator, of
    which a copy is used; a collator that draws masks from torch, numpy, random or a generator of
    its own draws the same in every call (`tfo.MaskedLMCollator` those of epoch 0).

    Score with the model that will be trained before it is, and give the array, not a function: a
    resumed run would score with weights that have learned, and order the rows otherwise.

    With several processes each scores the whole dataset, if it is not in the cache: make it before
    they are started.

    Args:
        model: with the heads that it is to be scored by.
        dataset: map-style, of tokenized examples with labels, or what the collator makes labels of.
            Columns of text beside input_ids are left out.
        collator: makes batches of rows.
        batch_size: examples in a forward pass.
        reduction: "mean" over the labels of an example, or their "sum". An example without any
            gets 0, aloud.
        cache: folder for the losses. The next call reads them there if model (its weights),
            dataset (its fingerprint), the collator's first batch and the options are the same.

    Returns:
        [number of rows].

    Raises:
        ValueError: an option out of its range, an empty dataset, batches that no objective has a
            loss for, a loss that is not finite, or a cache of other losses.

    Paper: none; Weinshall et al. 2018, "Curriculum Learning by Transfer Learning"
    (https://arxiv.org/abs/1802.03796), order examples by what another model makes of them.
    """
    check_name("reduction", reduction, REDUCTIONS)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed are 1 and more")
    if not len(dataset):
        raise ValueError("the dataset has no rows")
    model = unwrapped(model)
    collator = _of_first_epoch(collator, [model, unwrap_peft_model(model), dataset])
    options = {"batch_size": batch_size, "reduction": reduction}
    with _left_as_it_was(model):
        _seed()
        batches = _batches(_without_text(dataset), collator, batch_size)
        first = next(batches)
        settings = {} if cache is None else facts_of(model, dataset, first[1], options)
        if cache is not None and (known := kept(Path(cache), settings)) is not None:
            return known
        scorer = _Scorer(model, first[1], reduction, _unused(model, dataset))
        found: list[Floats] = []
        with tqdm(total=len(dataset), desc="Scoring examples", unit=" examples") as bar:
            for rows, batch in chain([first], batches):
                found.append(scorer.losses(rows, batch, collator))
                bar.update(len(rows))
    losses = np.concatenate(found)
    _check_losses(losses, scorer.num_unlabelled)
    if cache is not None:
        keep(Path(cache), settings, losses)
    return losses


class _Scorer:
    """A model in evaluation mode, and the objective that is its loss."""

    def __init__(self, model: Any, batch: Mapping[str, Any], reduction: str, unused: Set[str]):
        self.model = model
        self.unused = unused  # columns that the host would have left out
        self.module: Any = unwrap_peft_model(model)
        self.reduction = reduction
        self.device = next(model.parameters()).device
        self.num_unlabelled = 0
        model.eval()
        _as_float32(model)
        with torch.no_grad():
            objective = automatic(self.module, self._here(batch))
        if objective is None:
            raise ValueError(
                f"no objective knows the loss of {type(self.module).__name__} for one example "
                "alone (see the log); give the curriculum scores of your own"
            )
        self.objective: Objective = objective

    @torch.no_grad()
    def losses(self, rows: Sequence[Any], batch: Mapping[str, Any], collator: Collator) -> Floats:
        """Of these rows, which are this batch; one by one where it cannot be told apart."""
        batch = self._here(batch)
        objective = self.objective
        if isinstance(objective, LanguageModeling):
            labels = objective.labels(batch)
            if len(labels) == len(rows):
                return self._of_tokens(objective, batch, labels)
        elif isinstance(objective, Classification) and len(batch["labels"]) == len(rows):
            logits = objective.terms(self.model, self.module, batch, True)[1]["logits"]
            labels = batch["labels"]
            pairs = zip(logits.split(1), labels.split(1), strict=True)
            each = [self._of_one(_Known(own), {"labels": label}) for own, label in pairs]
            return np.array(each)
        alone = batch if len(rows) == 1 else None
        every = (self._here(collator([row])) if alone is None else alone for row in rows)
        return np.array([self._of_one(self.model, one) for one in every])

    def _of_one(self, model: Any, batch: Mapping[str, Any]) -> float:
        terms, _ = self.objective.terms(model, self.module, batch, False)
        count = sum(float(term.count) for term in terms.values())
        self.num_unlabelled += not count
        if not count:
            return 0.0
        is_sum = self.reduction == "sum"
        return sum(float(t.sum) for t in terms.values()) if is_sum else float(combine(terms))

    def _of_tokens(
        self, objective: LanguageModeling, batch: Mapping[str, Any], labels: Tensor
    ) -> Floats:
        """Of each row of labels [B, T]; logits exist for a few positions at a time."""
        assert objective.plan is not None
        index, picked = labelled_positions(labels)
        answers, _ = Teacher(self.module, objective.plan).look(batch, index)
        sums = torch.zeros(labels.shape[0], dtype=torch.float64)
        size = max(1, CHUNK_BYTES // (4 * self.module.get_output_embeddings().weight.shape[0]))
        for start in range(0, index.numel(), size):
            part = slice(start, min(start + size, index.numel()))
            logits = answers.chunk(part)(slice(0, part.stop - part.start))
            assert isinstance(logits, Tensor)
            nll = nn.functional.cross_entropy(logits.float(), picked[part], reduction="none")
            sums.index_add_(0, (index[part] // labels.shape[1]).cpu(), nll.double().cpu())
        counts = labels.ne(IGNORE_INDEX).sum(1).cpu()
        self.num_unlabelled += int((counts == 0).sum())
        return (sums if self.reduction == "sum" else sums / counts.clamp(min=1)).numpy()

    def _here(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name not in self.unused
        }


class _Known(nn.Module):
    """Stands for a model whose logits are known."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits
        self.eval()

    def forward(self) -> dict[str, Tensor]:
        """As a model's outputs."""
        return {"logits": self.logits}


def _of_first_epoch(collator: Any, shared: Sequence[Any]) -> Any:
    """A copy, so that it need not know of this pass; what may be large is not copied with it."""
    copied = deepcopy(collator, {id(each): each for each in shared})
    if hasattr(copied, "set_epoch"):
        copied.set_epoch(0)
    return copied


def _seed() -> None:
    """Of all generators that a collator may draw from."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _batches(
    dataset: Any, collator: Collator, batch_size: int
) -> Iterator[tuple[list[Any], Mapping[str, Any]]]:
    """The rows of every batch, and the batch."""
    for start in range(0, len(dataset), batch_size):
        numbers = list(range(start, min(start + batch_size, len(dataset))))
        has_batches = hasattr(dataset, "__getitems__")
        rows = dataset.__getitems__(numbers) if has_batches else [dataset[i] for i in numbers]
        yield rows, collator(rows)


def _without_text(dataset: Any) -> Any:
    """The dataset as the host hands it to a collator, which has no use for text."""
    if not isinstance(dataset, datasets.Dataset) or INPUT_IDS not in dataset.column_names:
        return dataset
    features = dataset.features.items()
    text = [name for name, kind in features if getattr(kind, "dtype", "").endswith("string")]
    return dataset.remove_columns(text) if text else dataset


def _unused(model: Any, dataset: Any) -> set[str]:
    """Columns that the model has no argument for, such as the number of an example."""
    arguments = inspect.signature(unwrap_peft_model(model).forward).parameters
    known: Any = getattr(dataset, "column_names", ())
    return {name for name in known if name not in arguments and "label" not in name}


@contextmanager
def _left_as_it_was(model: Any) -> Generator[None]:
    """Modes, precision, random numbers and `problem_type` are put back, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    tensors = [(t, t.data) for t in chain(model.parameters(), model.buffers())]
    config = getattr(unwrap_peft_model(model), "config", None)
    problem = getattr(config, "problem_type", None)
    states = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for tensor, data in tensors:
            tensor.data = data
        if config is not None and hasattr(config, "problem_type"):
            config.problem_type = problem
        random.setstate(states[0])
        np.random.set_state(states[1])


def _as_float32(model: nn.Module) -> None:
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()


def _check_losses(losses: Floats, num_unlabelled: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise ValueError(f"the loss of row {bad[0]} is {losses[bad[0]]}, and {len(bad)} are so")
    if num_unlabelled:
        logger.warning("%d of %d examples have no label: 0", num_unlabelled, len(losses))
