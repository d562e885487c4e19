"""Feature terms of real models: the right tensors, layers and tokens; what cannot be is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
)

import hf_tfopt as tfo
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.features import AttentionMaps, CosineStates, HiddenStates, Relations
from hf_tfopt.objectives.layer_pairs import uniform_map
from hf_tfopt.objectives.projection import FeatureProjection
from hf_tfopt.surgery.student import student_from
from tests.invariants.cases import Columns
from tests.invariants.cases.distillation import LABELS, bert, in_eager, padded, sequences, teacher
from tests.models import TINY, tiny
from tests.references.features import (
    naive_attention,
    naive_cosine,
    naive_hidden_states,
    naive_relations,
)

# fp32 sums in another order; a divergence has a digit less than what it is of.
TOLERANCE = 5e-5
# Every kind of model with one stack of layers that do not share their weights.
SINGLE = [name for name in TINY if name not in ("t5", "bart", "albert")]


def means(objective: Distillation, model: PreTrainedModel, batch: Any) -> dict[str, torch.Tensor]:
    terms, _ = objective.terms(model, model, batch, False)
    counts = objective.counts(batch)
    assert {name: int(term.count) for name, term in terms.items()} == {
        name: int(count) for name, count in counts.items()
    }
    return {name: term.sum / term.count for name, term in terms.items()}


def naive(student: Any, wise: Any, batch: Any, pair: tuple[int, int], lengths: list[int]) -> Any:
    """The four terms of one pair of layers, from the models' own outputs."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    both = [m(**inputs, output_hidden_states=True, output_attentions=True) for m in (student, wise)]
    states = [out.hidden_states[layer + 1] for out, layer in zip(both, pair, strict=True)]
    maps = [out.attentions[layer] for out, layer in zip(both, pair, strict=True)]
    vectors = []
    for model, out, layer in zip((student, wise), both, pair, strict=True):
        attention = model.base_model.encoder.layer[layer].attention.self
        before = out.hidden_states[layer]
        vectors.append([f(before) for f in (attention.query, attention.key, attention.value)])
    return {
        "hidden_states": naive_hidden_states(*states, lengths),
        "cosine": naive_cosine(*states, lengths),
        "attention_maps": naive_attention(*maps, lengths),
        "relations": naive_relations(*vectors, lengths, 2),
    }


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification])
def test_terms_equal_the_naive_form(kind: type[PreTrainedModel]) -> None:
    sizes = LABELS if kind is BertForSequenceClassification else {}
    student = in_eager(bert(kind, **sizes)).train()
    wise = in_eager(teacher(kind, hidden_size=32, **sizes))
    batch = (sequences if sizes else padded)(5, 0)
    lengths = batch["attention_mask"].sum(-1).tolist()
    pair = {1: 2}
    features = [HiddenStates(1.0, pair), CosineStates(1.0, pair), AttentionMaps(1.0, pair)]
    objective = Distillation(wise, features=[*features, Relations(1.0, pair)])
    objective.prepare(student, batch)
    found = means(objective, student, batch)
    expected = naive(student, wise, batch, (1, 2), lengths)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=TOLERANCE, atol=1e-8)
        ours, theirs = (
            torch.autograd.grad(x, student.bert.parameters(), allow_unused=True, retain_graph=True)
            for x in (found[name], value)
        )
        for gradient, reference in zip(ours, theirs, strict=True):
            assert (gradient is None) == (reference is None), name
            if gradient is not None and reference is not None:
                scale = max(float(reference.abs().max()), 1e-4)
                assert float((gradient - reference).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize("name", SINGLE)
def test_all_kinds_of_models_show_what_is_asked(name: str) -> None:
    student, wise = in_eager(tiny(name)).train(), in_eager(tiny(name, 1))
    batch = padded(4, 0)
    features = [HiddenStates(), CosineStates(), AttentionMaps(), Relations()]
    objective = Distillation(wise, features=features)
    objective.prepare(student, batch)
    found = means(objective, student, batch)
    for feature in features:
        assert float(found[feature.name].detach()) > 0
        parameters = list(student.parameters())
        moved = torch.autograd.grad(
            found[feature.name], parameters, allow_unused=True, retain_graph=True
        )
        assert any(g is not None and bool(g.any()) for g in moved)
    assert all(parameter.grad is None for parameter in wise.parameters())
    same = Distillation(tiny_copy(student), features=features)
    same.prepare(student.eval(), batch)
    student.train()
    for name_of, value in means(same, student, batch).items():
        if name_of != "cross_entropy":
            assert float(value.detach()) == pytest.approx(0, abs=1e-5), name_of


def tiny_copy(model: PreTrainedModel) -> PreTrainedModel:
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    return in_eager(other)


def test_layers_are_summed_and_evenly_spread_by_default() -> None:
    assert uniform_map(2, 4) == {0: 1, 1: 3}
    assert uniform_map(3, 12) == {0: 3, 1: 7, 2: 11}
    assert uniform_map(4, 6) == {0: 1, 1: 2, 2: 4, 3: 5}
    student, wise = bert(BertForMaskedLM).train(), teacher(BertForMaskedLM, hidden_size=32)
    batch = padded(4, 0)

    def term(layers: dict[int, int] | None) -> float:
        objective = Distillation(wise, features=[HiddenStates(layers=layers)])
        objective.prepare(student, batch)
        return float(means(objective, student, batch)["hidden_states"].detach())

    assert term(None) == pytest.approx(term({0: 1}) + term({1: 3}))


def test_weights_are_those_of_the_features() -> None:
    objective = Distillation(tiny("bert"), alpha=0.25, features=[Relations(3.0), CosineStates(0.5)])
    student = tiny("bert", 1)
    objective.prepare(student, padded(4, 0))
    expected = {"cross_entropy": 0.75, "distillation": 0.25, "relations": 3.0, "cosine": 0.5}
    assert dict(objective.weights) == expected


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (HiddenStates(), "32 wide and the teacher's 48"),
        (CosineStates(), "32 wide and the teacher's 48"),
        (HiddenStates(layers={2: 0}), "32 wide"),
        (Relations(layers={2: 0}), "none of the student's, which are 0 to 1"),
        (Relations(layers={0: 4}), "none of the teacher's, which are 0 to 3"),
        (Relations(layers={-1: -1}), "none of the student's"),
        (Relations(layers={}), "empty map"),
        (AttentionMaps(), "attn_implementation='eager'"),
    ],
)
def test_refuses(feature: Any, message: str) -> None:
    student, wise = bert(BertForMaskedLM), teacher(BertForMaskedLM)
    with pytest.raises(ValueError, match=message):
        Distillation(wise, features=[feature]).prepare(student, padded(4, 0))


