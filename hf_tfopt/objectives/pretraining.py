"""Pre-training on words and on pairs of sentences: masked LM + NSP (BERT) or SOP (ALBERT)."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from hf_tfopt.losses.cross_entropy import cross_entropy
from hf_tfopt.losses.labels import check_labels
from hf_tfopt.losses.reduction import IGNORE_INDEX, Terms, combine
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.sentence_head import (
    HEADS,
    SentenceHead,
    one_pair,
    pair_label,
    pair_starts,
    pooled_at,
    pretraining_class,
    sentence_head,
)

# fp32 means of the same numbers in another order, and bf16 logits, which keep 8 bits
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 5e-2


class Pretraining(LanguageModeling):
    """Two cross-entropies: of the masked words, and of the class of each pair of sentences.

    Equals the loss of `BertForPreTraining`, `AlbertForPreTraining` and their like, the sum of the
    two means: `cross_entropy` over the labelled tokens and `next_sentence` (ALBERT:
    `sentence_order`) over the pairs, each divided by its own count over the whole batch. The words'
    term goes through the loss at the head as in `LanguageModeling`, and its options are of that
    term alone. Pairs come from `tfo.sentence_pairs`, padded or end to end in one row.

    Evaluation also gives the accuracy of the pairs: `next_sentence_accuracy`.

    Args:
        label_smoothing: ε in [0, 1), the ε / V form; this, the next two and class_weights while
            training only: evaluation is plain.
        z_loss: factor of `logsumexp(logits)²`, at least 0.
        focal_gamma: γ of the factor (1 - p)^γ, at least 0; not with label_smoothing.
        at_head: False takes the words' loss from the model's full logits.
        class_weights: [V], of the words, as in `LanguageModeling`.

    Raises:
        ValueError: an option out of its range; while preparing, a model without a sentence head or
            with another loss of its own, or a batch without labels of either kind.

    Paper: Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), appendix A.2: "the training
    loss is the sum of the mean masked LM likelihood and the mean next sentence prediction
    likelihood"; Lan et al. 2020, ALBERT (https://arxiv.org/abs/1909.11942), section 3.1. No
    difference.
    """

    targets = ("labels", *(head.label for head in HEADS))
    head: SentenceHead | None = None
    _num_right: Tensor | None = None  # [right, all] pairs of the evaluation that goes on

    def bind(self, module: nn.Module) -> None:
        """Find the sentence head; raises ValueError where there is none."""
        self.head = sentence_head(module)
        if self.head is None:
            raise ValueError(
                f"{type(module).__name__} has no sentence head: {_with_sentence_head(module)}"
            )

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Find how the loss reaches the words' head; compare with the model's own on one pair."""
        self.bind(model)
        assert self.head is not None
        labels = self.pair_labels(batch)
        super().prepare(model, _words(batch))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self._check(model, {**_words(batch), self.head.label: labels})
        finally:
            model.train(was_training)
            self._num_right = None

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """That of `LanguageModeling`, and the number of labelled pairs."""
        assert self.head is not None, "prepare() comes first"
        labels = self.pair_labels(batch)
        check_labels(labels.masked_fill(labels == IGNORE_INDEX, 0), 2, IGNORE_INDEX)
        pair_starts(batch, labels.shape[0])
        return {**super().counts(batch), self.head.term: labels.ne(IGNORE_INDEX).sum()}

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """The two terms; the outputs' logits of pairs are right in any case."""
        assert self.head is not None, "prepare() comes first"
        labels = self.pair_labels(batch)
        body: Any = module.base_model
        with pooled_at(body, pair_starts(batch, labels.shape[0])):
            words, outputs = self.terms_and_outputs(model, module, _words(batch), with_outputs)
        logits = outputs[self.head.logits]
        self._score(logits, labels, is_evaluated=not model.training)
        pairs = cross_entropy(logits, labels)
        return {**words, self.head.term: pairs}, outputs if with_outputs else None

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the words, and the share of the pairs that were told rightly."""
        assert self.head is not None
        found = super().metrics(means)
        if self._num_right is not None:
            reduced: Any = reduce(self._num_right, "sum")
            num_right, num_pairs = reduced.tolist()
            found[f"{self.head.term}_accuracy"] = num_right / max(num_pairs, 1)
            self._num_right = None
        return found

    def pair_labels(self, batch: Mapping[str, Any]) -> Tensor:
        """The label of each pair [n].

        Raises:
            ValueError: there are none, or of another shape.
        """
        name = pair_label(batch)
        if name is None:
            raise ValueError(
                f"the batch has no {HEADS[0].label}, only {', '.join(batch)}: make the rows with "
                "tfo.sentence_pairs and do not pack them; where a Trainer removes the column "
                "(AlbertForPreTraining calls it sentence_order_label), give it tfo.ArrowRows(rows)"
            )
        labels: Tensor = batch[name]
        if labels.dim() > 1 and labels.shape[1:].numel() != 1:
            raise ValueError(f"{name} has the shape {tuple(labels.shape)}; it is one for each pair")
        return labels.reshape(-1)

    def _score(self, logits: Tensor, labels: Tensor, is_evaluated: bool) -> None:
        if not is_evaluated:
            self._num_right = None
            return
        is_target = labels.ne(IGNORE_INDEX)
        right = logits.argmax(-1).eq(labels) & is_target
        num_right = torch.stack([right.sum(), is_target.sum()])
        self._num_right = num_right if self._num_right is None else self._num_right + num_right

    def _check(self, model: Any, batch: Mapping[str, Any]) -> None:
        """Refuse to train another loss than the model's, or on pairs that see one another."""
        assert self.head is not None
        labels = batch[self.head.label]
        starts = pair_starts(batch, labels.shape[0])
        number = _best_pair(batch["labels"], labels, starts)
        alone = one_pair(batch, number, self.head.label)
        outputs: Any = model(**alone)
        own = outputs.get("loss") if isinstance(outputs, Mapping) else None
        ours = combine(self.terms(model, model, alone, False)[0])
        if own is None or not _near(own, ours):
            raise ValueError(
                f"the loss of {type(model).__name__} is {own}, but the sum of the cross-entropies "
                f"of words and pairs is {float(ours):.5f}: it has terms that this objective does "
                "not know. Train it with objective=None, on its own loss"
            )
        if starts is None:
            return
        with pooled_at(model.base_model, starts):
            _, together = self.terms_and_outputs(model, model, _words(batch), False)
        if not _near(together[self.head.logits][number], outputs[self.head.logits][0]):
            raise ValueError(
                f"{type(model).__name__} does not keep the pairs of a row without padding apart: "
                "leave its attention as it is (no 'unpadded'), so that its batches are padded"
            )


