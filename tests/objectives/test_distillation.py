"""Distillation equals the naive form, for every kind of student; the teacher is left alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import hf_tfopt as tfo
from hf_tfopt.losses.head import shift
from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.features import HiddenStates
from hf_tfopt.objectives.language_modeling import LanguageModeling
from tests.invariants.cases import Columns
from tests.invariants.cases.distillation import (
    LABELS,
    bert,
    many_hot,
    opinionated,
    sequences,
    teacher,
    tokens,
)
from tests.models import EDITED_LOGITS, TINY, batch_for, tiny
from tests.objectives.gradients import assert_same_training
from tests.references.distillation import naive_distillation

# fp32 sums in another order; a divergence has a digit less than its logits.
TOLERANCE = 2e-5


def loss_of(objective: Objective, model: PreTrainedModel, batch: Any) -> torch.Tensor:
    terms, _ = objective.terms(model, model, batch, False)
    counts = objective.counts(batch)
    assert {name: int(term.count) for name, term in terms.items()} == {
        name: int(count) for name, count in counts.items()
    }
    return combine(terms, counts, objective.weights)


def prepared(objective: Objective, model: PreTrainedModel, batch: Any) -> Objective:
    objective.prepare(model, batch)
    return objective


@pytest.mark.parametrize("name", [*TINY, *EDITED_LOGITS])
def test_language_models_equal_the_naive_form(name: str) -> None:
    model, wise = tiny(name).train(), opinionated(tiny(name, 1))
    batch = batch_for(model)
    objective = prepared(Distillation(wise, temperature=3.0, alpha=0.3), model, batch)
    task = objective.objective
    assert isinstance(task, LanguageModeling) and task.plan is not None
    labels = shift(batch["labels"]) if task.plan.is_shifted else batch["labels"]
    with torch.no_grad():
        of_teacher = wise(**batch).logits
    naive = naive_distillation(model(**batch).logits, of_teacher, labels, 0.3, 3.0)
    assert_same_training(model, loss_of(objective, model, batch), naive, TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [(BertForSequenceClassification, sequences), (BertForTokenClassification, tokens)],
)
def test_classifiers_equal_the_naive_form(kind: type[PreTrainedModel], rows: Any) -> None:
    model, wise = bert(kind, **LABELS).train(), teacher(kind, **LABELS)
    batch = rows(6, 0)
    objective = prepared(Distillation(wise, divergence="jsd", beta=0.2), model, batch)
    naive = naive_distillation(
        model(**batch).logits,
        wise(**batch).logits.detach(),
        batch["labels"],
        alpha=0.5,
        temperature=2.0,
        kind="jsd",
        beta=0.2,
    )
    assert_same_training(model, loss_of(objective, model, batch), naive, TOLERANCE)


def test_several_labels_at_once_are_a_yes_or_no_each() -> None:
    kind = BertForSequenceClassification
    model, wise, batch = bert(kind, **LABELS).train(), teacher(kind, **LABELS), many_hot(6, 0)
    objective = prepared(Distillation(wise, temperature=2.0), model, batch)
    logits = model(**batch).logits
    q, p = torch.sigmoid(logits / 2), torch.sigmoid(wise(**batch).logits.detach() / 2)
    soft = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    hard = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
    assert_same_training(model, loss_of(objective, model, batch), (hard + soft) / 2, TOLERANCE)


def test_a_wider_teacher_and_options_of_the_task() -> None:
    model, wise = bert(BertForMaskedLM).train(), teacher(BertForMaskedLM)
    batch = batch_for(model)
    task = LanguageModeling(label_smoothing=0.1, z_loss=1e-2)
    objective = prepared(Distillation(wise, alpha=0.2, objective=task), model, batch)
    at_head, _ = objective.terms(model, model, batch, False)
    full, outputs = objective.terms(model, model, batch, True)
    assert outputs.logits.shape == (*batch["labels"].shape, model.config.vocab_size)
    for name in ("cross_entropy", "distillation"):
        torch.testing.assert_close(at_head[name].sum, full[name].sum, rtol=TOLERANCE, atol=0)
    plain, _ = prepared(task, model, batch).terms(model, model, batch, False)
    torch.testing.assert_close(at_head["cross_entropy"].sum, plain["cross_entropy"].sum)


def test_neither_models_logits_exist() -> None:
    model, wise = bert(BertForMaskedLM).train(), teacher(BertForMaskedLM)
    batch = batch_for(model)
    objective = prepared(Distillation(wise), model, batch)
    shapes: list[tuple[int, ...]] = []
    for each in (model, wise):
        head = each.get_output_embeddings()
        head.register_forward_hook(
            lambda module, inputs, output: shapes.append(tuple(output.shape))
        )
    loss_of(objective, model, batch).backward()
    assert shapes == [(1, 1, 1), (1, 1, 1)]
    assert all(parameter.grad is None for parameter in wise.parameters())


def test_evaluation_is_the_plain_loss_and_does_not_ask_the_teacher() -> None:
    model, wise = bert(BertForMaskedLM), teacher(BertForMaskedLM)
    batch = batch_for(model)
    objective = prepared(Distillation(wise), model, batch)
    wise.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was asked"))
    terms, _ = objective.terms(model.eval(), model, batch, False)
    assert list(terms) == ["cross_entropy"]
    mean = terms["cross_entropy"].sum / terms["cross_entropy"].count
    torch.testing.assert_close(mean, model(**batch).loss)


def test_the_teacher_has_no_dropout_while_the_student_trains() -> None:
    dropout = {"hidden_dropout_prob": 0.5}
    wise = teacher(BertForMaskedLM, **dropout).train()
    model = bert(BertForMaskedLM, **dropout).train()
    batch = batch_for(model)
    objective = prepared(Distillation(wise), model, batch)
    assert model.training
    wise.train()  # by a careless hand
    said: list[torch.Tensor] = []
    body = wise.base_model
    body.register_forward_hook(lambda module, inputs, output: said.append(output[0]))
    loss_of(objective, model, batch)
    loss_of(objective, model, batch)
    assert torch.equal(said[0], said[1])


def trained(tmp_path: Path, model: PreTrainedModel, objective: Objective, **options: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    columns = settings.pop("columns", None) or batch_for(model, 12)
    args = TrainingArguments(str(tmp_path), **settings)
    data = Columns(columns)
    trainer = tfo.TfoptTrainer(model, args, objective=objective, train_dataset=data)
    trainer.train()
    return trainer


def test_alpha_0_is_plain_training(tmp_path: Path) -> None:
    """To the bit: the same sums in the same order, dropout included."""
    dropout = {"hidden_dropout_prob": 0.1}
    models = [bert(BertForMaskedLM, **dropout) for _ in range(2)]
    objectives = [Distillation(teacher(BertForMaskedLM), alpha=0.0), LanguageModeling()]
    for model, objective in zip(models, objectives, strict=True):
        trained(tmp_path, model, objective)
    for ours, plain in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, plain)


def test_the_teacher_is_in_no_optimizer_and_no_checkpoint(tmp_path: Path) -> None:
    model, wise = bert(BertForMaskedLM), teacher(BertForMaskedLM)
    before = copy.deepcopy(wise.state_dict())
    trainer = trained(tmp_path, model, Distillation(wise), save_strategy="steps", save_steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wise.state_dict().items())
    own = {id(parameter) for parameter in model.parameters()}
    groups = trainer.optimizer.param_groups
    assert all(id(parameter) in own for group in groups for parameter in group["params"])
    folder = tmp_path / "checkpoint-3"
    with safe_open(folder / "model.safetensors", "pt") as saved:
        names = set(saved.keys())
    assert names <= set(model.state_dict())
    size = sum(tensor.numel() for tensor in model.state_dict().values()) * 4
    assert (folder / "model.safetensors").stat().st_size < size + 20_000
    plain, report = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    torch.testing.assert_close(plain.state_dict(), model.state_dict())
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(
        (logged["cross_entropy"] + logged["distillation"]) / 2, rel=1e-5
    )


def test_a_teacher_by_its_folder_is_loaded_as_the_students_kind(tmp_path: Path) -> None:
    wise = teacher(BertForSequenceClassification, **LABELS)
    wise.save_pretrained(tmp_path)
    model = bert(BertForSequenceClassification, **LABELS).train()
    batch = sequences(4, 0)
    by_name = prepared(Distillation(str(tmp_path)), model, batch)
    by_model = prepared(Distillation(wise), model, batch)
    torch.testing.assert_close(loss_of(by_name, model, batch), loss_of(by_model, model, batch))


def test_autocast_runs_both_models_in_its_type() -> None:
    model, wise = bert(BertForMaskedLM).train(), teacher(BertForMaskedLM)
    batch = batch_for(model)
    objective = prepared(Distillation(wise), model, batch)
    exact = loss_of(objective, model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        objective = prepared(Distillation(wise), model, batch)
        low = loss_of(objective, model, batch)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=5e-2, atol=0)  # bf16 keeps 8 bits
    low.backward()


def test_refuses_the_student_as_its_own_teacher() -> None:
    model = bert(BertForMaskedLM)
    with pytest.raises(ValueError, match="the student itself"):
        Distillation(model).prepare(model, batch_for(model))
    half = bert(BertForMaskedLM)
    half.bert.embeddings = model.bert.embeddings
    with pytest.raises(ValueError, match="shares weights"):
        Distillation(half).prepare(model, batch_for(model))


def test_refuses_what_does_not_fit() -> None:
    masked = bert(BertForMaskedLM)
    batch = batch_for(masked)
    for other, message in [
        (bert(BertForMaskedLM, vocab_size=101), "97 tokens and the teacher 101"),
        (tiny("gpt2"), "predicts the next token"),
        (Path("no/such/folder"), "no/such/folder"),
        (3, "the teacher is int"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            Distillation(other).prepare(masked, batch)
    model = bert(BertForSequenceClassification, **LABELS)
    batch = sequences(4, 0)
    with pytest.raises(ValueError, match="3 classes and the teacher 2"):
        Distillation(teacher(BertForSequenceClassification)).prepare(model, batch)
    with pytest.raises(ValueError, match="student's task"):
        Distillation(teacher(BertForTokenClassification, **LABELS)).prepare(model, batch)
    named = teacher(BertForSequenceClassification, **LABELS)
    named.config.id2label = {0: "no", 1: "yes", 2: "who knows"}
    Distillation(named).prepare(model, batch)  # the student's are not named
    model.config.id2label = {0: "yes", 1: "no", 2: "who knows"}
    with pytest.raises(ValueError, match="who knows"):
        Distillation(named).prepare(model, batch)
    regression = bert(BertForSequenceClassification, num_labels=1)
    scores = {**batch, "labels": batch["labels"].float()}
    with pytest.raises(ValueError, match="regression"):
        Distillation(bert(BertForSequenceClassification, 1, num_labels=1)).prepare(
            regression, scores
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"allowed: \[0, 1\]"),
        ({"temperature": 0}, "must be above 0"),
        ({"divergence": "jds"}, "did you mean 'jsd'"),
        ({"beta": 0.0}, "must be in"),
        ({"objective": Objective()}, "objective is Objective"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(tiny("bert"), **options)


class Words:
    """A tokenizer as far as the comparison needs one."""

    def __init__(self, *words: str):
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def test_vocabularies_are_compared_token_by_token() -> None:
    model, wise = bert(BertForMaskedLM), teacher(BertForMaskedLM)
    batch = batch_for(model)
    same = {"tokenizer": Words("a", "b", "c"), "teacher_tokenizer": Words("a", "b", "c")}
    Distillation(wise, **same).prepare(model, batch)
    swapped = {**same, "teacher_tokenizer": Words("a", "c", "b", "d")}
    with pytest.raises(ValueError, match="differ in 3 tokens: 'b' is 1 for the student and 2"):
        Distillation(wise, **swapped).prepare(model, batch)


def test_tokenizers_are_found_beside_the_models(tmp_path: Path) -> None:
    models = []
    for name, words in (("student", "a b c"), ("teacher", "a c b")):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = {word: number for number, word in enumerate([*special, *words.split()])}
        tokenizer = word_tokenizer(vocabulary)
        tokenizer.save_pretrained(tmp_path / name)
        bert(BertForMaskedLM, seed=len(models)).save_pretrained(tmp_path / name)
        models.append(BertForMaskedLM.from_pretrained(tmp_path / name))
    with pytest.raises(ValueError, match="'b' is 6 for the student and 7"):
        Distillation(models[1]).prepare(models[0], batch_for(models[0]))
    assert json.loads((tmp_path / "student" / "tokenizer.json").read_text())


def word_tokenizer(vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), unk_token="[UNK]"
    )


def end_to_end(num_rows: int = 4) -> dict[str, Any]:
    """The rows of `batch_for` in one, as the "unpadded" attention takes them."""
    batch = batch_for(None, num_rows)
    width = batch["input_ids"].shape[1]
    ends = torch.arange(num_rows + 1, dtype=torch.int32) * width
    flat = {name: batch[name].reshape(1, -1) for name in ("input_ids", "labels")}
    lengths = {"max_length_q": width, "max_length_k": width}
    places = torch.arange(width).repeat(num_rows).unsqueeze(0)
    return {**flat, **lengths, "position_ids": places, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


def test_examples_end_to_end_are_read_apart_by_both() -> None:
    model, wise = bert(BertForMaskedLM).train(), teacher(BertForMaskedLM)
    padded_loss = loss_of(
        prepared(Distillation(wise), model, batch_for(None)), model, batch_for(None)
    )
    tfo.unpadded_attention(model)
    with pytest.raises(ValueError, match="would read them as one text"):
        Distillation(wise).prepare(model, end_to_end())
    tfo.unpadded_attention(wise)
    joined = loss_of(prepared(Distillation(wise), model, end_to_end()), model, end_to_end())
    torch.testing.assert_close(joined, padded_loss, rtol=TOLERANCE, atol=0)


def test_a_class_weight_counts_for_the_labels_alone() -> None:
    kind = BertForSequenceClassification
    model, wise, batch = bert(kind, **LABELS).train(), teacher(kind, **LABELS), sequences(6, 0)
    task = Classification(class_weights=[1.0, 2.0, 0.5])
    objective = prepared(Distillation(wise, objective=task), model, batch)
    counts = objective.counts(batch)
    assert int(counts["distillation"]) == 6
    assert float(counts["cross_entropy"]) != 6


def vit(seed: int, num_layers: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(
        **sizes, num_hidden_layers=num_layers, image_size=8, patch_size=4, num_labels=3
    )
    return opinionated(ViTForImageClassification(config))


def images(num_rows: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(num_rows) % 3
    return {"pixel_values": torch.randn(num_rows, 3, 8, 8), "labels": labels}


def test_image_classifiers_equal_the_naive_form() -> None:
    model, wise, batch = vit(0, 1).train(), vit(1, 2), images()
    objective = prepared(Distillation(wise, alpha=0.3, temperature=3.0), model, batch)
    of_teacher = wise(**batch).logits.detach()
    naive = naive_distillation(model(**batch).logits, of_teacher, batch["labels"], 0.3, 3.0)
    assert_same_training(model, loss_of(objective, model, batch), naive, TOLERANCE)


def test_image_classifiers_train_with_a_teacher_of_another_family(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes: Any = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    convolutional = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))
    for number, wise in enumerate((convolutional, vit(1, 2))):
        options = {"columns": images(12), "save_strategy": "no"}
        trainer = trained(tmp_path / str(number), vit(0, 1), Distillation(wise), **options)
        logged = trainer.state.log_history[:3]
        assert len(logged) == 3 and all(entry["distillation"] > 0 for entry in logged)
    wise.save_pretrained(tmp_path / "wise")
    Distillation(tmp_path / "wise").prepare(vit(0, 1), images())


def test_image_classifiers_have_no_features_and_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="no input_ids, only pixel_values, labels; features are"):
        Distillation(vit(1, 2), features=[HiddenStates()]).prepare(vit(0, 1), images())
    other = vit(1, 2)
    other.config.id2label = {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="3 classes and the teacher 2"):
        Distillation(other).prepare(vit(0, 1), images())


def test_refuses_question_answering() -> None:
    model, wise = bert(BertForQuestionAnswering), bert(BertForQuestionAnswering, 1)
    batch = {name: batch_for(model)[name] for name in ("input_ids", "attention_mask")}
    places = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
    for more in ({"start_positions": places, "end_positions": places}, {"labels": places}):
        with pytest.raises(ValueError, match="neither one of words nor one of classes"):
            Distillation(wise).prepare(model, {**batch, **more})