def test_refuses_other_misuses() -> None:
    with pytest.raises(ValueError, match="each kind once"):
        Distillation(tiny("bert"), features=[Relations(), Relations()])
    with pytest.raises(ValueError, match="weight of cosine"):
        Distillation(tiny("bert"), features=[CosineStates(-1.0)])
    heads = teacher(BertForMaskedLM, num_attention_heads=4)
    student, batch = bert(BertForMaskedLM), padded(4, 0)
    with pytest.raises(ValueError, match="2 attention heads and the teacher 4"):
        Distillation(heads, features=[AttentionMaps()]).prepare(student, batch)
    objective = Distillation(heads, features=[Relations(num_heads=3)])
    objective.prepare(student.train(), batch)
    with pytest.raises(ValueError, match="no divisor of a width of 32"):
        means(objective, student, batch)


def test_a_student_made_of_its_teacher_learns_its_maps() -> None:
    wise = in_eager(teacher(BertForMaskedLM))
    student, batch = student_from(wise, [0, 2]).train(), padded(4, 0)
    objective = Distillation(wise, features=[AttentionMaps()])
    objective.prepare(student, batch)
    assert means(objective, student, batch)["attention_maps"] > 0


def train(folder: Path, student: Any, wise: Any, num_steps: int, resume: bool) -> Any:
    projection = FeatureProjection(student, wise)
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=num_steps,
        save_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    objective = Distillation(wise, features=[HiddenStates(10.0)])
    trainer = tfo.TfoptTrainer(
        student,
        args,
        objective=objective,
        train_dataset=Columns(padded(12, 0)),
        callbacks=[projection],
    )
    weight = student.distillation_projection.weight
    before = weight.detach().clone()
    trainer.train(resume_from_checkpoint=resume)
    assert not torch.equal(weight, before)
    return trainer


def test_a_projection_is_trained_resumed_exactly_and_never_in_the_student(tmp_path: Path) -> None:
    wise = teacher(BertForMaskedLM)
    straight, stopped, resumed = (bert(BertForMaskedLM) for _ in range(3))
    trainer = train(tmp_path / "straight", straight, wise, 4, resume=False)
    train(tmp_path / "halves", stopped, wise, 2, resume=False)
    train(tmp_path / "halves", resumed, wise, 4, resume=True)
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    trainer.save_model(str(tmp_path / "student"))
    plain, report = BertForMaskedLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    assert plain.state_dict().keys() == bert(BertForMaskedLM).state_dict().keys()
    with pytest.raises(ValueError, match="taken away"):
        trainer.train()


def test_a_student_has_one_projection_to_the_right_width() -> None:
    student = bert(BertForMaskedLM)
    FeatureProjection(student, 40)
    with pytest.raises(ValueError, match="already"):
        FeatureProjection(student, 48)
    with pytest.raises(ValueError, match="projected to 40, and the teacher's 48"):
        objective = Distillation(teacher(BertForMaskedLM), features=[HiddenStates()])
        objective.prepare(student, padded(4, 0))
