"""How concentrated the attention of each layer and head is, under any implementation."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hf_tfopt.callbacks.attention_probe import first_examples, probe
from hf_tfopt.callbacks.attention_watch import SeenAttention
from hf_tfopt.callbacks.layer_modules import (
    counted_in,
    counted_positions,
    layer_modules,
    padding_of,
)
from hf_tfopt.callbacks.optional import OptionalMonitor
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.measures import AttentionSums, attention_sums

# A layer must have been this far above the threshold before it can collapse: no alarm for one that
# was low from the start, and no second one while it wavers about the threshold.
_RECOVERED = 1.5
_OWN_WAY = "it computes attention in a way of its own"


class AttentionMonitor(OptionalMonitor):
    """The entropy of attention by layer and head, measured beside the training on a few examples.

    After a measured step the model sees a probe batch once more in evaluation mode, without
    gradients: by default the first examples of the step's first batch, as the model was given them.
    The training is not changed by it, whatever the attention implementation is; flash and flex
    attention, which show no weights, are "eager" in the probe alone.

    Of a query that looks at n keys with weights p, the entropy -sum(p log p) / log(n) is 1 where it
    looks at all alike, 0 where at one alone. Padded keys are not seen; padded queries, and those
    with one key to see, do not count. When the mean of a layer over all processes falls below
    `collapse`, it is told once, as an event "attention collapse"; again only after the layer has
    risen to 1.5 times that. Where a measured step shows no attention, or the model fails on its
    examples, the monitor is switched off with a warning.

    | name | what |
    |---|---|
    | `attention_entropy/<layer>` | mean over its heads and queries, 0 to 1 |
    | `attention_entropy_min/<layer>` | of its lowest head |
    | `attention_max/<layer>` | the largest weight of a query, mean over heads and queries |
    | `attention_logit_max/<layer>` | the largest that a softmax is taken of |
    | `attention_entropy_heads` | lists [layers][heads], in the log's history alone |

    A decoder's layer that looks at an encoder has these also for "decoder.0.cross". With several
    processes each measures its own examples; what is logged is the first one's.

    Cost per measured step: a forward pass of `num_examples` without the output embedding, its
    attention computed twice, a sum of the layers' numbers over the processes, and two read-backs.

    Args:
        every: the number of steps from one measured step to the next; None: the logged
            steps, at least 50 apart.
        num_examples: of the batch that are looked at.
        probe: a batch to look at in every measured step instead, as the model takes it
            (`tokenizer(sentences, padding=True, return_tensors="pt")`).
        collapse: the mean entropy below which a layer counts as collapsed, between 0 and 1; None:
            no alarm. At 0.1 a query looks at e^(0.1 log n), 1.6 of 128 keys, which in the paper
            only diverging runs come to.

    Raises:
        ValueError: an option out of range; in `begin`, a model whose attention is not seen.

    Paper: Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse, https://arxiv.org/abs/2303.06296, section 3. Differs: a share of the largest possible
    entropy; the paper has no threshold. Logits that grow without bound: Dehghani et al. 2023,
    Scaling Vision Transformers to 22 Billion Parameters, https://arxiv.org/abs/2302.05442, 3.1.1.
    """

    gap = 50  # of logged steps

    def __init__(
        self,
        every: int | None = None,
        num_examples: int = 8,
        probe: Mapping[str, Any] | None = None,
        collapse: float | None = 0.1,
    ):
        super().__init__(every)
        if num_examples < 1:
            raise ValueError(f"num_examples is {num_examples}; it must be at least 1")
        if collapse is not None and not 0 < collapse < 1:
            raise ValueError(
                f"collapse is {collapse}, a share of the largest entropy: it must be between 0 and "
                "1, or None for no alarm"
            )
        if probe is not None and not _has_tensors(probe):
            raise ValueError(
                "probe must be a batch as the model takes it, tensors by name: "
                'tokenizer(sentences, padding=True, return_tensors="pt")'
            )
        self.num_examples = num_examples
        self.probe = None if probe is None else dict(probe)
        self.collapse = collapse
        self._layers: dict[str, nn.Module] = {}
        self._batch: dict[str, Any] | None = None
        self._found: dict[str, list[list[float]]] = {}

    def begin(self, training: Training) -> None:
        """Find the layers, and look whether their attention is seen."""
        self._layers = layer_modules(training.model)
        self.remembered.setdefault("watched", [])
        example = self.probe
        if example is None and _is_simple(training):
            example = _example_for(training.model)
        if not self._layers:
            self._refuse(training.model, "its layers are not found")
        if example is None:
            return
        try:
            found = self._measured(training, example)
        except Exception:
            if self.probe is not None:
                raise
            return  # a model that takes other inputs: the first measured step tells
        if not found:
            self._refuse(training.model, _OWN_WAY)

    def release(self) -> None:
        """Nothing is measured, and nothing of the model is held."""
        super().release()
        self._layers, self._batch, self._found = {}, None, {}

    def watch(self, training: Training) -> None:
        """Keep the first examples that the model is given."""
        self._batch = self.probe
        if self._batch is None:
            hook = training.model.register_forward_pre_hook(self._keep, with_kwargs=True)
            self._hooks.append(hook)

    def _keep(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._batch is None and model.training and not args:
            padding = padding_of(getattr(model, "config", None))
            self._batch = first_examples(kwargs, self.num_examples, padding)

    def measure(self, training: Training) -> None:
        """Run the probe, and tell of layers that have collapsed."""
        batch, self._batch = self._batch, None
        sums: dict[str, AttentionSums] = {}
        failure: Exception | None = None
        try:
            sums = {} if batch is None else self._measured(training, batch)
        except Exception as error:  # whatever a model makes of a part of its batch
            failure = error
        num_probed, num_failed, entropies = self._of_all(training, sums, batch, failure)
        if num_failed:
            reason = (
                "another process" if failure is None else f"{type(failure).__name__}: {failure}"
            )
            self.switch_off(training, f"the model fails on the first examples alone ({reason})")
        elif num_probed and not entropies:
            self.switch_off(training, _unseen(training.model, _OWN_WAY))
        else:
            self._found = _read(sums)
            if self.collapse is not None:
                self._alarm(training, entropies, self.collapse)

    def _of_all(
        self,
        training: Training,
        sums: Mapping[str, AttentionSums],
        batch: Any,
        failure: Exception | None,
    ) -> tuple[float, float, dict[str, float]]:
        """How many processes have probed, how many failed, and the layers' mean entropies.

        On all of them the same, so that all remember and leave off the same.
        """
        labels = [name for label in self._layers for name in (label, f"{label}.cross")]
        table = torch.zeros(len(labels) + 1, 3, device=training.args.device)
        table[-1, 0].fill_(batch is not None)
        table[-1, 1].fill_(failure is not None)
        for row, label in zip(table, labels, strict=False):
            if label in sums:
                row[0], row[1] = sums[label].entropy.sum(), sums[label].number.sum()
                row[2].fill_(1)
        summed: Any = reduce(table, "sum")
        *layers, (num_probed, num_failed, _) = summed.tolist()
        entropies = {
            label: entropy / number if number else math.nan
            for label, (entropy, number, is_seen) in zip(labels, layers, strict=True)
            if is_seen
        }
        return num_probed, num_failed, entropies

    def scalars(self, training: Training) -> Scalars:
        """The numbers of the last measured step."""
        found, self._found = self._found, {}
        logged: dict[str, float | list[Any]] = {}
        for layer, (entropies, maxima, logits) in found.items():
            logged[f"attention_entropy/{layer}"] = _mean(entropies)
            logged[f"attention_entropy_min/{layer}"] = min(entropies)
            logged[f"attention_max/{layer}"] = _mean(maxima)
            logged[f"attention_logit_max/{layer}"] = max(logits)
        if found:
            heads = [[round(e, 4) for e in entropies] for entropies, *_ in found.values()]
            logged["attention_entropy_heads"] = heads
        return logged

    def _measured(self, training: Training, batch: dict[str, Any]) -> dict[str, AttentionSums]:
        counted = counted_positions(training.model, batch)
        sums: dict[str, AttentionSums] = {}

        def see(seen: SeenAttention) -> None:
            for logits, own in seen.counted(counted_in(counted, seen.layer, seen.shape)):
                part = attention_sums(logits, own)
                sums[seen.layer] = sums[seen.layer] | part if seen.layer in sums else part

        probe(training.model, batch, self._layers, see, is_whole=not _is_simple(training))
        return sums

    def _alarm(self, training: Training, entropies: Mapping[str, float], threshold: float) -> None:
        """Tell of each layer that was above the threshold and now is below."""
        watched = set(self.remembered["watched"])
        for layer, entropy in entropies.items():
            if entropy >= threshold * _RECOVERED:
                watched.add(layer)
            elif entropy < threshold and layer in watched:
                watched.remove(layer)
                text = f"the attention of {layer} has collapsed: its entropy is {entropy:.3f}, "
                text += f"below {threshold:g} of the largest possible; a lower learning rate, a "
                text += "longer warmup or clipping may help"
                self.tell(training, "attention collapse", text, layer=layer, entropy=entropy)
        self.remembered["watched"] = sorted(watched)

    def _refuse(self, model: Any, reason: str) -> None:
        raise ValueError(f"AttentionMonitor: {_unseen(model, reason)}; or leave the monitor out")


def _unseen(model: Any, reason: str) -> str:
    return (
        f"the attention of {type(model).__name__} is not seen: {reason}; take an attention that "
        "ends in torch's scaled_dot_product_attention or in a softmax over [batch, heads, queries, "
        "keys]"
    )


def _has_tensors(batch: Any) -> bool:
    return isinstance(batch, Mapping) and any(isinstance(v, Tensor) for v in batch.values())


def _is_simple(training: Training) -> bool:
    """Whether a forward pass may be left before its end: no engine that follows it."""
    args = training.args
    is_sharded = any(isinstance(module, FSDPModule) for module in training.model.modules())
    return args.deepspeed_plugin is None and not args.fsdp_plugin_args and not is_sharded


def _example_for(model: Any) -> dict[str, Any] | None:
    """Four tokens, for a model that takes tokens."""
    ids = torch.ones(1, 4, dtype=torch.long)
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if is_pair else {})}


def _read(sums: dict[str, AttentionSums]) -> dict[str, list[list[float]]]:
    """By layer, of each head: means over the queries of entropy and maximum, the largest logit."""
    if not sums:
        return {}
    rows = [
        torch.stack([s.entropy / s.number, s.maximum / s.number, s.largest, s.number])
        for s in sums.values()
    ]
    rows = [row.to(rows[0].device) for row in rows]
    sizes = [row.shape[1] for row in rows]
    flat: list[list[float]] = torch.cat(rows, dim=1).tolist()
    found: dict[str, list[list[float]]] = {}
    start = 0
    for layer, size in zip(sums, sizes, strict=True):
        *means, queries = (numbers[start : start + size] for numbers in flat)
        start += size
        if all(queries):
            found[layer] = means
    return found


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
