"""Training an encoder-decoder, end to end: what it leaves, how it goes on, and what it refuses."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from accelerate import PartialState
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MarianMTModel,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

import hf_tfopt as tfo
from hf_tfopt.data.rows_fingerprint import rows_fingerprint
from hf_tfopt.recipe import seeds, seq2seq_generation, seq2seq_texts
from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.loading import load
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe
from hf_tfopt.recipe.seq2seq_model import new_tokenizer
from tests.killed import killed_after
from tests.processes import TwoInterpreters
from tests.scripts.loaded import (
    SHORT_RUN,
    as_flags,
    history,
    load_script,
    save_models,
    script_path,
)

SCRIPT = script_path("finetune_seq2seq")
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}


seq2seq = load_script("finetune_seq2seq")


def pairs(num_rows: int, seed: int) -> list[dict[str, str]]:
    choose = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < num_rows:
        words = [choose.choice(list(WORDS)) for _ in range(choose.randint(1, 4))]
        found[" ".join(words)] = " ".join(WORDS[word] for word in words)
    return [{"en": source, "de": target} for source, target in found.items()]


def bart(num_ids: int, kind: Any = BartForConditionalGeneration) -> Any:
    sides = ("layers", "attention_heads", "ffn_dim")
    sizes = {
        f"{s}_{n}": v
        for s in ("encoder", "decoder")
        for n, v in zip(sides, (1, 2, 48), strict=True)
    }
    special = {"pad_token_id": num_ids - 1, "eos_token_id": 0, "bos_token_id": 0}
    config = BartConfig(
        vocab_size=num_ids,
        d_model=32,
        max_position_embeddings=24,
        decoder_start_token_id=0,
        forced_eos_token_id=0,
        **sizes,
        **special,
    )
    return kind(config)


def t5(num_ids: int) -> Any:
    special = {"pad_token_id": num_ids - 1, "eos_token_id": 0, "decoder_start_token_id": 0}
    config = T5Config(
        vocab_size=num_ids, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, **special
    )
    return T5ForConditionalGeneration(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, and models of every kind with one tokenizer, in one folder."""
    folder = tmp_path_factory.mktemp("seq2seq")
    rows = pairs(120, 0)
    for name, part in (("train", rows[:96]), ("dev", rows[96:])):
        lines = (json.dumps({"translation": row}) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    tokenizer = new_tokenizer([text for row in rows for text in row.values()], 300)
    torch.manual_seed(0)
    num_ids = len(tokenizer)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = {
        "bart": bart(num_ids),
        "t5": t5(num_ids),
        "classifier": bart(num_ids, BartForSequenceClassification),
        "encoder": BertModel(BertConfig(vocab_size=num_ids, **small)),
        "decoder": GPT2LMHeadModel(GPT2Config(vocab_size=num_ids, n_embd=32, n_layer=1, n_head=2)),
    }
    save_models(models, tokenizer, folder)
    return folder


def flags(place: Path, out: Path, **keys: Any) -> list[str]:
    sizes = {} if "/" in str(keys.get("model", "")) else {**SIZES, "vocab_size": 280}
    given = {
        **SHORT_RUN,
        **sizes,
        "train": place / "train.jsonl",
        "eval": place / "dev.jsonl",
        "source_column": "translation.en",
        "target_column": "translation.de",
        "max_source_length": 24,
        "max_target_length": 24,
        "batch_size": 8,
        "eval_steps": 3,
        "save_steps": 2,
        "monitors": "none",
        "learning_rate": 3e-3,
        "output_dir": out,
        **keys,
    }
    return as_flags(given)


def prepared(place: Path, out: Path, *more: str, **keys: Any) -> Any:
    given = [*flags(place, out, **keys), *more]
    return seq2seq.prepare(*read_command(given, Seq2SeqRecipe))


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def predictions(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from nothing to the end."""
    out = tmp_path_factory.mktemp("done") / "out"
    keys = {"eval_samples": 5, "monitors": "default", "num_beams": 2}
    seq2seq.main(flags(place, out, **keys, metrics="exact_match,chrf,bleu"))
    return out


def test_everything_is_left_behind(done: Path, place: Path) -> None:
    metrics = json.loads((done / "metrics.json").read_text())
    assert {"bleu", "chrf", "exact_match", "eval_loss", "perplexity", "train_seconds"} <= {*metrics}
    assert metrics["steps"] == 6
    for name in ("bleu", "chrf", "exact_match"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"], name
    assert metrics["chrf_low"] < metrics["chrf_high"]
    assert history(done, "eval_chrf").keys() == {3, 6}
    assert {"README.md", "report.html", "curves.png", "recipe.yaml", "log.jsonl"} <= {
        path.name for path in done.iterdir()
    }
    assert not (done / "training_args.bin").exists(), "it names the machine's paths"
    model = AutoModelForSeq2SeqLM.from_pretrained(done)
    config, own = model.config, model.generation_config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (32, 1, 1)
    assert (own.num_beams, own.max_new_tokens, own.max_length) == (2, 24, None)
    card = ModelCard.load(done / "README.md")
    assert card.data.pipeline_tag == "translation"
    for text in (card.content, (done / "report.html").read_text()):
        assert predictions(done)[0]["source"] in text
        assert str(place) not in text and str(done) not in text
    found = yaml.safe_load((done / "recipe.yaml").read_text())
    assert load(Seq2SeqRecipe, done / "recipe.yaml") == Seq2SeqRecipe(**found)


def test_predictions_are_what_the_saved_model_writes_of_each_source_alone(done: Path) -> None:
    """And they are judged beside the references as these were written."""
    model, tokenizer = (
        factory.from_pretrained(done) for factory in (AutoModelForSeq2SeqLM, AutoTokenizer)
    )
    found = predictions(done)
    assert [{"en": row["source"], "de": row["target"]} for row in found] == pairs(120, 0)[96:]
    for row in found[::3]:
        [ids] = model.generate(**tokenizer(row["source"], return_tensors="pt"))
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == row["generated"]
    metrics = json.loads((done / "metrics.json").read_text())
    texts = [row["generated"] for row in found], [row["target"] for row in found]
    scores = tfo.Scores("chrf", "bleu")(texts)
    assert {name: metrics[name] for name in scores} == scores
    assert metrics["exact_match"] == sum(map(str.__eq__, *texts)) / len(found)


@pytest.mark.parametrize("architecture", ["marian", "bart", "t5"])
def test_a_few_pairs_are_learnt_by_heart_and_written_again(
    architecture: str, place: Path, tmp_path: Path
) -> None:
    """So what a new model is trained to begin and to end with is what it generates with."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join((place / "train.jsonl").read_text().splitlines(True)[:8]))
    keys = {"train": few, "eval": few, "shared_examples": "keep", "model": architecture}
    keys |= {"max_steps": 200, "eval_steps": 200, "save_steps": 200, "dropout": 0}
    keys |= {"learning_rate": 1e-2, "schedule": "constant"}
    if architecture == "t5":
        keys["max_position_embeddings"] = "none"
    metrics = seq2seq.main(flags(place, tmp_path / "out", **keys, metrics="exact_match"))
    assert metrics["exact_match"] == 1


def test_generating_while_training_changes_nothing(place: Path, tmp_path: Path) -> None:
    keys = {"max_steps": 4, "eval_steps": 1, "save_steps": 4}
    seq2seq.main(flags(place, tmp_path / "a", **keys))
    seq2seq.main(flags(place, tmp_path / "b", **keys, eval_samples=7))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    losses = [history(tmp_path / name, "eval_loss") for name in "ab"]
    assert losses[0] == losses[1]


@pytest.mark.invariant
def test_stop_and_resume_equals_never_stopped(place: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = {"eval_samples": 4, "schedule": "noam", "warmup_steps": 3, "label_smoothing": 0.1}
    keys |= {"sampler": "{token_budget: {max_tokens: 96}}", "learning_rate": 1}
    seq2seq.main(flags(place, whole, **keys))

    with killed_after(5):
        seq2seq.main(flags(place, cut, **keys))
    seq2seq.main([*flags(place, cut, **keys), "--resume"])
    assert weights(cut) == weights(whole)
    assert (cut / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    assert predictions(cut) == predictions(whole)
    with pytest.raises(ValueError, match="is finished, with 6 steps: give more --max_steps"):
        prepared(place, cut, "--resume", **keys)
    more = {**keys, "max_steps": 7, "max_new_tokens": 5, "num_beams": 2}
    assert prepared(place, cut, "--resume", **more).trainer.model.generation_config.num_beams == 2


def test_two_processes_make_one_model(
    place: Path, tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    """With as many rows in a step, it is that of one process."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    keys = {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "eval_samples": 5, "dropout": 0.0}
    keys["sampler"] = "{token_budget: {max_tokens: 64}}"
    done = two_interpreters.run(SCRIPT, *flags(place, both, **keys))
    assert done.stdout.count("Everything is in") == 1
    seq2seq.main(flags(place, alone, **keys, gradient_accumulation_steps=2))
    found = [json.loads((out / "metrics.json").read_text()) for out in (alone, both)]
    # sums in another order, after two steps of Adam
    for name in ("eval_loss", "chrf", "bleu"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name
    assert len(predictions(both)) == 24
    assert history(both, "eval_chrf") == pytest.approx(history(alone, "eval_chrf"), rel=1e-3)


def test_noams_rate_is_that_of_the_paper(place: Path, tmp_path: Path) -> None:
    keys = {"schedule": "noam", "learning_rate": 2, "warmup_steps": 3}
    trainer = prepared(place, tmp_path, **keys).trainer
    trainer.create_optimizer_and_scheduler(6)
    rates = [
        trainer.lr_scheduler.base_lrs[0] * trainer.lr_scheduler.lr_lambdas[0](n) for n in range(6)
    ]
    wanted = [2 * 32**-0.5 * min(n**-0.5, n * 3**-1.5) for n in range(1, 7)]
    assert rates == pytest.approx(wanted)


def test_a_budget_of_tokens_is_kept_on_both_sides(place: Path, tmp_path: Path) -> None:
    keys = {"model": place / "t5", "sampler": "{token_budget: {max_tokens: 48}}"}
    trainer = prepared(place, tmp_path, **keys).trainer
    batches = list(trainer.get_train_dataloader())
    assert len(batches) > 5
    for batch in batches:
        assert max(batch["input_ids"].numel(), batch["labels"].numel()) <= 48
        assert (batch["labels"] == -100).any(1).tolist().count(True) < len(batch["labels"])


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_trained_model_goes_on_with_its_own_tokenizer(
    name: str, place: Path, tmp_path: Path, capsys: Any
) -> None:
    """And T5, whose positions are relative, reads any length."""
    keys = {"model": place / name, "task": "summarization", "prefix": "summarize: "}
    keys |= {
        "optimizer": "adafactor",
        "max_source_length": 8,
        "max_target_length": 600 if name == "t5" else 24,
    }
    seq2seq.main(
        flags(
            place,
            tmp_path,
            **keys,
            max_new_tokens=6,
            max_steps=2,
            select="rougeL",
            eval_samples=3,
            save_steps=3,
        )
    )
    said = capsys.readouterr().out
    assert "Cut        96 sources of 96 in train" in said
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "summarization"
    assert "rougeL" in json.loads((tmp_path / "metrics.json").read_text())
    saved = [(path / "tokenizer.json").read_bytes() for path in (tmp_path, place / name)]
    assert saved[0] == saved[1]
    ids = prepared(place, tmp_path / "other", **keys).rows["train"][0]["input_ids"]
    tokenizer = AutoTokenizer.from_pretrained(place / name)
    assert len(ids) == 8 and "summarize: ".startswith(tokenizer.decode(ids[:-1]))
    assert ids[-1] == tokenizer.eos_token_id, "a source that is cut ends as all do"


def test_a_models_own_way_to_generate_stays_where_nothing_is_said(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "bart", tmp_path / "bart")
    own = GenerationConfig.from_pretrained(place / "bart")
    own.update(num_beams=3, length_penalty=2.0, early_stopping=True, max_length=20, min_length=4)
    own.save_pretrained(tmp_path / "bart")
    keys = {"model": tmp_path / "bart"}
    kept = prepared(place, tmp_path / "a", **keys).trainer.model.generation_config
    assert (kept.num_beams, kept.length_penalty, kept.max_new_tokens, kept.max_length) == (
        3,
        2.0,
        24,
        None,
    )
    greedy = prepared(place, tmp_path / "b", **keys, num_beams=1).trainer.model.generation_config
    assert (greedy.num_beams, greedy.length_penalty, greedy.early_stopping) == (1, None, None)
    with pytest.raises(ValueError, match="the model's own shortest text has 4; raise it"):
        prepared(place, tmp_path / "c", **keys, max_new_tokens=3)


def test_files_that_share_pairs_or_lack_some_can_be_used_all_the_same(
    place: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = (place / "dev.jsonl").read_text() + '{"translation": {"en": "six", "de": ""}}\n'
    (tmp_path / "train.jsonl").write_text((place / "train.jsonl").read_text() + rows)
    keys = {"train": tmp_path / "train.jsonl", "incomplete_examples": "drop"}
    ready = prepared(place, tmp_path / "out", **keys, shared_examples="drop")
    assert ready.pairs["train"]["source"][:] == [row["en"] for row in pairs(120, 0)[:96]]
    said = capsys.readouterr().out
    assert "Dropped    1 rows of train without a source or a target" in said
    assert "Dropped    24 training pairs that are held out too" in said
    kept = prepared(place, tmp_path / "kept", **keys, shared_examples="keep")
    assert len(kept.pairs["train"]) == 120


def test_without_held_out_pairs_some_sources_are_held_out(place: Path, tmp_path: Path) -> None:
    given = flags(place, tmp_path, eval_fraction=0.25)
    place_of_eval = given.index("--eval")
    ready = seq2seq.prepare(
        *read_command(given[:place_of_eval] + given[place_of_eval + 2 :], Seq2SeqRecipe)
    )
    assert {part: len(rows) for part, rows in ready.rows.items()} == {
        "train": 72,
        "eval": 24,
        "test": 24,
    }
    others = [
        dataclasses.replace(ready.recipe, **keys) for keys in ({"seed": 1}, {"split_seed": 1})
    ]
    same, other = (
        seq2seq.seq2seq_pairs(recipe, print)[0]["eval"]["source"][:] for recipe in others
    )
    assert same == ready.pairs["eval"]["source"][:] != other


@pytest.mark.parametrize("kind", [MBartTokenizer, MBart50Tokenizer])
def test_generation_begins_with_the_language_that_was_trained_on(
    kind: Any, place: Path, tmp_path: Path
) -> None:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyzü"]
    tokenizer = kind(vocab=[(piece, -1.0) for piece in pieces])
    sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        max_position_embeddings=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_start_token_id=None if kind is MBartTokenizer else tokenizer.eos_token_id,
        **sides,
    )
    MBartForConditionalGeneration(config).save_pretrained(tmp_path / "mbart")
    tokenizer.save_pretrained(tmp_path / "mbart")
    keys: dict[str, Any] = {"model": tmp_path / "mbart"}
    languages = {"source_language": "fr_XX", "target_language": "de_DE"}
    trainer = prepared(place, tmp_path / "out", **keys, **languages).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    german = tokenizer.convert_tokens_to_ids("de_DE")
    own, first = trainer.model.generation_config, batch["decoder_input_ids"][:, 0].unique().tolist()
    if kind is MBartTokenizer:
        assert first == [german] == [own.decoder_start_token_id]
    else:
        assert first == [tokenizer.eos_token_id] == [own.decoder_start_token_id]
        assert batch["labels"][:, 0].unique().tolist() == [german] == [own.forced_bos_token_id]
    assert (batch["input_ids"] == tokenizer.convert_tokens_to_ids("fr_XX")).any(1).all()
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (saved.src_lang, saved.tgt_lang) == ("fr_XX", "de_DE")
    wrong = {**languages, "target_language": "de_DD"}
    with pytest.raises(ValueError, match=r"target_language: .* no 'de_DD' \(did you mean 'de_DE'"):
        prepared(place, tmp_path / "other", **keys, **wrong)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "encoder"}, "is a bert, no encoder with a decoder that writes texts"),
        ({"model": "decoder"}, "is a gpt2, no encoder with a decoder"),
        (
            {"model": "classifier"},
            "is a checkpoint of another task (BartForSequenceClassification)",
        ),
        ({"model": "bart", "max_source_length": 25}, "reads only 24 tokens"),
        ({"model": "bart", "max_target_length": 25}, "writes only 24 tokens"),
        ({"model": "bart", "hidden_size": 8}, "read only where a new model is built"),
        ({"model": "t5", "source_language": "en_XX", "target_language": "de_DE"}, "knows no lang"),
        ({"model": "./nowhere"}, "cannot be opened"),
        ({"model": "mariam"}, "did you mean 'marian'"),
        ({"model": "whisper"}, "unknown model 'whisper'"),
        (
            {"model": "bart-base"},
            "a trained model is a folder, or OWNER/NAME",
        ),
        ({"model": "qwen2_audio"}, "cannot be built from sizes"),
        ({"model_options": "{activation_functon: relu}"}, "did you mean 'activation_function'"),
        ({"attention": "unpadded"}, "must be one of sdpa, eager, flex_attention"),
        ({"model": "t5", "attention": "flash_attention_2"}, "does not support Flash Attention"),
        ({"target_language": "de"}, "give both or none"),
        ({"target_column": "translation.fr"}, "did you mean 'translation.en'"),
        ({"train": "empty.csv"}, "has no rows"),
        ({"train": "hole.csv"}, "train: row 1 has '' where its target should be"),
        ({"eval": "train.jsonl"}, "eval: 96 of 96 training pairs are in it too, the first is"),
        ({"metrics": "belu"}, "did you mean 'bleu'"),
        ({"select": "bleu", "save_steps": "none"}, "give eval_samples"),
        ({"generation": "{num_beam_groups: 2, beams: 3}"}, "unknown option of generation 'beams'"),
        ({"generation": "{num_beams: 3}"}, "has a key of its own, num_beams"),
        ({"generation": "{do_sample: true}"}, "draws texts by chance"),
        ({"generation": "{num_return_sequences: 2}", "num_beams": 2}, "each source gets one text"),
        ({"generation": '{stop_strings: ["."]}'}, "generation: the model cannot write so: "),
        (
            {"select": "rouge", "eval_samples": 2, "metrics": "rouge", "save_steps": "none"},
            "did you mean 'rougeL'",
        ),
        ({"hidden_size": 33}, "not divisible by num_attention_heads"),
        ({"vocab_size": 258}, "vocab_size: got 258, must be above 258"),
        ({"tokenizer": "./nowhere", "vocab_size": "none"}, "cannot be opened"),
        ({"schedule": "noam", "hidden_size": "none"}, "depends on the model's width"),
        ({"schedule": "noam", "schedule_options": "{d_model: 512}"}, "leave d_model out"),
    ],
)
def test_mistakes_end_before_anything_is_trained(
    keys: dict[str, Any], message: str, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("translation.en,translation.de\n")
    (tmp_path / "hole.csv").write_text("translation.en,translation.de\na,b\nc,\n")
    for name in ("train", "eval", "model"):
        for folder in (place, tmp_path):
            if name in keys and (folder / keys[name]).exists():
                keys = {**keys, name: folder / keys[name]}
    with pytest.raises(ValueError) as error:
        seq2seq.main(flags(place, tmp_path / "out", **keys))
    assert message in str(error.value)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("recipe.yaml"))


def test_evaluations_do_not_generate_with_shards_of_weights(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seq2seq_generation, "is_deepspeed_zero3_enabled", lambda: True)
    prepared(place, tmp_path / "a")
    with pytest.raises(ValueError, match="eval_samples with weights cut into shards"):
        prepared(place, tmp_path / "b", eval_samples=3)


def test_pairs_are_tokenized_once_for_all_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a tokenizer that each trains for itself; of texts or lengths that are others, anew."""
    (tmp_path / "train.jsonl").write_text((place / "train.jsonl").read_text())
    keys: dict[str, Any] = {"train": tmp_path / "train.jsonl", "prefix": "a: "}
    before = prepared(place, tmp_path / "a", **keys).rows
    made: list[int] = []
    encoded = seq2seq_texts._encoded

    def counted(tokenizer: Any, max_length: int, **texts: list[str]) -> Any:
        made.extend(map(len, texts.values()))
        return encoded(tokenizer, max_length, **texts)

    monkeypatch.setattr(seq2seq_texts, "_encoded", counted)
    again = prepared(place, tmp_path / "b", **keys).rows
    assert not made
    for part, rows in before.items():
        assert rows.cache_files and rows[:] == again[part][:]
    prepared(place, tmp_path / "c", **{**keys, "max_target_length": 5})
    assert sum(made) == 2 * (96 + 24), "the held-out pairs stand for the test pairs too"
    prepared(place, tmp_path / "d", **{**keys, "prefix": "b: "})
    assert sum(made) == 4 * (96 + 24)


def test_pairs_are_never_taken_for_those_of_another_tokenizer(place: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text((place / "train.jsonl").read_text())
    keys: dict[str, Any] = {"train": tmp_path / "train.jsonl", "max_source_length": 4}
    ready = prepared(place, tmp_path / "a", **keys)
    tokenizer, found = ready.trainer.processing_class, ready.pairs["train"]

    def made() -> Any:
        return seq2seq_texts.seq2seq_rows(ready.recipe, found, tokenizer)["input_ids"][:]

    before = made()
    assert before == ready.rows["train"]["input_ids"][:]
    tokenizer.truncation_side = "left"
    assert made() != before
    tokenizer.truncation_side, tokenizer.split_special_tokens = "right", True
    assert rows_fingerprint("x", found, tokenizer) not in (None, fingerprint(found, tokenizer))


def fingerprint(pairs: Any, tokenizer: Any) -> str | None:
    tokenizer.split_special_tokens = False
    return rows_fingerprint("x", pairs, tokenizer)


def test_pairs_of_a_folder_that_may_not_be_written_stay_in_memory(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.jsonl").write_text((place / "train.jsonl").read_text())
    monkeypatch.setattr(seq2seq_texts.os, "access", lambda *_: False)
    rows = prepared(place, tmp_path / "a", train=tmp_path / "train.jsonl", prefix="c: ").rows
    assert not rows["train"].cache_files and len(rows["train"]) == 96


@pytest.mark.parametrize("model", ["marian", "t5"])
def test_layers_computed_twice_give_the_same_weights(
    model: str, place: Path, tmp_path: Path
) -> None:
    calls: list[int] = []
    for is_twice in (False, True):
        keys = {
            "model": place / model if model == "t5" else model,
            "gradient_checkpointing": is_twice,
        }
        ready = prepared(place, tmp_path / str(is_twice), **keys, max_steps=2, eval_steps=2)
        stack = ready.trainer.model.get_encoder()
        layer = (stack.block if model == "t5" else stack.layers)[0]
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        norm = next(m for m in layer.modules() if "Norm" in type(m).__name__)
        norm.register_forward_hook(count)
        ready.trainer.train()
        seq2seq.save(ready.trainer, tmp_path / str(is_twice))
    assert calls[1] - calls[0] == 2, "once more in each step"
    assert weights(tmp_path / "False") == weights(tmp_path / "True")


def test_a_model_that_cannot_compute_layers_twice_is_told_of(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MarianMTModel, "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="gradient_checkpointing: the host's MarianMTModel has no"):
        prepared(place, tmp_path / "out", gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_attention_is_computed_as_the_recipe_has_it(name: str, place: Path, tmp_path: Path) -> None:
    found = {}
    for attention in ("sdpa", "eager"):
        keys = {"model": place / name if name == "bart" else name, "attention": attention}
        trainer = prepared(place, tmp_path / attention, **keys).trainer
        assert trainer.model.config._attn_implementation == attention
        found[attention] = trainer.evaluate()["eval_loss"]
    assert found["sdpa"] == pytest.approx(found["eager"], rel=1e-5)


def test_texts_of_some_pairs_alone(place: Path, tmp_path: Path, capsys: Any) -> None:
    """The same ones whatever the seed is, and it is told how many they are."""
    keys = {"max_steps": 1, "eval_samples": 4, "test_samples": 7, "metrics": "chrf"}
    for seed in (0, 1):
        seq2seq.main(flags(place, tmp_path / str(seed), **keys, seed=seed))
    said = capsys.readouterr().out
    assert "Generated  in each evaluation: for 4 of the 24 held-out pairs, the same" in said
    assert "Generated  at the end: for 7 of the 24 held-out pairs, the same" in said
    sources = [[row["source"] for row in predictions(tmp_path / name)] for name in "01"]
    held_out = [row["en"] for row in pairs(120, 0)[96:]]
    assert sources[0] == sources[1] == [text for text in held_out if text in sources[0]]
    assert len(sources[0]) == 7
    data = json.loads((tmp_path / "0" / "run.json").read_text())["data"]
    assert (data["eval"]["examples"], data["eval"]["pairs_generated_for"]) == (24, 7)
    assert "Pairs generated for" in (tmp_path / "0" / "README.md").read_text()


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("18 GiB were asked for")


@pytest.mark.usefixtures("reported")
def test_texts_that_cannot_be_generated_cost_nothing_else(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """All but their scores is there, and these are added without training again."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = {"eval_samples": 3, "metrics": "chrf"}
    seq2seq.main(flags(place, whole, **keys))
    with monkeypatch.context() as patched:
        opened = AutoModelForSeq2SeqLM.from_pretrained

        def without_memory(folder: Any) -> Any:
            model = opened(folder)
            patched.setattr(model, "generate", out_of_memory)
            return model

        patched.setattr(seq2seq.AutoModelForSeq2SeqLM, "from_pretrained", without_memory)
        command = read_command(flags(place, cut, **keys), Seq2SeqRecipe)
        with pytest.raises(SystemExit) as ended:
            seq2seq.carry_out_or_exit(command, seq2seq.prepare, seq2seq.run)
    words = str(ended.value.code)  # which is written to stderr, with an exit status of 1
    assert "error: the texts could not be generated (18 GiB were asked for)" in words
    assert "with --resume and a smaller --eval_batch_size (it was 8)" in words
    metrics, wanted = (json.loads((o / "metrics.json").read_text()) for o in (cut, whole))
    assert {"chrf", "chrf_low", "chrf_high"} == wanted.keys() - metrics.keys()
    assert all(metrics[name] == wanted[name] for name in ("eval_loss", "perplexity", "steps"))
    lacking = "Its texts could not be generated"
    for name in ("README.md", "report.html", "run.json"):
        assert lacking in (cut / name).read_text(), name
    assert weights(cut) == weights(whole) and history(cut, "eval_chrf").keys() == {3, 6}
    assert seeds.finished_metrics(command.recipe) is None

    def untrained(*_: Any) -> Any:
        raise AssertionError("it is trained already")

    monkeypatch.setattr(seq2seq, "train", untrained)
    seq2seq.main([*flags(place, cut, **keys, eval_batch_size=3), "--resume"])
    assert weights(cut) == weights(whole) and predictions(cut) == predictions(whole)
    metrics = json.loads((cut / "metrics.json").read_text())
    assert all(metrics[name] == wanted[name] for name in ("chrf", "chrf_low", "eval_loss"))
    assert history(cut, "eval_loss") == history(whole, "eval_loss")
    assert lacking not in (cut / "README.md").read_text()
    with pytest.raises(ValueError, match="is finished, with 6 steps"):
        prepared(place, cut, "--resume", **keys)


def test_no_process_waits_for_one_that_cannot_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, this one has its texts, and the other tells that it has none."""
    monkeypatch.setattr(PartialState(cpu=True), "num_processes", 2)
    monkeypatch.setattr(
        seq2seq_generation, "gather_object", lambda told: [*told, ([], "OutOfMemoryError: 18 GiB")]
    )
    monkeypatch.setattr(seq2seq_generation, "_own_texts", lambda *_: [(0, "eins")])
    rows = datasets.Dataset.from_dict({"input_ids": [[1], [2]]})
    with pytest.raises(RuntimeError, match="on another process: OutOfMemoryError: 18 GiB"):
        seq2seq_generation.generated(lambda: None, None, rows, 1)
    with pytest.raises(torch.OutOfMemoryError, match="18 GiB were asked for"):
        seq2seq_generation.generated(out_of_memory, None, rows, 1)


def test_what_a_change_puts_out_of_force_is_laid_aside(tmp_path: Path) -> None:
    recipe = load(Seq2SeqRecipe, "transformer-base", {"train": "x.csv"})
    assert (recipe.learning_rate, recipe.schedule_options) == (1.0, {"d_model": 512})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    other = load(Seq2SeqRecipe, tmp_path / "recipe.yaml", {"model": "a/b", "schedule": "linear"})
    assert (other.hidden_size, other.model_options, other.vocab_size) == (None, None, None)
    assert other.learning_rate == 5e-5, "noam's 1.0 is a factor"
    assert load(Seq2SeqRecipe, "dates-tiny", {"schedule": "noam"}).learning_rate == 1.0
    assert (other.source_column, other.target_column) == ("source", "target"), "other data's"
    task = load(Seq2SeqRecipe, tmp_path / "recipe.yaml", {"task": "summarization"})
    assert task.metrics == "rouge"
    assert load(Seq2SeqRecipe, "t5-summarization").optimizer_options == {
        "relative_step": False,
        "scale_parameter": True,
    }


def test_pairs_must_be_named() -> None:
    with pytest.raises(ValueError, match="train: none given"):
        seq2seq.main(["--model", "t5"])
