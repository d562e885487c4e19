"""Distillation: a student learns its task and, beside it, what a teacher thinks of each answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.distillation import TeacherRows, distillation, linear_distillation
from hf_tfopt.losses.divergence import (
    DivergenceForm,
    TopClasses,
    binary_divergence_of_elements,
    divergence_of_rows,
)
from hf_tfopt.losses.head import (
    HeadPlan,
    LinearHead,
    forward_at_head,
    labelled_positions,
    logits_of,
)
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum, Terms
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.cached_rows import CachedTeacher, without_cache
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.feature_terms import Features
from hf_tfopt.objectives.features import Feature
from hf_tfopt.objectives.language_modeling import LanguageModeling, model_inputs
from hf_tfopt.objectives.packed_teacher import check_attention, check_separation
from hf_tfopt.objectives.teacher import (
    Teacher,
    check_head,
    check_vocabulary,
    class_teacher,
    language_teacher,
    ready_teacher,
)


class Distillation(Objective):
    """Train a student on its labels and on a teacher's distribution over the answers.

        (1 - α) CE(student, labels) + α T² D(softmax(teacher / T), softmax(student / T))

    Both are means over the labelled examples or tokens of the whole batch, and logged as
    `cross_entropy` and `distillation`. Language models (masked, causal, seq2seq) go through both
    heads in chunks: neither model's logits ever all exist. Evaluation is the student's plain loss,
    without the teacher. The teacher is in evaluation mode, without gradients, on the student's
    device; it is in no optimizer and no checkpoint, and not sharded.

    Cost of a step: one forward pass of the teacher more.

    Args:
        teacher: a model of the student's kind; the folder or hub name of one; or what
            `cache_teacher` wrote of one.
        temperature: T > 0; above 1 the teacher's less likely answers count for more.
        alpha: α in [0, 1], the teacher's share. With 0 the student is trained as without a teacher,
            and `distillation` only told.
        divergence: "kl" (KL(teacher‖student)), "reverse_kl" or "jsd": `losses.divergence`.
        beta: of "jsd", in (0, 1): the teacher's share of the mixture.
        features: what else to learn from inside the teacher, each a term of its own beside these:
            `HiddenStates`, `AttentionMaps`, `Relations`, `CosineStates`. Of what reads or
            writes text; an encoder-decoder's two stacks are compared apart (`objectives.features`).
        objective: the loss on labels, with its options: a `LanguageModeling` or a `Classification`;
            None: the one that suits the student. Class weights are of this term alone.
        tokenizer: the student's; like `teacher_tokenizer` it is found where the model was loaded
            from a folder that has one. Where both are known every token is compared.
        teacher_tokenizer: the teacher's.

    Raises:
        ValueError: an option out of its range; while preparing, a teacher that is the student, or
            whose tokens, classes or task are not the student's, or that mixes the examples of
            packed rows, features that cannot be compared, or a student whose head is neither of
            words nor of classes (question answering).

    Paper: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531, section 2. Differs: the weights of the two terms add up to 1.
    """

    def __init__(
        self,
        teacher: nn.Module | CachedTeacher | str | Path,
        *,
        temperature: float = 2.0,
        alpha: float = 0.5,
        divergence: str = "kl",
        beta: float = 0.5,
        features: Sequence[Feature] = (),
        objective: Objective | None = None,
        tokenizer: Any = None,
        teacher_tokenizer: Any = None,
    ):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}, the teacher's share of the loss; allowed: [0, 1]")
        if objective is not None and not isinstance(objective, LanguageModeling | Classification):
            raise ValueError(
                f"objective is {type(objective).__name__}; a teacher's classes are compared for "
                "LanguageModeling() and Classification()"
            )
        if isinstance(teacher, CachedTeacher) and features:
            raise ValueError("features need the teacher itself: its cached answers have none")
        self.form = DivergenceForm(divergence, temperature, beta)
        self.alpha = alpha
        self.features = Features(features)
        self.objective: LanguageModeling | Classification | None = objective
        self._given = teacher
        self._tokenizers = (tokenizer, teacher_tokenizer)
        self._teacher: Teacher | CachedTeacher | None = None
        self._hard_terms: tuple[str, ...] = ()

    @property
    def weights(self) -> Mapping[str, float]:
        """1 - α for the loss on labels, α for the divergence, and those of the features."""
        hard = dict.fromkeys(self._hard_terms, 1 - self.alpha)
        return {**hard, "distillation": self.alpha, **self.features.weights}

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Find the task's loss, then the teacher, and compare it with the student."""
        student: Any = model
        batch = without_cache(batch)
        check_head(model, batch)
        if self.objective is None:
            embedding = getattr(student, "get_output_embeddings", lambda: None)()
            self.objective = Classification() if embedding is None else LanguageModeling()
        task = self.objective
        task.prepare(model, batch)
        self.targets, self._hard_terms = task.targets, tuple(task.counts(batch))
        if isinstance(self._given, CachedTeacher):
            self._given.check(student, self.form, isinstance(task, LanguageModeling))
            self._teacher = self._given
            return
        teacher = ready_teacher(self._given, model)
        check_vocabulary(student, teacher, *self._tokenizers)
        check_attention(student, teacher, batch)
        self.features.prepare(student, teacher, batch)
        if isinstance(task, LanguageModeling):
            self._teacher = language_teacher(task, model, teacher, batch)
            check_separation(self._teacher, batch)
        else:
            self._teacher = class_teacher(task, model, teacher, batch)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The task's count, and the number of its labels for the divergence."""
        batch = without_cache(batch)
        counts = self._task().counts(batch)
        soft = {"distillation": self._num_labels(batch)}
        return {**counts, **soft, **self.features.counts(batch)}

    def terms(
        self, model: nn.Module, module: nn.Module, batch: Mapping[str, Any], with_outputs: bool
    ) -> tuple[Terms, Any]:
        """`cross_entropy` (or what the task's loss is called), `distillation` and the features."""
        task, given, batch = self._task(), batch, without_cache(batch)
        if not model.training:
            return task.terms(model, module, batch, with_outputs)
        assert self._teacher is not None
        index = self._answers(task, batch)
        wanted = self.features.wanted
        with self.features.watch(self._teacher.model, is_teacher=True) as of_teacher:
            said, of_teacher.outputs = self._teacher.look(given, index, **wanted)
        asked = {**batch, **wanted}
        with self.features.watch(module, is_teacher=False) as shown:
            if isinstance(task, LanguageModeling):
                terms, outputs = self._language_terms(
                    task, model, module, asked, index, said, with_outputs
                )
            else:
                terms, outputs = self._class_terms(task, model, module, asked, index, said)
            shown.outputs = outputs
        return {**terms, **self.features.terms(shown, of_teacher, batch)}, outputs

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Those of the task."""
        return self._task().metrics(means)

    def _language_terms(
        self,
        task: LanguageModeling,
        model: nn.Module,
        module: nn.Module,
        batch: Mapping[str, Any],
        index: Tensor,
        said: TeacherRows,
        with_logits: bool,
    ) -> tuple[Terms, Any]:
        assert task.plan is not None, "prepare() comes first"
        targets = task.labels(batch).reshape(-1).index_select(0, index)
        inputs = model_inputs(module, batch)
        weights = task.class_weights.on(targets.device)

        def use(rows: Tensor, head: LinearHead | None) -> Terms:
            if head is None:
                word = _all(said, index)
                return distillation(rows, targets, word, self.form, task.form, weights)
            return linear_distillation(
                rows, head, targets, said, self.form, self.alpha, task.form, weights
            )

        plan = HeadPlan(None, None) if with_logits else task.plan
        return forward_at_head(plan, module, lambda: model(**inputs), index, use)

    def _class_terms(
        self,
        task: Classification,
        model: nn.Module,
        module: nn.Module,
        batch: Mapping[str, Any],
        index: Tensor,
        said: TeacherRows,
    ) -> tuple[Terms, Any]:
        terms, outputs = task.terms(model, module, batch, True)
        logits = logits_of(outputs)
        rows = logits.reshape(-1, logits.shape[-1]).index_select(0, index)
        word = _all(said, index)
        if task.problem == "multi_label_classification":
            assert isinstance(word, Tensor)
            each = binary_divergence_of_elements(rows, word, self.form)
        else:
            each = divergence_of_rows(rows, word, self.form)
        soft = LossSum(each.sum(), self._num_labels(batch))
        return {**terms, "distillation": soft}, outputs

    def _answers(self, task: LanguageModeling | Classification, batch: Mapping[str, Any]) -> Tensor:
        """The positions among [B * T] (or [B]) whose answers are compared: those with a label."""
        if isinstance(task, Classification) and task.problem == "multi_label_classification":
            return torch.arange(batch["labels"].shape[0], device=batch["labels"].device)
        return labelled_positions(
            task.labels(batch) if isinstance(task, LanguageModeling) else batch["labels"]
        )[0]

    def _task(self) -> LanguageModeling | Classification:
        assert self.objective is not None, "prepare() comes first"
        return self.objective

    def _num_labels(self, batch: Mapping[str, Any]) -> Tensor:
        task = self._task()
        labels = task.labels(batch) if isinstance(task, LanguageModeling) else batch["labels"]
        return (labels != IGNORE_INDEX).sum()


def _all(said: TeacherRows, index: Tensor) -> Tensor | TopClasses:
    """All that a teacher says of the positions at `index`, at once."""
    every = slice(0, index.numel())
    return said.chunk(every)(every)
