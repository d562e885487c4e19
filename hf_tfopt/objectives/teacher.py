"""The teacher: found, compared with its student, and asked; never trained, saved or sharded."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.models.auto import modeling_auto

from hf_tfopt.losses.distillation import HeadRows, KnownRows, TeacherRows
from hf_tfopt.losses.head import HeadPlan, LinearHead, forward_at_head, logits_of
from hf_tfopt.losses.head_plan import plan_head
from hf_tfopt.losses.reduction import LossSum, Terms
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import LanguageModeling, model_inputs

# By the host's tables; BART is in two of them, and writes sequences first.
_AUTO: list[tuple[Any, Any]] = [
    (AutoModelForSeq2SeqLM, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForMaskedLM, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (
        AutoModelForSequenceClassification,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    (AutoModelForTokenClassification, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    (AutoModelForImageClassification, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


class Teacher:
    """A model that is asked what it thinks of a batch: in evaluation mode, without gradients.

    Args:
        model: on the student's device.
        plan: how its logits are reached; with a head in it they are left to the loss to make.
    """

    def __init__(self, model: nn.Module, plan: HeadPlan):
        self.model = model
        self.plan = plan

    def look(
        self, batch: Mapping[str, Any], index: Tensor, **wanted: bool
    ) -> tuple[TeacherRows, Any]:
        """Its word at the positions `index` among [B * T] (or [B]), and its outputs.

        Args:
            batch: the student's inputs and labels.
            index: positions.
            wanted: what else its outputs shall have, such as `output_hidden_states`.
        """
        caught: list[TeacherRows] = []

        def use(rows: Tensor, head: LinearHead | None) -> Terms:
            caught.append(KnownRows(rows) if head is None else HeadRows(rows, head))
            return {"": LossSum(rows.new_zeros(()), rows.new_zeros(()))}

        self.model.eval()
        inputs = {**teacher_inputs(self.model, batch), **wanted}
        with torch.no_grad():
            _, outputs = forward_at_head(
                self.plan, self.model, lambda: self.model(**inputs), index, use
            )
        return caught[0], outputs


def language_teacher(
    task: LanguageModeling, student: nn.Module, teacher: nn.Module, batch: Mapping[str, Any]
) -> Teacher:
    """A language model as a teacher, its logits left to the loss to make where that can be.

    Raises:
        ValueError: one of the two predicts the token at a position and the other the next one.
    """
    assert task.plan is not None, "the student's objective is prepared first"
    plan = plan_head(teacher, teacher_inputs(teacher, batch), batch["labels"])
    if plan.is_shifted != task.plan.is_shifted:
        next_token = student if task.plan.is_shifted else teacher
        raise ValueError(
            f"{type(next_token).__name__} predicts the next token, and "
            f"{type(teacher if next_token is student else student).__name__} the one at the same "
            "position: a teacher must have the student's task"
        )
    return Teacher(teacher, plan if task.at_head else HeadPlan(None, None))


def class_teacher(
    task: Classification, student: nn.Module, teacher: nn.Module, batch: Mapping[str, Any]
) -> Teacher:
    """A classifier as a teacher.

    Raises:
        ValueError: a regression; other classes, or another kind of output, than the student's.
    """
    if task.problem == "regression":
        raise ValueError("a regression has no classes whose probabilities a teacher could tell")
    check_classes(student, teacher)
    with torch.no_grad():
        shapes = [logits_of(m(**teacher_inputs(m, batch))).shape for m in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{type(student).__name__} gives logits of shape {tuple(shapes[0])} and "
            f"{type(teacher).__name__} {tuple(shapes[1])}: a teacher must have the student's task"
        )
    return Teacher(teacher, HeadPlan(None, None))


def teacher_inputs(teacher: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch as the teacher takes it: what it has no argument for is left out.

    A classifier (BART's) makes its decoder's inputs itself, and not of its labels.
    """
    is_writer = getattr(teacher, "get_output_embeddings", lambda: None)() is not None
    inputs = (
        model_inputs(teacher, batch)
        if is_writer
        else {name: value for name, value in batch.items() if name != "labels"}
    )
    parameters = inspect.signature(teacher.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = {**inputs}
        if "token_type_ids" not in parameters:  # DistilBERT and RoBERTa's likes have none
            known.pop("token_type_ids", None)
    else:
        known = {name: value for name, value in inputs.items() if name in parameters}
    return {**known, "use_cache": False} if "use_cache" in parameters else known


def ready_teacher(given: Any, student: nn.Module) -> nn.Module:
    """The model given, or the one of that folder or hub name, on the student's device.

    Raises:
        ValueError: no model, the student itself or one that shares its weights, or a student whose
            kind of head the Auto classes do not know.
    """
    model: Any = load_teacher(given, student) if isinstance(given, str | Path) else given
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the teacher is {type(model).__name__}; give a model, or the folder or hub name of one"
        )
    own = {id(parameter) for parameter in student.parameters()}
    if model is student or any(id(parameter) in own for parameter in model.parameters()):
        raise ValueError(
            "the teacher is the student itself, or shares weights with it, and would change with "
            "it; give another model (copy.deepcopy(student) for the student as it is now)"
        )
    device = next(student.parameters()).device
    is_placed = hasattr(model, "hf_device_map") or getattr(model, "is_quantized", False)
    if not is_placed and next(model.parameters()).device != device:
        model.to(device)
    return model.eval()


