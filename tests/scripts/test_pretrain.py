"""The main job, end to end: what it leaves, how it goes on, and what it refuses."""

import dataclasses
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AlbertForPreTraining,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
)

from hf_tfopt.data.tokenizer import train_tokenizer
from hf_tfopt.recipe.keys import load_recipe
from hf_tfopt.recipe.masked_lm import masked_lm_corpus
from hf_tfopt.recipe.seeds import seed_recipe
from hf_tfopt.run.checkpoints import checkpoint_fault, newest_good_checkpoint
from tests.processes import TwoInterpreters
from tests.scripts.loaded import ROOT, SHORT_RUN, as_flags, load_script, script_path

SCRIPT = script_path("pretrain")

TINY = {
    **SHORT_RUN,
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "max_length": 32,
    "vocab_size": 160,
    "eval_fraction": 0.1,
    "batch_size": 4,
    "eval_steps": 3,
    "save_steps": 2,
}


# A trained model has its sizes and its tokenizer.
_SIZES = ("hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size")
NO_SIZES = dict.fromkeys(_SIZES, "none")

pretrain = load_script("pretrain")


def documents(count=80, seed=0):
    choose = random.Random(seed)
    who = ["the cat", "a dog", "the reader", "my teacher", "the river", "a machine"]
    does = ["watches", "follows", "carries", "opens", "paints", "repairs", "remembers"]
    what = ["the garden", "a letter", "the broken engine", "an old story", "the small boat"]

    def sentence():
        words = [choose.choice(part) for part in (who, does, what, does, what)]
        return f"{words[0]} {words[1]} {words[2]} and {words[3]} {words[4]}.".capitalize()

    return [" ".join(sentence() for _ in range(choose.randint(1, 5))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents()))
    return path


def words(corpus, output, **keys):
    """A command line of the tiny recipe."""
    chosen = TINY | {"corpus": corpus, "output_dir": output} | keys
    return ["bert-tiny", *as_flags(chosen)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    pretrain.main(words(corpus, folder, dropout=0.1))
    return folder


def test_it_leaves_everything_that_it_promises(finished, corpus):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert metrics["steps"] == 6 and metrics["train_seconds"] > 0
    # Both are exact functions of the same two sums; only their floats' rounding is between them.
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]), rel=1e-9)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "report.html", "curves.png"):
        assert (finished / name).stat().st_size > 0
    record = json.loads((finished / "run.json").read_text())
    logged = record["history"][0]
    assert logged["lr/matrices"] == logged["learning_rate"] and "share/embeddings" in logged
    for name in ("grad_norm/head", "attention_entropy/encoder.0", "time/step", "memory/peak"):
        assert any(name in entry for entry in record["history"])
    assert [len(found["tokens"]) > 2 for found in record["attention"]] == [True, True]
    report = (finished / "report.html").read_text()
    for name in ("curves", "gradients", "activations", "attention", "machine"):
        assert f'<h2 id="{name}">' in report and (finished / f"{name}.png").exists()
    live = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert live[0]["max_steps"] == 6 and any("ended" in line for line in live)
    recipe = load_recipe(finished / "recipe.yaml")
    assert recipe.corpus == str(corpus) and recipe.hidden_size == 32
    card = ModelCard.load(finished / "README.md")
    assert card.data.eval_results[0].metric_value == metrics["perplexity"]
    shown = card.text + str(card.data) + (finished / "report.html").read_text()
    assert str(corpus.parent) not in shown and str(finished.parent) not in shown
    assert not list(finished.glob("training_args.bin")), "a pickle with the machine's paths"


def test_a_curriculum_a_sampler_and_a_guard(corpus, tmp_path):
    keys = {
        "sampler": "{token_budget: {max_tokens: 96}}",
        "callbacks": "{length_curriculum: {start: 8, num_steps: 4}, stability_guard: {}}",
        "packing": "false",
    }
    folder = tmp_path / "run"
    metrics = pretrain.main(words(corpus, folder, **keys))
    assert metrics["steps"] == 6 and "tokens_per_second" not in metrics
    history = json.loads((folder / "run.json").read_text())["history"]
    assert [entry["length"] for entry in history if "length" in entry] == [8, 8, 16, 24, 32, 32]
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    shutil.rmtree(resumed / "checkpoint-6")
    (resumed / "metrics.json").unlink()
    again = pretrain.main([*words(corpus, resumed, **keys), "--resume"])
    assert again["resumed_from_step"] == 4
    assert_equal_weights(folder, resumed)


