"""Masked, causal and sequence-to-sequence language modelling through the loss at the head."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.cross_entropy import CrossEntropyForm, count_of, cross_entropy
from hf_tfopt.losses.head import (
    HeadPlan,
    cross_entropy_at_head,
    forward_at_head,
    labelled_positions,
    logits_of,
    shift,
)
from hf_tfopt.losses.head_plan import plan_head
from hf_tfopt.losses.reduction import IGNORE_INDEX, Terms, perplexity
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.class_weights import ClassWeights

logger = logging.getLogger(__name__)


class LanguageModeling(Objective):
    """Cross-entropy of the labelled tokens, for masked, causal and seq2seq language models.

    Equals `cross_entropy(model(**inputs).logits, labels)` (labels shifted for causal models), but
    only labelled positions pass through the model's head and no logits are kept, where the model
    allows it; the log says so where it does not.

    Args:
        label_smoothing: ε in [0, 1), the ε / V form; this, the next two and class_weights while
            training only: evaluation is plain.
        z_loss: factor of `logsumexp(logits)²`, at least 0.
        focal_gamma: γ of the factor (1 - p)^γ, at least 0; not with label_smoothing.
        at_head: False takes the loss from the model's full logits.
        class_weights: [V], one for each of the model's logits (`config.vocab_size`), at least 0;
            the count is then the sum of the labels' weights. Where the model's table is padded
            beyond the tokenizer, the tokens that are never labels need one, too.

    Raises:
        ValueError: an option out of its range; while preparing, no label in the first batch, other
            than V class_weights, or a model whose own loss is not the cross-entropy of its logits.

    Paper: Devlin et al. 2019, "BERT"; no difference in the loss itself. The options' papers are
    named in `losses.cross_entropy`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        focal_gamma: float = 0.0,
        at_head: bool = True,
        class_weights: Sequence[float] | Tensor | None = None,
    ):
        self.form = CrossEntropyForm(label_smoothing, z_loss, focal_gamma)
        self.class_weights = ClassWeights(class_weights)
        self.at_head = at_head
        self.plan: HeadPlan | None = None

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Find how the loss reaches this model's head (`losses.head_plan`)."""
        labels = batch.get("labels")
        if labels is None:
            raise ValueError(f"the batch has no labels, only {', '.join(batch)}")
        if not bool(labels.ne(IGNORE_INDEX).any()):
            raise ValueError(
                f"every label of the batch is {IGNORE_INDEX}, ignored: there is nothing to train on"
            )
        plan = plan_head(model, model_inputs(model, batch), labels)
        self._check_weights(type(model).__name__, plan.num_classes)
        self.plan = plan
        if not self.at_head:
            self.plan = HeadPlan(None, None, is_shifted=plan.is_shifted)
        elif plan.head is None:
            rows = "all positions" if plan.body is None else "the labelled positions"
            logger.warning(
                "%s does not end in a plain linear head: the loss is exact, but %s keep logits",
                type(model).__name__,
                rows,
            )

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The number of labelled positions, or the sum of their labels' weights."""
        labels = self.labels(batch)
        is_target = labels.ne(IGNORE_INDEX)
        weights = self.class_weights.on(labels.device)
        count = is_target.sum() if weights is None else count_of(labels[is_target], weights)
        return {"cross_entropy": count}

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """One term, `cross_entropy`; with outputs it is taken from the model's full logits."""
        terms, outputs = self.terms_and_outputs(model, module, batch, with_outputs)
        return terms, outputs if with_outputs else None

    def terms_and_outputs(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], has_logits: bool
    ) -> tuple[Terms, Any]:
        """The same, with the outputs in any case; their logits mean nothing without `has_logits`.

        What else the batch holds is an input of the model.
        """
        assert self.plan is not None, "prepare() comes first"
        targets = self.labels(batch)
        inputs = model_inputs(module, batch)
        form = self.form if model.training else CrossEntropyForm()
        weights = self.class_weights.on(targets.device) if model.training else None
        if has_logits:
            outputs = model(**inputs)
            term = cross_entropy(logits_of(outputs), targets, **vars(form), class_weights=weights)
            return {"cross_entropy": term}, outputs
        index, picked = labelled_positions(targets)
        use = cross_entropy_at_head(picked, form, weights)
        return forward_at_head(self.plan, module, lambda: model(**inputs), index, use)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity per token, `exp(sum of nll / number of tokens)`."""
        return {"perplexity": perplexity(means["cross_entropy"])}

    def trained(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity too, of all tokens since the last log, where the loss is the plain one."""
        nll = means.get("cross_entropy", math.nan)
        is_plain = self.form == CrossEntropyForm() and not self.class_weights
        found = {"perplexity": perplexity(nll)} if is_plain and not math.isnan(nll) else {}
        return {**super().trained(means), **found}

    def labels(self, batch: Mapping[str, Any]) -> Tensor:
        """Labels as the positions predict them; `shift_labels` in a batch are shifted already."""
        if "shift_labels" in batch:
            return batch["shift_labels"]
        assert self.plan is not None, "prepare() comes first"
        return shift(batch["labels"]) if self.plan.is_shifted else batch["labels"]

    def _check_weights(self, name: str, num_classes: int) -> None:
        self.class_weights.check_number(
            num_classes,
            f"{num_classes} tokens: {name} gives so many logits (config.vocab_size). A tokenizer "
            "may have fewer: the tokens beyond it, which are never labels, need a weight all the "
            "same, such as 1",
        )


def model_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without its labels, but with the decoder's inputs that T5 or BART make of them."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels")}
    config = getattr(model, "config", None)
    needs_decoder_ids = getattr(config, "is_encoder_decoder", False)
    if needs_decoder_ids and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys():
        labels = batch["labels"]
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        else:  # Whisper and other speech models shift within their forward, given labels
            inputs["decoder_input_ids"] = _shifted_right(model, labels)
    return inputs


def _shifted_right(model: Any, labels: Tensor) -> Tensor:
    """Labels one place later, behind the start token; padding where there is none."""
    start, pad = (getattr(model.config, f"{n}_token_id", None) for n in ("decoder_start", "pad"))
    if start is None or pad is None:
        raise ValueError(
            f"{type(model).__name__} needs decoder_input_ids in the batch: its config has no "
            "decoder_start_token_id and pad_token_id to make them of the labels"
        )
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, pad)
