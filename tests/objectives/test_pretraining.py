"""Words and pairs: equal to the model's own loss for every such head, padded or not."""

import inspect
import logging
import math
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
    TrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING_NAMES

import hf_tfopt as tfo
from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.data.sentence_pairs import sentence_pairs
from hf_tfopt.data.tokenizer import train_tokenizer
from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.automatic import automatic
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.pretraining import Pretraining
from hf_tfopt.objectives.sentence_head import ARCHITECTURES, pretraining_class, sentence_head
from hf_tfopt.surgery.attention import unpadded_attention
from tests.invariants.cases.pretraining import MODELS, made, pairs
from tests.models import NO_DROPOUT, SIZES

# fp32 sums in another order.
TOLERANCE = 1e-5


def labels_of(model: Any) -> str:
    head = sentence_head(model)
    assert head is not None
    return head.label


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    named = model.named_parameters()
    return {name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None}


def assert_same_gradients(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((found[name] - gradient).abs().max()) <= TOLERANCE * scale, name


def test_the_architectures_are_the_hosts() -> None:
    found = {
        architecture
        for architecture, name in MODEL_FOR_PRETRAINING_MAPPING_NAMES.items()
        if name.endswith("ForPreTraining") and sentence_head(getattr(transformers, name))
    }
    assert found == set(ARCHITECTURES) == set(MODELS)


@pytest.mark.parametrize("at_head", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_the_models_own(name: str, at_head: bool) -> None:
    model = made(name).train()
    batch = pairs(5, 0, labels_of(model))
    objective = Pretraining(at_head=at_head)
    objective.prepare(model, batch)
    assert model.training
    terms, outputs = objective.terms(model, model, batch, False)
    assert outputs is None and set(terms) == set(objective.counts(batch))
    own = model(**batch).loss
    loss = combine(terms)
    torch.testing.assert_close(loss, own, rtol=TOLERANCE, atol=0)
    counts = objective.counts(batch)
    assert all(int(counts[key]) == int(terms[key].count) for key in counts)
    expected = gradients(model, own)
    assert_same_gradients(gradients(model, loss), expected)
    with_outputs, outputs = objective.terms(model, model, batch, True)
    torch.testing.assert_close(combine(with_outputs), own, rtol=TOLERANCE, atol=0)
    assert outputs["prediction_logits"].shape == (*batch["input_ids"].shape, SIZES["vocab_size"])


def test_the_words_go_through_the_head() -> None:
    for name in set(MODELS) - {"mobilebert"}:  # its head is a product with two tables
        model = made(name)
        objective = Pretraining()
        objective.prepare(model, pairs(4, 0, labels_of(model)))
        assert objective.plan is not None and objective.plan.head is not None, name


def test_albert_is_trained_on_the_order() -> None:
    model = made("albert")
    objective = Pretraining()
    for label in ("sentence_order_label", "next_sentence_label"):
        objective.prepare(model, pairs(4, 0, label))
        assert set(objective.counts(pairs(4, 0, label))) == {"cross_entropy", "sentence_order"}


WORDS = ["ba", "be", "bi", "bo", "bu", "da", "de", "di", "do", "du"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([" ".join(WORDS)] * 3, 90)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> Dataset:
    documents = [[" ".join(WORDS[i : i + n]) for i in (0, 2, 3)] for n in range(2, 8)]
    return sentence_pairs(documents, tokenizer, max_length=32)


class TestCollated:
    """Pairs through the collator: padded and end to end, the same loss and gradients."""

    @pytest.mark.parametrize("name", ["bert", "albert", "ernie"])
    @pytest.mark.parametrize("kind", ["dicts", "arrow"])
    @pytest.mark.parametrize("multiple", [None, 64])
    def test_without_padding(
        self, name: str, kind: str, multiple: int | None, tokenizer: Any, rows: Dataset
    ) -> None:
        model = made(name)
        source = list(rows) if kind == "dicts" else ArrowRows(rows)
        given = [source[i] for i in range(5)]
        collator = MaskedLMCollator(tokenizer, probability=0.4)
        collator.bind(model)
        padded = collator(given)
        label = labels_of(model)
        assert padded[label].tolist() == rows["next_sentence_label"][:5]
        objective = Pretraining()
        objective.prepare(model, padded)
        expected, _ = objective.terms(model, model, padded, False)
        own = model(**padded).loss
        torch.testing.assert_close(combine(expected), own, rtol=TOLERANCE, atol=0)
        expected_gradients = gradients(model, combine(expected))
        unpadded_attention(model)
        flat_collator = MaskedLMCollator(tokenizer, probability=0.4, pad_to_multiple_of=multiple)
        flat_collator.bind(model)
        flat = flat_collator(given)
        assert flat["input_ids"].shape[0] == 1 and len(flat[label]) == 5
        fresh = Pretraining()
        fresh.prepare(model, flat)
        terms, _ = fresh.terms(model, model, flat, False)
        for key, term in expected.items():
            torch.testing.assert_close(terms[key].sum, term.sum, rtol=TOLERANCE, atol=0)
            assert int(terms[key].count) == int(term.count) == int(fresh.counts(flat)[key])
        assert_same_gradients(gradients(model, combine(terms)), expected_gradients)

    def test_a_model_without_the_label_is_not_given_it(self, tokenizer: Any, rows: Dataset) -> None:
        batch = MaskedLMCollator(tokenizer)(list(rows)[:3])
        assert set(batch) == {
            *("input_ids", "labels", "token_type_ids", "attention_mask"),
            "next_sentence_label",
        }
        model = BertForMaskedLM(BertConfig(**SIZES))
        bound = MaskedLMCollator(tokenizer, model=model)(list(rows)[:3])
        assert "next_sentence_label" not in bound
        assert model(**bound).loss.isfinite()

    def test_the_label_moves_no_mask(self, tokenizer: Any, rows: Dataset) -> None:
        bare = rows.remove_columns("next_sentence_label")
        one, other = (MaskedLMCollator(tokenizer)(list(given)[:4]) for given in (rows, bare))
        assert torch.equal(one["input_ids"], other["input_ids"])

    @pytest.mark.parametrize("is_unpadded", [False, True])
    @pytest.mark.parametrize("name", ["bert", "albert"])
    def test_in_a_trainer(
        self, name: str, is_unpadded: bool, tokenizer: Any, rows: Dataset, tmp_path: Any
    ) -> None:
        model = made(name)
        if is_unpadded:
            unpadded_attention(model)
        trainer = tfo.TfoptTrainer(
            model,
            TrainingArguments(
                str(tmp_path),
                per_device_train_batch_size=2,
                per_device_eval_batch_size=3,
                max_steps=2,
                logging_steps=1,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
            ),
            objective=Pretraining(),
            data_collator=MaskedLMCollator(tokenizer, probability=0.4),
            train_dataset=ArrowRows(rows),
            eval_dataset=ArrowRows(rows),
        )
        trainer.train()
        term = "sentence_order" if name == "albert" else "next_sentence"
        logged = trainer.state.log_history[0]
        both = logged["cross_entropy"] + logged[term]
        assert logged["loss"] == pytest.approx(both, rel=1e-4)  # the host rounds what it logs
        for has_outputs in (False, True):
            trainer.compute_metrics = (
                (lambda found: {}) if has_outputs and not is_unpadded else None
            )
            scores = trainer.evaluate()
            assert scores["eval_loss"] == pytest.approx(
                scores["eval_cross_entropy"] + scores[f"eval_{term}"], rel=1e-9
            )
            perplexity = math.exp(scores["eval_cross_entropy"])
            assert scores["eval_perplexity"] == pytest.approx(perplexity, rel=1e-9)
            right = expected_right(trainer, rows)
            assert scores[f"eval_{term}_accuracy"] == pytest.approx(right, abs=1e-9)


def test_the_order_is_learned_without_padding(tokenizer: Any, tmp_path: Any) -> None:
    """A text begins with "ba" and ends with "du": a swap can be told, where pairs are pooled."""
    documents = [[f"ba {a}", f"{b} du"] for a in WORDS[1:-1] for b in WORDS[1:-1]]
    rows = sentence_pairs(documents, tokenizer, "sop", max_length=32, short_probability=0)
    model = unpadded_attention(made("bert"))
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=16,
        max_steps=120,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = tfo.TfoptTrainer(
        model,
        args,
        objective=Pretraining(),
        data_collator=MaskedLMCollator(tokenizer),
        train_dataset=ArrowRows(rows),
        eval_dataset=ArrowRows(rows),
    )
    assert trainer.evaluate()["eval_next_sentence_accuracy"] < 0.75
    trainer.train()
    assert trainer.evaluate()["eval_next_sentence_accuracy"] > 0.9


def expected_right(trainer: Any, rows: Dataset) -> float:
    """One pair at a time, by the model itself."""
    model, collator = trainer.model.eval(), trainer.data_collator
    hits = []
    for row in rows:
        batch = collator([row])
        label = batch.pop(labels_of(model))
        del batch["labels"]
        with torch.no_grad():
            outputs = model(**batch)
        logits = outputs[sentence_head(model).logits]
        hits.append(bool(logits.argmax(-1) == label))
    return sum(hits) / len(hits)


def test_mobilebert_is_padded_also_where_its_attention_takes_lengths(
    tokenizer: Any, rows: Dataset
) -> None:
    model = made("mobilebert")
    unpadded_attention(model)
    batch = MaskedLMCollator(tokenizer, probability=0.4, model=model)(list(rows)[:4])
    assert batch["input_ids"].shape[0] == 4 and "attention_mask" in batch
    Pretraining().prepare(model, batch)
    packed = pack(rows, 64)
    with pytest.raises(ValueError, match="joins neighbours' embeddings"):
        MaskedLMCollator(tokenizer, model=model)(list(packed))


def test_an_automatic_objective_sees_the_labels_of_pairs() -> None:
    model, batch = made("bert"), pairs(3, 0)
    assert type(automatic(model, batch)) is Pretraining
    del batch["next_sentence_label"]
    assert type(automatic(model, batch)) is LanguageModeling


class TestRefused:
    def test_a_model_without_a_sentence_head(self) -> None:
        with pytest.raises(ValueError, match=r"BertForMaskedLM has no.*take BertForPreTraining"):
            Pretraining().prepare(BertForMaskedLM(BertConfig(**SIZES)), pairs(2, 0))
        with pytest.raises(ValueError, match=r"'roberta' has no head.*albert, bert, big_bird"):
            Pretraining().prepare(RobertaForMaskedLM(RobertaConfig(**SIZES)), pairs(2, 0))

    @pytest.mark.parametrize("name", ["roberta", "electra", "gpt2", "bart", "brt"])
    def test_an_architecture_without_one(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' has no head.*bert, big_bird"):
            pretraining_class(name)

    def test_a_batch_without_the_label(self) -> None:
        batch = pairs(2, 0)
        del batch["next_sentence_label"]
        with pytest.raises(ValueError, match=r"no next_sentence_label.*tfo\.sentence_pairs"):
            Pretraining().prepare(made("bert"), batch)

    def test_packed_pairs(self, tokenizer: Any, rows: Dataset) -> None:
        model = made("bert")
        batch = MaskedLMCollator(tokenizer, model=model)(list(pack(rows, 64)))
        with pytest.raises(ValueError, match="do not pack them"):
            Pretraining().prepare(model, batch)

    def test_a_column_that_the_trainer_removed(
        self, tokenizer: Any, rows: Dataset, tmp_path: Any
    ) -> None:
        """The host knows the columns by the names in the model's forward."""
        for name in ("bert", "albert"):
            model = made(name)
            args = TrainingArguments(
                str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
            )
            trainer = tfo.TfoptTrainer(
                model,
                args,
                objective=Pretraining(),
                data_collator=MaskedLMCollator(tokenizer, probability=0.4),
                train_dataset=rows,
            )
            if name == "bert":
                trainer.train()
            else:
                with pytest.raises(ValueError, match=r"sentence_order_label.*tfo\.ArrowRows"):
                    trainer.train()

    def test_a_batch_without_labelled_words(self) -> None:
        batch = pairs(2, 0)
        batch["labels"].fill_(-100)
        with pytest.raises(ValueError, match="every label"):
            Pretraining().prepare(made("bert"), batch)

    def test_a_batch_without_labelled_pairs(self) -> None:
        batch = pairs(2, 0)
        batch["next_sentence_label"].fill_(-100)
        with pytest.raises(ValueError, match="no pair of the batch has a label"):
            Pretraining().prepare(made("bert"), batch)

    @pytest.mark.parametrize(
        ("labels", "told"),
        [
            (torch.tensor([0, 2]), "label 2 is outside"),
            (torch.tensor([-1, 1]), "label -1 is outside"),
            (torch.tensor([0.0, 1.0]), "whole numbers"),
            (torch.tensor([0, 1, 1]), "3 labels of pairs for 2 examples"),
            (torch.zeros(2, 12, dtype=torch.long), "one for each pair"),
        ],
    )
    def test_bad_labels(self, labels: torch.Tensor, told: str) -> None:
        objective, model = Pretraining(), made("bert")
        objective.prepare(model, pairs(2, 0))
        with pytest.raises(ValueError, match=told):
            objective.counts({**pairs(2, 0), "next_sentence_label": labels})

    def test_a_model_with_another_loss(self) -> None:
        class Weighted(BertForPreTraining):
            def forward(self, *args: Any, next_sentence_label: Any = None, **kwargs: Any) -> Any:
                outputs = super().forward(*args, next_sentence_label=next_sentence_label, **kwargs)
                if outputs.loss is not None:
                    outputs.loss = 2 * outputs.loss
                return outputs

        with pytest.raises(ValueError, match=r"loss of Weighted is.*does not know"):
            Pretraining().prepare(Weighted(BertConfig(**SIZES, **NO_DROPOUT)), pairs(3, 0))

    def test_pairs_that_see_one_another(self) -> None:
        """MobileBERT joins each word's embedding with its neighbours', across the pairs too."""
        model = made("mobilebert").eval()
        unpadded_attention(model)
        batch = pairs(3, 0)
        flat = {
            name: column.reshape(1, -1) for name, column in batch.items() if column.dim() == 2
        } | {"next_sentence_label": batch["next_sentence_label"]}
        del flat["attention_mask"]
        ends = torch.arange(0, 37, 12, dtype=torch.int32)
        lengths = {"max_length_q": 12, "max_length_k": 12}
        flat |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, **lengths}
        with pytest.raises(ValueError, match="does not keep the pairs"):
            Pretraining().prepare(model, flat)


def test_its_options_are_those_of_the_words() -> None:
    assert "label_smoothing" in inspect.signature(Pretraining).parameters
    model, batch = made("bert").train(), pairs(4, 0)
    plain, smooth = Pretraining(), Pretraining(label_smoothing=0.2)
    for objective in (plain, smooth):
        objective.prepare(model, batch)
    for training in (True, False):
        model.train(training)
        terms, smoothed = (o.terms(model, model, batch, False)[0] for o in (plain, smooth))
        assert terms["next_sentence"].sum == smoothed["next_sentence"].sum
        assert (terms["cross_entropy"].sum == smoothed["cross_entropy"].sum) == (not training)


def test_preparing_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Pretraining().prepare(made("bert"), pairs(4, 0))
    assert not caplog.records