def test_the_examples_are_what_the_saved_model_says(finished, corpus):
    record = json.loads((finished / "run.json").read_text())
    assert len(record["examples"]) >= 4
    model = AutoModelForMaskedLM.from_pretrained(finished).eval()
    tokenizer = pretrain.masked_lm_tokenizer(None, None, finished)
    text = corpus.read_text()
    for example in record["examples"]:
        before, word, after = (example[part] for part in ("before", "word", "after"))
        assert f"{before}{word}{after}" in text
        masked = tokenizer(f"{before}{tokenizer.mask_token}{after}", return_tensors="pt")
        position = masked["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            probabilities = model(**masked).logits[0, position].softmax(-1)
        for guess, probability in example["guesses"]:
            found = probabilities[tokenizer.convert_tokens_to_ids(guess)].item()
            assert found == pytest.approx(probability, abs=1e-5)  # fp32, with and without a mask


def test_a_process_without_hf_tfopt_opens_the_model(finished, tmp_path):
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'hf_tfopt': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from transformers import pipeline\n"
        "fill = pipeline('fill-mask', model=sys.argv[1])\n"
        "assert len(fill(f'the cat {fill.tokenizer.mask_token} a letter.')) == 5\n"
        "print(type(fill.model).__name__)\n"
    )
    command = [sys.executable, "-c", code, str(finished)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.split()[-1] == "BertForMaskedLM"


def torchrun(_, *command):
    """What `two_interpreters` stands for elsewhere."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    subprocess.run(
        [sys.executable, *launch, *command],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.invariant
@pytest.mark.parametrize(
    ("objective", "start"), [("mlm", torchrun), ("mlm+nsp", TwoInterpreters.run)]
)
def test_two_processes_give_what_one_with_twice_the_batch_gives(
    objective, start, corpus, tmp_path, two_interpreters
):
    # Muon may orthogonalise in bf16, which tells sums apart
    keys = {"optimizer": "adamw", "objective": objective}
    one = pretrain.main(words(corpus, tmp_path / "one", batch_size=4, **keys))
    start(two_interpreters, SCRIPT, *words(corpus, tmp_path / "two", batch_size=2, **keys))
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["steps"] == one["steps"]
    # fp32 sums in another order, through six steps of training
    for name in (name for name in one if name.startswith("eval_")):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[name], rtol=1e-4, atol=1e-5)


@pytest.mark.invariant
@pytest.mark.parametrize("torn", [None, "model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(torn, finished, tmp_path, corpus, capsys):
    """As after a kill, the newest checkpoint may be torn; with dropout the random state counts."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    for name in ("metrics.json", "model.safetensors", "run.json", "README.md"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint-6")
    if torn:
        shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-5")
        state = folder / "checkpoint-5" / "trainer_state.json"
        state.write_text(state.read_text().replace('"global_step": 4', '"global_step": 5'))
        file = folder / "checkpoint-5" / torn
        file.write_bytes(file.read_bytes()[:-20])
    metrics = pretrain.main([*words(corpus, folder, dropout=0.1), "--resume"])
    assert metrics["resumed_from_step"] == 4
    assert_equal_weights(folder, finished)
    before = json.loads((finished / "metrics.json").read_text())
    assert metrics["eval_loss"] == before["eval_loss"]
    said = capsys.readouterr().out
    assert "Going on from checkpoint-4" in said
    assert ("checkpoint-5" in said and f"{torn} is torn" in said) == bool(torn)


def test_a_finished_run_is_not_begun_again_but_can_be_made_longer(finished, tmp_path, corpus):
    folder = tmp_path / "longer"
    shutil.copytree(finished, folder)
    with pytest.raises(ValueError, match=r"finished.*more --max_steps"):
        pretrain.main([*words(corpus, folder, dropout=0.1), "--resume"])
    recipe = str(folder / "recipe.yaml")
    longer = [recipe, "--output_dir", str(folder), "--max_steps", "8", "--resume"]
    metrics = pretrain.main(longer)
    assert (metrics["steps"], metrics["resumed_from_step"]) == (8, 6)
    steps = [entry["step"] for entry in json.loads((folder / "run.json").read_text())["history"]]
    assert steps[0] == 1 and steps[-1] == 8, "the history goes on"


def test_resume_without_a_checkpoint_begins(corpus, tmp_path, capsys):
    metrics = pretrain.main([*words(corpus, tmp_path / "new", max_steps=1), "--resume"])
    assert metrics["steps"] == 1
    assert "No checkpoint yet" in capsys.readouterr().out