def load_teacher(name: str | Path, student: nn.Module) -> nn.Module:
    """`from_pretrained` with the Auto class that the student's own class belongs to."""
    kind = type(student).__name__
    for auto, classes in _AUTO:
        if kind in classes.values():
            return auto.from_pretrained(str(name))
    raise ValueError(
        f"{kind} belongs to no Auto class that teachers are loaded with; load the teacher yourself "
        f"and give the model in place of {str(name)!r}"
    )


def check_vocabulary(
    student: Any, teacher: Any, tokenizer: Any = None, teacher_tokenizer: Any = None
) -> None:
    """Refuse a teacher to whom the student's token ids mean something else.

    Sizes are compared where both have token embeddings (models of images have none); token by token
    where a tokenizer of each is given, or lies in the folder that the model was loaded from.

    Raises:
        ValueError: what differs.
    """
    tokenizer = tokenizer or found_tokenizer(student)
    teacher_tokenizer = teacher_tokenizer or found_tokenizer(teacher)
    if tokenizer is not None and teacher_tokenizer is not None:
        _check_same_tokens(tokenizer.get_vocab(), teacher_tokenizer.get_vocab())
    sizes = [_num_tokens(model) for model in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(
            f"the student has {sizes[0]} tokens and the teacher {sizes[1]}: their ids cannot mean "
            "the same (if the tokens are the same and one table is only padded, "
            "resize_token_embeddings makes the sizes equal)"
        )


def _num_tokens(model: Any) -> int | None:
    """The size of the table of token embeddings; None without one."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # as the host's convolutional networks have it
        return None
    # Adapters wrap the table, and hand on what it is asked; an image's patches have no number.
    return getattr(embedding, "num_embeddings", None)


def check_head(student: nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse question answering, whose answers are places in the text.

    Raises:
        ValueError: the student's class, or the batch, is for question answering.
    """
    kind = type(student).__name__
    is_known = kind in modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()
    if is_known or "start_positions" in batch:
        raise ValueError(
            f"{kind} answers questions with the place where an answer begins and ends: its head is "
            "neither one of words nor one of classes, and cannot be distilled; a student is a "
            "language model or a classifier"
        )


def found_tokenizer(model: Any) -> Any:
    """The tokenizer in the folder that the model was loaded from, if there is one."""
    folder = Path(getattr(model, "name_or_path", "") or "no folder")
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(str(folder))
    return None


def _check_same_tokens(student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
    differing = [token for token, number in student.items() if teacher.get(token) != number]
    only_teacher = [token for token in teacher if token not in student]
    if not differing and not only_teacher:
        return
    shown = [
        f"{token!r} is {student.get(token, 'absent')} for the student and "
        f"{teacher.get(token, 'absent')} for the teacher"
        for token in (differing + only_teacher)[:3]
    ]
    raise ValueError(
        f"the vocabularies differ in {len(differing) + len(only_teacher)} tokens: "
        f"{'; '.join(shown)}. The teacher would read other words than the student, and its classes "
        "be other words: take a teacher with the student's tokenizer"
    )


def check_classes(student: Any, teacher: Any) -> None:
    """Refuse a classifier whose classes are not the student's, in number, name or order."""
    sizes = [model.config.num_labels for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the student has {sizes[0]} classes and the teacher {sizes[1]}")
    names = [{int(k): v for k, v in m.config.id2label.items()} for m in (student, teacher)]
    unnamed = {number: f"LABEL_{number}" for number in range(sizes[0])}
    if names[0] != names[1] and unnamed not in names:
        raise ValueError(
            f"the student's classes are {names[0]}, the teacher's {names[1]}: each class must have "
            "the same number (config.id2label)"
        )
