"""One encoder with a head for each task: saved, loaded and pushed as one model of the host."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from hf_tfopt.registry import check_name
from hf_tfopt.surgery.multitask_config import CLASS_PROBLEMS, Balance, MultitaskConfig
from hf_tfopt.surgery.multitask_heads import EncodedRows, is_for_tokens, run_head, task_model

logger = logging.getLogger(__name__)


@dataclass
class MultitaskOutput(ModelOutput):
    """What a `MultitaskModel` returns.

    `loss` is the sum of the tasks' mean losses, where labels were given; `logits` of each task are
    those of its own rows, in their order; `log_variances` are those of a model that holds them.
    """

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    log_variances: Tensor | None = None


class MultitaskModel(PreTrainedModel):
    """One shared encoder with a head of the host for each task.

    The rows of a batch may belong to different tasks: the encoder runs once on all of them, and
    each head on its own. The logits of a row equal those of the host's model with that encoder and
    head (`BertForSequenceClassification`, ...), which `export(task)` gives: a plain model that
    opens without hf_tfopt. `save_pretrained`, `from_pretrained` and `push_to_hub` are the host's,
    of the encoder and all heads as one; what they saved opens with hf_tfopt alone (with `AutoModel`
    too, once this class has been imported).

    A head without rows still takes part in the graph, so that DDP needs no search for unused
    parameters.

    Args:
        config: a `MultitaskConfig`. `from_encoder` starts from an encoder that is trained already.

    Paper: Liu et al. 2019, "Multi-Task Deep Neural Networks for Natural Language Understanding"
    (https://arxiv.org/abs/1901.11504), figure 1; Caruana 1997, "Multitask Learning". Differs: the
    heads are the host's.
    """

    config_class = MultitaskConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    config: MultitaskConfig

    def __init__(self, config: MultitaskConfig):
        if not config.tasks or config.encoder is None:
            raise ValueError("a MultitaskConfig needs an encoder and at least one task")
        super().__init__(config)
        models = {name: task_model(config, name) for name in config.tasks}
        # an encoder of a sequence head may have a pooler, which a token head does without
        first = min(config.tasks, key=lambda name: is_for_tokens(config, name))
        encoder = models[first].base_model
        config.encoder = _without_labels(models[first], config, first)
        for model in models.values():
            setattr(model, model.base_model_prefix, EncodedRows())
        self.encoder = encoder
        self.heads = nn.ModuleDict(models)
        self.hold_balance(config.balance)
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        source: str | PretrainedConfig | PreTrainedModel,
        tasks: Mapping[str, Mapping[str, Any]],
    ) -> Self:
        """The model with this encoder and new heads.

        Args:
            source: a folder or a name on the Hub, a model (with or without a head, which is left
                out; its weights are copied), or a configuration, for random weights.
            tasks: as of `MultitaskConfig`.

        Raises:
            ValueError: a task that does not fit, or a model that cannot be the encoder.
        """
        if isinstance(source, PretrainedConfig):
            return cls(MultitaskConfig(source, tasks))
        given: Any = AutoModel.from_pretrained(source) if isinstance(source, str) else source
        trained = given.base_model
        model: Any = cls(MultitaskConfig(deepcopy(trained.config), tasks))
        missing, _ = model.encoder.load_state_dict(trained.state_dict(), strict=False)
        unknown = [name for name in missing if not name.startswith("pooler.")]
        if unknown:
            raise ValueError(
                f"{type(trained).__name__} cannot be the encoder {type(model.encoder).__name__}: "
                f"it has no {unknown[0]}"
            )
        if missing:
            logger.warning("The source has no pooler: %s start at random", ", ".join(missing))
        return model.to(trained.dtype)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        task: Tensor | str | None = None,
        labels: Tensor | None = None,
        label_values: Tensor | None = None,
    ) -> MultitaskOutput:
        """The logits of each task for its own rows, and the host's loss of them.

        Args:
            input_ids: [batch, length]; this and the next four go to the encoder.
            attention_mask: [batch, length].
            token_type_ids: [batch, length].
            position_ids: [batch, length].
            inputs_embeds: [batch, length, width], in place of input_ids.
            task: [batch], each row's task by its number in the configuration; or the name of all
                rows' task. May be left out where there is one task.
            labels: [batch, width], whole numbers: a row's class first, or the classes of its
                tokens; -100 where there is none.
            label_values: [batch, width], fractions: a row's numbers (regression) or the 0 and 1 of
                its classes (several labels at once), as many as its task has; NaN elsewhere.
        """
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        given = {name: value for name, value in named.items() if value is not None}
        # a decoder's cache of keys and values is for generation
        no_cache = {"use_cache": False} if hasattr(self.config.encoder, "use_cache") else {}
        encoded = self.encoder(**given, **no_cache)
        rows = self.rows_of(task, encoded[0])
        logits: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for name, head in self.heads.items():
            own = None
            if len(rows[name]) and not (labels is None and label_values is None):
                own = self.labels_of(name, rows[name], encoded[0].shape[1], labels, label_values)
            outputs = run_head(cast(PreTrainedModel, head), encoded, given, rows[name], own)
            logits[name] = outputs.logits
            losses += [] if own is None else [outputs.loss]
        return MultitaskOutput(
            loss=torch.stack(losses).sum() if losses else None,
            logits=logits,
            # through the forward pass, so that whoever shards the model has gathered them
            log_variances=self.log_variances * 1 if self.config.balance == "uncertainty" else None,
        )

    def rows_of(self, task: Tensor | str | None, like: Tensor) -> dict[str, Tensor]:
        """The numbers of each task's rows, in their order."""
        names = list(self.config.tasks)
        if isinstance(task, Tensor):
            order = torch.argsort(task, stable=True)
            sizes = torch.bincount(task, minlength=len(names)).tolist()
            if len(sizes) > len(names):
                raise ValueError(f"task {len(sizes) - 1} is outside [0, {len(names)})")
            return dict(zip(names, order.split(sizes), strict=True))
        if task is None and len(names) > 1:
            raise ValueError(f"say of which task each row is (task=): {', '.join(names)}")
        chosen = names[0] if task is None else check_name("task", task, names)
        rows = torch.arange(like.shape[0], device=like.device)
        return {name: rows if name == chosen else rows[:0] for name in names}

    def labels_of(
        self,
        name: str,
        rows: Tensor,
        length: int,
        labels: Tensor | None,
        label_values: Tensor | None,
    ) -> Tensor:
        """A task's labels in the shape its head expects, from the batch's (see `forward`)."""
        task = self.config.tasks[name]
        is_class = task["problem"] in CLASS_PROBLEMS
        column, source = (labels, "labels") if is_class else (label_values, "label_values")
        if column is None:
            if len(rows):
                raise ValueError(f"task {name!r} ({task['problem']}) needs {source} in the batch")
            column = rows.new_zeros((0, 1), dtype=torch.long if is_class else torch.float32)
        if task["problem"] == "single_label_classification":
            return column[rows, 0]
        width = length if is_class else task["num_labels"]
        own = column[rows, :width]
        if own.shape[1] < width and not len(rows):
            own = own.new_zeros((0, width))
        return own.squeeze(1) if (task["problem"], width) == ("regression", 1) else own

    def hold_balance(self, balance: Balance | None) -> None:
        """Hold what weighs the tasks, saved with the model; what it held for another way goes.

        Args:
            balance: "uncertainty" (a trained `log_variances`, at first 0), "gradnorm" (buffers
                `task_weights`, at first 1, and `initial_losses`, 0 where unknown), or None.
        """
        names = {
            "uncertainty": ("log_variances",),
            "gradnorm": ("task_weights", "initial_losses"),
        }
        for other, held in names.items():
            for name in held:
                if other != balance and hasattr(self, name):
                    delattr(self, name)
        zeros = torch.zeros(len(self.config.tasks), dtype=torch.float32, device=self.device)
        if balance == "uncertainty" and not hasattr(self, "log_variances"):
            self.log_variances = nn.Parameter(zeros)
        elif balance == "gradnorm" and not hasattr(self, "task_weights"):
            self.register_buffer("task_weights", torch.ones_like(zeros))
            self.register_buffer("initial_losses", zeros)
        self.config.balance = balance

    def export(self, task: str) -> PreTrainedModel:
        """A plain model of the host for one task, with a copy of the weights and equal logits.

        Args:
            task: its name.

        Raises:
            ValueError: an unknown task, or adapters in the encoder that are not merged.
        """
        config = self.config.of_task(task)
        head = cast(PreTrainedModel, self.heads[task])
        weights = {f"{head.base_model_prefix}.{k}": v for k, v in self.encoder.state_dict().items()}
        weights |= head.state_dict()
        model: Any = type(head)(config)
        missing, _ = model.load_state_dict(weights, strict=False)
        if missing:
            raise ValueError(
                f"{type(head).__name__} needs {missing[0]}, which this model does not have: merge "
                "adapters first (merge_and_unload)"
            )
        return model.to(self.dtype).train(self.training)


def _without_labels(model: Any, config: MultitaskConfig, name: str) -> Any:
    """The configuration that the encoder of a task's model reads, no longer shared with the head.

    It must be the one that is saved: the host writes into it (a grown vocabulary, an attention).
    """
    encoder_config = model.base_model.config
    model.config = config.of_task(name)
    for field in ("id2label", "label2id", "problem_type"):
        setattr(encoder_config, field, getattr(config.encoder, field))
    return encoder_config


AutoConfig.register(MultitaskConfig.model_type, MultitaskConfig, exist_ok=True)
AutoModel.register(MultitaskConfig, MultitaskModel, exist_ok=True)