def test_what_is_held_out_is_the_same_for_all_seeds(corpus):
    recipe = load_recipe("bert-tiny", {"corpus": str(corpus), "eval_fraction": "0.1"})
    alone = dataclasses.replace(recipe, split_seed=1)
    runs = [recipe, *(seed_recipe(recipe, seed) for seed in (1, 2)), alone]
    whole, first, second, other = (masked_lm_corpus(run)["eval"]["text"][:] for run in runs)
    assert whole == first == second != other


def test_a_corpus_with_a_held_out_split_leaves_no_fraction_in_the_recipe(tmp_path, capsys):
    texts = documents()
    (tmp_path / "train.txt").write_text("\n\n".join(texts[10:]))
    (tmp_path / "dev.txt").write_text("\n\n".join(texts[:10]))
    out = tmp_path / "out"
    pretrain.main(words(tmp_path / "*.txt", out, max_steps=1))
    told = capsys.readouterr().out
    assert "10 more documents are held out, its own split" in told
    assert "untrained: bert is an architecture" in told and "google-bert/" in told
    written = (out / "recipe.yaml").read_text()
    assert "eval_fraction: null  #" in written and "split_seed: null  #" in written
    again = [str(out / "recipe.yaml"), "--resume", "--max_steps=2"]
    assert pretrain.main(again)["steps"] == 2
    assert "untrained" not in capsys.readouterr().out


def test_a_trained_model_is_gone_on_from(finished, corpus, tmp_path):
    still = {"learning_rate": 1e-9, "adamw_learning_rate": 1e-9, "max_steps": 1}
    pretrain.main(words(corpus, tmp_path / "on", model=finished, **NO_SIZES, **still))
    for name, tensor in weights(finished).items():
        torch.testing.assert_close(tensor, weights(tmp_path / "on")[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "roberta", "masking_unit": "word"},
        {"model": "modernbert", "attention": "sdpa", "masking_unit": "span"},
        {
            **{"packing": "false", "attention": "eager", "optimizer": "adamw"},
            **{"schedule": "cosine", "initialization": "random"},
        },
    ],
)
def test_other_recipes_train_too(keys, corpus, tmp_path):
    metrics = pretrain.main(words(corpus, tmp_path / "run", **keys, max_steps=2))
    if keys.get("initialization") == "random":  # after two batches: a guess among 160 words
        assert math.log(160) - 1.5 < metrics["eval_loss"] < math.log(160) + 1
    else:  # some words are frequent
        assert 1 < metrics["eval_loss"] < math.log(160) - 1


