"""Several tasks at once: terms, weights, evaluation, and a run that stops and goes on."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

import hf_tfopt as tfo
from hf_tfopt.data.mixing import mix
from hf_tfopt.data.multitask_collator import MultitaskCollator
from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.adversarial import FGM
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.gradient_balance import GradNorm, PCGrad
from hf_tfopt.objectives.multitask import Multitask, UncertaintyWeighting
from hf_tfopt.surgery.multitask import MultitaskModel
from tests.data.test_multitask_collator import tokenizer
from tests.invariants.cases import Columns
from tests.invariants.cases.multitask import TASKS, model, rows
from tests.models import NO_DROPOUT, SIZES, VOCABULARY

NAMES = sorted(TASKS)


def bound(objective: Multitask, made: MultitaskModel) -> Multitask:
    objective.bind(made)
    objective.prepare(made, rows(8, 0))
    return objective


def host_losses(made: MultitaskModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each task's mean loss by the host's own model of it."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    losses = {}
    for number, name in enumerate(NAMES):
        own = batch["task"] == number
        if not own.any():
            continue
        labels = {
            "score": batch["label_values"][:, 0],
            "tags": batch["label_values"],
            "topic": batch["labels"][:, 0],
            "words": batch["labels"],
        }[name][own]
        given = {key: value[own] for key, value in inputs.items()}
        losses[name] = made.export(name)(**given, labels=labels).loss.detach()
    return losses


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 5,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            **options,
        },
    )


def test_terms_are_the_hosts_losses() -> None:
    made = model().train()
    objective = bound(Multitask({"tags": 0.5}), made)
    batch = rows(16, 3)
    terms, outputs = objective.terms(made, made, batch, False)
    counts = objective.counts(batch)
    expected = host_losses(made, batch)
    assert outputs is None and list(terms) == NAMES == list(expected)
    for name, term in terms.items():
        assert int(term.count) == int(counts[name])
        torch.testing.assert_close(
            term.sum.detach() / term.count, expected[name], rtol=1e-5, atol=0
        )
    total = combine(terms, counts, objective.weights)
    weighted = sum(expected[name] * (0.5 if name == "tags" else 1) for name in NAMES)
    torch.testing.assert_close(total.detach(), weighted, rtol=1e-5, atol=0)


def test_a_task_without_rows_is_0_of_0_and_differentiable() -> None:
    made = model().train()
    objective = bound(Multitask(), made)
    batch = {key: value[rows(16, 3)["task"] == 2] for key, value in rows(16, 3).items()}
    terms, _ = objective.terms(made, made, batch, False)
    assert [int(terms[name].count) for name in NAMES] == [0, 0, len(batch["task"]), 0]
    combine(terms, objective.counts(batch)).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert not bool(made.heads["tags"].classifier.weight.grad.any())


def test_labels_that_were_taken_out_count_for_nothing() -> None:
    """As the trainer marks what fills up the last batch of several processes."""
    made = model().eval()
    objective = bound(Multitask(), made)
    batch, kept = rows(16, 3), 9
    marked = {**batch, "labels": batch["labels"].clone()}
    marked["labels"][kept:] = -100
    marked["label_values"] = batch["label_values"].clone()
    marked["label_values"][kept:] = math.nan
    found, _ = objective.terms(made, made, marked, False)
    expected, _ = objective.terms(made, made, {k: v[:kept] for k, v in batch.items()}, False)
    for name in NAMES:
        assert int(found[name].count) == int(expected[name].count)
        torch.testing.assert_close(found[name].sum, expected[name].sum, rtol=1e-5, atol=1e-6)


def test_uncertainty_trains_its_parameters_and_evaluates_plainly() -> None:
    made = model().train()
    objective = bound(UncertaintyWeighting(), made)
    with torch.no_grad():
        made.log_variances.copy_(torch.tensor([0.3, -0.4, 0.0, 1.0]))
    batch = rows(16, 3)
    losses = host_losses(made, batch)
    terms, _ = objective.terms(made, made, batch, False)
    loss = combine(terms, objective.counts(batch), objective.weights)
    factors = {"score": 0.5, "tags": 1.0, "topic": 1.0, "words": 1.0}
    expected = torch.zeros(())
    for name, s in zip(NAMES, made.log_variances.detach(), strict=True):
        expected += factors[name] * torch.exp(-s) * losses[name] + s / 2
        weight = terms[f"{name}_weight"]
        assert float(weight.sum / weight.count) == pytest.approx(factors[name] * math.exp(-s))
        assert not terms[name].sum.requires_grad
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    loss.backward()
    slopes = [
        0.5 - factors[name] * math.exp(-float(s)) * float(losses[name])
        for name, s in zip(NAMES, made.log_variances.detach(), strict=True)
    ]
    assert made.log_variances.grad.tolist() == pytest.approx(slopes, rel=1e-4)
    plain, _ = objective.terms(made.eval(), made, batch, False)
    assert list(plain) == [*NAMES, "topic_accuracy", "words_accuracy"]


def test_a_learnt_weight_can_be_multiplied() -> None:
    made, batch = model().train(), rows(16, 3)
    totals = []
    for weights in (None, {"topic": 3.0}):
        objective = bound(UncertaintyWeighting(weights), made)
        terms, _ = objective.terms(made, made, batch, False)
        totals.append(combine(terms, objective.counts(batch), objective.weights).detach())
    own = terms["topic_weighted"].sum.detach() / terms["topic"].count
    torch.testing.assert_close(totals[1] - totals[0], 2 * own, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("balance", "kind"),
    [(None, Multitask), ("uncertainty", UncertaintyWeighting), ("gradnorm", GradNorm)],
)
def test_without_an_objective_a_model_is_trained_as_it_was(
    balance: Any, kind: type[Multitask], tmp_path: Path
) -> None:
    made = model()
    made.hold_balance(balance)
    trainer = tfo.TfoptTrainer(
        made, arguments(tmp_path, max_steps=2), train_dataset=Columns(rows(8, 0))
    )
    trainer.train()
    assert type(trainer.training_objective) is kind
    assert set(NAMES) <= trainer.state.log_history[0].keys()


def test_uncertainties_are_not_decayed_and_can_have_their_own_rate() -> None:
    made = model()
    bound(UncertaintyWeighting(), made)
    groups = tfo.param_groups(made, 1e-3, 0.1, multipliers={"log_variances": 100.0})
    own = [group for group in groups if "log_variances" in group["param_names"]]
    assert [(group["weight_decay"], group["lr"]) for group in own] == [(0.0, pytest.approx(0.1))]


def test_a_run_logs_every_task_and_evaluates_each_row_once(tmp_path: Path) -> None:
    made = model()
    held_out = rows(11, 1)
    trainer = tfo.TfoptTrainer(
        made,
        arguments(tmp_path, max_steps=6),
        objective=UncertaintyWeighting(),
        train_dataset=Columns(rows(24, 0)),
        eval_dataset=Columns(held_out),
    )
    assert made.log_variances.requires_grad  # before there is an optimizer
    trainer.train()
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert id(made.log_variances) in held and bool(made.log_variances.any())
    # a batch of 4 rows has not every task; what it has is told under its name
    logged = {key for entry in trainer.state.log_history[:6] for key in entry}
    for name in NAMES:
        assert {name, f"{name}_weighted", f"{name}_weight"} <= logged
    scores = trainer.evaluate()
    expected = host_losses(made.eval(), held_out)
    for name, loss in expected.items():
        assert scores[f"eval_{name}"] == pytest.approx(float(loss), rel=1e-5)
    assert scores["eval_loss"] == pytest.approx(float(sum(expected.values())), rel=1e-5)
    logits = made(**{k: v for k, v in held_out.items() if "label" not in k}).logits["words"]
    labels = held_out["labels"][held_out["task"] == NAMES.index("words")]
    right = (logits.argmax(-1) == labels)[labels != -100].float()
    assert scores["eval_words_accuracy"] == pytest.approx(float(right.mean()))


def test_metrics_see_the_logits_of_each_task_beside_its_labels(tmp_path: Path) -> None:
    made, held_out = model(), rows(11, 1)
    seen: list[Any] = []

    def accuracy(predictions: Any) -> dict[str, float]:
        seen.append(predictions)
        labels = predictions.label_ids[0][:, 0]
        logits = predictions.predictions["topic"]
        own = ~torch.tensor(logits).isnan().any(dim=1).numpy()
        return {"topic_accuracy": float((logits[own].argmax(-1) == labels[own]).mean())}

    trainer = tfo.TfoptTrainer(
        made,
        arguments(tmp_path),
        objective=Multitask(),
        eval_dataset=Columns(held_out),
        compute_metrics=accuracy,
    )
    scores = trainer.evaluate()
    logits = made.eval()(**{k: v for k, v in held_out.items() if "label" not in k}).logits
    labels = held_out["labels"][held_out["task"] == NAMES.index("topic"), 0]
    expected = float((logits["topic"].argmax(-1) == labels).float().mean())
    assert scores["eval_topic_accuracy"] == pytest.approx(expected)
    assert {name: len(own) for name, own in seen[0].predictions.items()} == dict.fromkeys(NAMES, 11)


def task_rows() -> dict[str, list[dict[str, Any]]]:
    """Datasets of four tasks, of different sizes and lengths."""
    generator = torch.Generator().manual_seed(5)

    def row(name: str) -> dict[str, Any]:
        length = int(torch.randint(3, 10, (1,), generator=generator))
        ids = torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()
        labels: dict[str, Any] = {
            "score": float(torch.randn(1, generator=generator)),
            "tags": torch.randint(2, (4,), generator=generator).tolist(),
            "topic": int(torch.randint(3, (1,), generator=generator)),
            "words": torch.randint(5, (length,), generator=generator).tolist(),
        }
        return {"input_ids": ids, "attention_mask": [1] * length, "labels": labels[name]}

    sizes = {"score": 5, "tags": 20, "topic": 9, "words": 14}
    return {name: [row(name) for _ in range(size)] for name, size in sizes.items()}


@pytest.mark.parametrize("objective", [UncertaintyWeighting, GradNorm, PCGrad])
def test_a_run_that_stops_goes_on_bit_for_bit(
    objective: Callable[[], Objective], tmp_path: Path
) -> None:
    """With dropout, temperature mixing, and a stop in the middle of the second epoch."""
    data = task_rows()

    def trained(folder: str, stop: int | None, resume: str | None) -> MultitaskModel:
        torch.manual_seed(0)
        made = MultitaskModel.from_encoder(BertConfig(**SIZES), TASKS)
        trainer = tfo.TfoptTrainer(
            made,
            arguments(
                tmp_path / folder,
                max_steps=11,
                gradient_accumulation_steps=2,
                save_strategy="steps" if stop else "no",
                save_steps=stop or 500,
            ),
            objective=objective(),
            train_dataset=mix(data, 3.0, num_rows=32),  # 4 steps an epoch
            data_collator=MultitaskCollator(tokenizer(), made.config.tasks),
        )
        trainer.train(resume_from_checkpoint=resume)
        return made

    never = trained("never", 6, None).state_dict()
    resumed = trained("resumed", None, str(tmp_path / "never" / "checkpoint-6")).state_dict()
    assert never.keys() == resumed.keys()
    assert [key for key in never if not torch.equal(never[key], resumed[key])] == []


@pytest.mark.parametrize("objective", [UncertaintyWeighting, PCGrad, lambda: FGM(Multitask())])
def test_adapters_are_trained_and_a_wrapped_objective_too(
    objective: Callable[[], Objective], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model(), config)
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    trainer = tfo.TfoptTrainer(
        adapted,
        arguments(tmp_path, max_steps=2),
        objective=objective(),
        train_dataset=Columns(rows(24, 0)),
    )
    trainer.train()
    after = dict(adapted.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("lora_B" in name for name in changed)
    assert any("classifier.modules_to_save" in name for name in changed)
    assert all("lora" in name or "modules_to_save" in name for name in changed)


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = BertForMaskedLM(BertConfig(**SIZES, **NO_DROPOUT))
    with pytest.raises(ValueError, match="Multitask trains a MultitaskModel, not a BertForMasked"):
        tfo.TfoptTrainer(other, arguments(tmp_path), objective=Multitask())
    with pytest.raises(ValueError, match=r"unknown task 'topics' .did you mean 'topic'"):
        Multitask({"topics": 1.0}).bind(model())
    with pytest.raises(ValueError, match=r"weight of task 'topic' is -1.0; it must be at least 0"):
        Multitask({"topic": -1.0})
    batch = rows(4, 0)
    del batch["task"]
    with pytest.raises(ValueError, match="does not say the task of its rows, only input_ids"):
        bound(Multitask(), made := model()).prepare(made, batch)
    with pytest.raises(ValueError, match="outside"):
        bad = rows(16, 3)
        bad["labels"][bad["task"] == NAMES.index("topic"), 0] = 3
        bound(Multitask(), made := model()).terms(made, made, bad, False)


def test_an_optimizer_that_is_there_already_would_miss_the_variances(tmp_path: Path) -> None:
    made = model()
    optimizer = torch.optim.AdamW(made.parameters())
    with pytest.raises(ValueError, match="adds log_variances to the model, which the optimizer"):
        tfo.TfoptTrainer(
            made,
            arguments(tmp_path),
            optimizers=(optimizer, None),
            objective=UncertaintyWeighting(),
        )