def _words(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without the labels of pairs."""
    names = [head.label for head in HEADS]
    return {name: value for name, value in batch.items() if name not in names}


def _best_pair(words: Tensor, pairs: Tensor, starts: Tensor | None) -> int:
    """The number of the pair with the most labelled words among those with a label."""
    is_word = words.ne(IGNORE_INDEX)
    if starts is None:
        num_words = is_word.sum(-1)
    else:
        before = nn.functional.pad(is_word.reshape(-1).cumsum(0), (1, 0))
        num_words = before[starts[1:]] - before[starts[:-1]]
        num_words = torch.cat([num_words, before[-1:] - before[starts[-1:]]])
    num_words = num_words.masked_fill(pairs == IGNORE_INDEX, 0)
    best = int(num_words.argmax())
    if not int(num_words[best]):
        raise ValueError(
            f"no pair of the batch has a label and a labelled word: all others are {IGNORE_INDEX}"
        )
    return best


def _near(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to the rounding of their type."""
    is_exact = ours.dtype in (torch.float32, torch.float64)
    tolerance = TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE
    return torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def _with_sentence_head(model: Any) -> str:
    """The class to take instead, or which architectures have one."""
    try:
        return f"take {pretraining_class(model.config.model_type).__name__}"
    except ValueError as error:
        return str(error)