@pytest.fixture(scope="module")
def paired(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "paired"
    pretrain.main(words(corpus, folder, objective="mlm+nsp", dropout=0.1))
    return folder


class TestPairs:
    """Words and pairs of texts."""

    def test_both_terms_are_told(self, paired):
        metrics = json.loads((paired / "metrics.json").read_text())
        assert metrics["eval_loss"] == pytest.approx(
            metrics["eval_cross_entropy"] + metrics["eval_next_sentence"], rel=1e-9
        )
        perplexity = math.exp(metrics["eval_cross_entropy"])
        assert metrics["perplexity"] == pytest.approx(perplexity, rel=1e-9)
        assert 0 <= metrics["eval_next_sentence_accuracy"] <= 1
        history = json.loads((paired / "run.json").read_text())["history"]
        assert {"cross_entropy", "next_sentence"} <= set(history[0])
        card = ModelCard.load(paired / "README.md")
        results = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert results["loss"] == metrics["eval_cross_entropy"]
        report = (paired / "report.html").read_text()
        for text in (card.text, report):
            assert "mlm+nsp" in text and "Held-out pairs told rightly" in text
        assert "next sentence prediction" in card.text

    def test_the_model_opens_with_and_without_the_head_for_pairs(self, paired):
        both, report = AutoModelForPreTraining.from_pretrained(paired, output_loading_info=True)
        assert type(both) is BertForPreTraining
        assert not report["missing_keys"] and not report["unexpected_keys"]
        masked, report = AutoModelForMaskedLM.from_pretrained(paired, output_loading_info=True)
        assert not report["missing_keys"]
        ids = torch.tensor([[2, 9, 10, 3, 11, 3]])
        types = torch.tensor([[0, 0, 0, 0, 1, 1]])
        with torch.no_grad():
            one, other = (m.eval()(ids, token_type_ids=types) for m in (both, masked))
        assert torch.equal(one.prediction_logits, other.logits)
        assert one.seq_relationship_logits.shape == (1, 2)

    @pytest.mark.invariant
    def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(self, paired, tmp_path, corpus):
        folder = tmp_path / "stopped"
        shutil.copytree(paired, folder)
        for name in ("metrics.json", "model.safetensors", "run.json", "README.md"):
            (folder / name).unlink()
        shutil.rmtree(folder / "checkpoint-6")
        arguments = words(corpus, folder, objective="mlm+nsp", dropout=0.1)
        assert pretrain.main([*arguments, "--resume"])["resumed_from_step"] == 4
        assert_equal_weights(folder, paired)
        with pytest.raises(ValueError, match=r"objective: was mlm\+nsp, now mlm\+sop"):
            pretrain.main([*words(corpus, folder, objective="mlm+sop", dropout=0.1), "--resume"])

    @pytest.mark.parametrize("attention", ["unpadded", "sdpa"])
    def test_albert_learns_the_order(self, attention, corpus, tmp_path):
        keys = {"model": "albert", "objective": "mlm+sop", "attention": attention, "max_steps": 2}
        metrics = pretrain.main(words(corpus, tmp_path / "run", **keys, initialization="random"))
        # after two steps: a guess between two, and one among 160 words
        assert abs(metrics["eval_sentence_order"] - math.log(2)) < 0.5
        assert abs(metrics["eval_cross_entropy"] - math.log(160)) < 1
        model = AutoModelForPreTraining.from_pretrained(tmp_path / "run")
        assert type(model) is AlbertForPreTraining

    def test_a_masked_model_is_gone_on_from_with_pairs(self, finished, corpus, tmp_path):
        keys = {"model": finished, **NO_SIZES, "objective": "mlm+nsp", "max_steps": 1}
        metrics = pretrain.main(words(corpus, tmp_path / "on", **keys))
        assert "eval_next_sentence" in metrics

    def test_a_model_without_a_head_for_pairs_before_the_corpus_is_read(self, tmp_path):
        for model in ("roberta", "electra", "distilbert"):
            with pytest.raises(ValueError, match=f"objective.*'{model}' has no head.*albert, bert"):
                keys = {"model": model, "objective": "mlm+nsp", "intermediate_size": "none"}
                pretrain.main(words(tmp_path / "nothing.txt", tmp_path / "output", **keys))

    def test_one_held_out_document(self, tmp_path):
        (tmp_path / "two.txt").write_text("One is here. It is. So it is.\n\nTwo is there. Oh yes.")
        with pytest.raises(ValueError, match="1 of the documents has text"):
            pretrain.main(words(tmp_path / "two.txt", tmp_path / "out", objective="mlm+nsp"))


class TestBadInput:
    """Each stops before the first step, and leaves the output folder as it was."""

    @pytest.fixture
    def refused(self, corpus, tmp_path):
        def check(*told, **keys):
            output = tmp_path / "output"
            with pytest.raises((ValueError, OSError)) as refusal:
                pretrain.main(words(keys.pop("corpus", corpus), output, **keys))
            for part in told:
                assert part in str(refusal.value)
            assert not output.exists() or not any(output.iterdir())

        return check

    def test_an_empty_corpus(self, refused, tmp_path):
        (tmp_path / "empty.txt").touch()
        refused("empty", corpus=tmp_path / "empty.txt")

    def test_a_corpus_that_is_not_there(self, refused, tmp_path):
        refused("nothing.txt", corpus=tmp_path / "nothing.txt")

    def test_a_binary_corpus(self, refused, tmp_path):
        (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 8)
        refused("binary.txt", corpus=tmp_path / "binary.txt")

    def test_a_corpus_of_one_document_of_one_word(self, refused, tmp_path):
        (tmp_path / "word.txt").write_text("word")
        refused("one document", corpus=tmp_path / "word.txt")

    def test_a_corpus_of_documents_of_one_word(self, refused, tmp_path):
        (tmp_path / "words.txt").write_text("\n\n".join("abcdefghij"))
        refused("no example has a token to predict", corpus=tmp_path / "words.txt")

    def test_a_tokenizer_without_a_mask(self, refused, tmp_path):
        tokenizer = train_tokenizer(documents(), 160)
        tokenizer.mask_token = None
        tokenizer.save_pretrained(tmp_path / "maskless")
        config = json.loads((tmp_path / "maskless" / "tokenizer_config.json").read_text())
        config["mask_token"] = None
        (tmp_path / "maskless" / "tokenizer_config.json").write_text(json.dumps(config))
        refused("no mask token", tokenizer=tmp_path / "maskless", vocab_size="none")

    def test_a_vocabulary_larger_than_the_models(self, refused, tmp_path):
        sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
        small = BertConfig(vocab_size=50, num_hidden_layers=1, max_position_embeddings=32, **sizes)
        BertForMaskedLM(small).save_pretrained(tmp_path / "small")
        train_tokenizer(documents(), 160).save_pretrained(tmp_path / "tokenizer")
        model = {"model": tmp_path / "small", "tokenizer": tmp_path / "tokenizer"}
        refused("only 50", **NO_SIZES, **model)

    def test_an_architecture_that_nobody_has(self, refused):
        refused("'brt'", "did you mean 'bert'?", model="brt")

    def test_a_size_that_the_architecture_has_not(self, refused):
        refused("intermediate_size", "distilbert", model="distilbert")

    def test_examples_beyond_the_positions(self, refused):
        refused("max_length", "600", "512", max_length=600, max_position_embeddings="none")

    def test_a_model_that_is_not_there(self, refused, tmp_path):
        refused("model", "cannot be opened", model=tmp_path / "nowhere" / "x", **NO_SIZES)

    def test_a_tracker_that_nobody_has(self, refused):
        refused("did you mean 'tensorboard'?", report_to="tensorbord")

    def test_callbacks_that_cannot_be(self, refused):
        refused("did you mean 'zclip'?", callbacks="{zclipp: {}}")
        refused("no option 'zz'", callbacks="{zclip: {zz: 1}}")
        refused("callbacks: zclip: got 3", callbacks="{zclip: 3}")
        refused("callbacks: clip_by_value", callbacks="{clip_by_value: {}}")

    def test_samplers_that_cannot_be(self, refused):
        refused("did you mean 'token_budget'?", sampler="{token_budgets: {}}")
        refused("one name and its options", sampler="{difficulty: {}, token_budget: {}}")
        refused("sampler: token_budget", sampler="{token_budget: {}}")
        budget = {"sampler": "{token_budget: {max_tokens: 64}}"}
        refused("give max_steps", **budget, max_steps="none", num_train_epochs=1)

    def test_a_folder_that_holds_something(self, corpus, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="not empty"):
            pretrain.main(words(corpus, tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_folder_that_cannot_be_written(self, corpus, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="cannot be written"):
            pretrain.main(words(corpus, tmp_path / "file" / "below"))

    def test_another_recipe_on_resume(self, finished, corpus):
        with pytest.raises(ValueError, match="seed: was 0, now 1"):
            pretrain.main([*words(corpus, finished, dropout=0.1, seed=1), "--resume"])


def test_a_mistake_at_the_command_line_is_one_line_and_no_traceback():
    run = subprocess.run(
        [sys.executable, SCRIPT, "bert-mni"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "did you mean 'bert-mini'?" in run.stderr and "Traceback" not in run.stderr


class TestCheckpoints:
    @pytest.fixture
    def checkpoint(self, finished, tmp_path):
        shutil.copytree(finished / "checkpoint-6", tmp_path / "checkpoint-6")
        return tmp_path / "checkpoint-6"

    def test_what_the_host_saves_is_whole(self, checkpoint):
        assert checkpoint_fault(checkpoint) == ""
        assert newest_good_checkpoint(checkpoint.parent) == (checkpoint, {})
        assert newest_good_checkpoint(checkpoint.parent, before_step=6) == (None, {})

    @pytest.mark.parametrize(
        "name",
        [
            "model.safetensors",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "trainer_state.json",
        ],
    )
    @pytest.mark.parametrize("part", ["missing", "empty", "first half", "all but a byte"])
    def test_every_torn_file_is_noticed(self, name, part, checkpoint):
        file = checkpoint / name
        content = file.read_bytes()
        kept = {"empty": 0, "first half": len(content) // 2, "all but a byte": len(content) - 3}
        file.unlink() if part == "missing" else file.write_bytes(content[: kept[part]])
        fault = checkpoint_fault(checkpoint)
        assert name.partition(".")[0] in fault
        assert ("missing" in fault) == (part == "missing")

    def test_a_pickle_that_would_run_code_is_refused(self, checkpoint):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (checkpoint / "ran",))

        torch.save({"state": Evil()}, checkpoint / "optimizer.pt")
        assert "optimizer.pt" in checkpoint_fault(checkpoint)
        assert not (checkpoint / "ran").exists()

    def test_a_state_of_another_step_and_stray_folders_are_passed_over(self, checkpoint):
        shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-9"))
        checkpoint.with_name("checkpoint-99").mkdir()
        checkpoint.with_name("checkpoint-mine").mkdir()
        found, passed_over = newest_good_checkpoint(checkpoint.parent)
        assert found == checkpoint
        assert [*passed_over] == ["checkpoint-99", "checkpoint-9"]
        assert "another step" in passed_over["checkpoint-9"]
