"""Training a causal model, end to end: what it leaves, how it goes on, and what it refuses."""

import json
import math
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, prepare_model_for_kbit_training
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import hf_tfopt as tfo
from hf_tfopt.data.byte_tokenizer import train_byte_tokenizer
from hf_tfopt.data.tokenizer import cut
from hf_tfopt.recipe.causal_lm import causal_lm_model, causal_lm_texts
from hf_tfopt.recipe.causal_lm_keys import CausalLMRecipe
from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.loading import load
from hf_tfopt.recipe.model_parts import new_config
from hf_tfopt.recipe.seeds import seed_recipe
from tests.processes import TwoInterpreters
from tests.scripts.loaded import SHORT_RUN, as_flags, load_script, save_models, script_path

MAMBA = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 300}
SCRIPT = script_path("finetune_causal_lm")
# peft 0.21 asks the host under a name that 5.23 calls another
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


script = load_script("finetune_causal_lm")


def documents(num: int = 60) -> list[str]:
    choose = random.Random(0)
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "quietly"]
    return [" ".join(choose.choices(words, k=choose.randint(12, 40))) + "." for _ in range(num)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, answers, chats, and tiny trained models, in one folder."""
    folder = tmp_path_factory.mktemp("causal")
    (folder / "texts.txt").write_text("\n\n".join(documents()))
    colours = ["red", "green", "blue"]
    pairs = [
        {"question": f"Colour of {n}?", "answer": f" It is {colours[n % 3]}."} for n in range(40)
    ]
    (folder / "faq.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    chats = [
        [
            {"role": "user", "content": pair["question"]},
            {"role": "assistant", "content": pair["answer"]},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        for pair in pairs
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"talk": chat}) for chat in chats))
    tokenizer = train_byte_tokenizer(documents(), 300, model_max_length=80)
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    # widths of 64: the block of a 4-bit weight
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    llama = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
        **sizes,
    )
    gpt2 = GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=80, **sizes)
    models = {
        "llama": LlamaForCausalLM(llama),
        "gpt": GPT2LMHeadModel(gpt2),
        "classifier": LlamaForSequenceClassification(llama),
        "tied-classifier": GPT2ForSequenceClassification(gpt2),
        "encoder": BertModel(
            BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **sizes)
        ),
    }
    save_models(models, tokenizer, folder)
    return folder


def flags(place: Path, out: Path, **keys: Any) -> list[str]:
    given = {
        **SHORT_RUN,
        "model": place / "llama",
        "corpus": place / "texts.txt",
        "eval_fraction": 0.15,
        "max_length": 48,
        "batch_size": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "monitors": "none",
        "learning_rate": 3e-3,
        "output_dir": out,
        **keys,
    }
    return as_flags(given)


def prepared(place: Path, out: Path, *more: str, **keys: Any) -> Any:
    return script.prepare(*read_command([*flags(place, out, **keys), *more], CausalLMRecipe))


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval()(torch.randint(1, 290, (2, 20))).logits


def assert_no_path(folder: Path, *paths: Path) -> None:
    """Of what would be published: not the checkpoints, nor the recipe, which is the user's own."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".md", ".jsonl", ".html"):
            text = file.read_text()
            assert not any(str(path) in text for path in paths), file.name


class TestANewModel:
    @pytest.mark.usefixtures("reported")
    def test_everything_is_left_behind(self, place: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        keys = {"model": "gpt2", "vocab_size": 300, "max_position_embeddings": 48, **sizes}
        metrics = script.main(flags(place, out, **keys, optimizer="adamw"))
        told = capsys.readouterr().out
        assert "untrained: gpt2 is an architecture" in told and "openai-community/gpt2" in told
        model = AutoModelForCausalLM.from_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert model.config.vocab_size == len(tokenizer) <= 300
        assert model.config.eos_token_id == tokenizer.eos_token_id == 0
        assert json.loads((out / "metrics.json").read_text()) == metrics
        assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
        assert metrics["trained_parameters"] == metrics["parameters"]
        samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        assert samples and all(sample["prompt"] and sample["reference"] for sample in samples)
        assert {"README.md", "report.html", "curves.png"} <= {path.name for path in out.iterdir()}
        assert load(CausalLMRecipe, out / "recipe.yaml").max_steps == 6
        assert not (out / "training_args.bin").exists()
        assert_no_path(out, place, tmp_path)

    @pytest.mark.parametrize("name", ["opt", "gpt2", "bart"])
    def test_dropout_is_of_all_but_whole_layers(self, name: str) -> None:
        found = new_config(name, [name], {}, 0.3).to_dict()
        plain = AutoConfig.for_model(name).to_dict()
        drops = {key for key, value in plain.items() if "drop" in key and value is not None}
        changed = {key for key in drops if found[key] == 0.3}
        assert len(changed) >= 2
        left = {"layerdrop", "encoder_layerdrop", "decoder_layerdrop", "classifier_dropout"}
        assert drops - changed <= left | {"summary_first_dropout"}
        assert not left & changed

    def test_llama_with_fewer_heads_than_its_own(self, place: Path, tmp_path: Path) -> None:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        keys = {"model": "qwen2", "vocab_size": 300, "intermediate_size": 48, **sizes}
        trainer = prepared(place, tmp_path / "out", **keys).trainer
        assert trainer.model.config.num_key_value_heads == 2

    def test_the_perplexity_is_that_of_every_token_behind_the_first_of_its_document(
        self, place: Path, tmp_path: Path
    ) -> None:
        """Packed rows, batches of any size: as each document by itself, with the host's loss."""
        ready = prepared(place, tmp_path / "out")
        found = ready.trainer.evaluate()["eval_loss"]
        tokenizer, total, count = ready.trainer.processing_class, 0.0, 0
        model = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
        for text in ready.texts["eval"]["text"]:
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            for start, end in cut(len(ids), 48):
                window = ids[start:end]
                with torch.no_grad():
                    loss = model(torch.tensor([window]), labels=torch.tensor([window])).loss
                total, count = total + float(loss) * (len(window) - 1), count + len(window) - 1
        # fp32 sums in another order
        assert found == pytest.approx(total / count, rel=1e-5)


def resumed(whole: Path, cut: Path, arguments: list[str]) -> None:
    """The finished run, its end lost, and gone on with."""
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-6")
    for name in ("metrics.json", "run.json", "model.safetensors", "adapter_model.safetensors"):
        (cut / name).unlink(missing_ok=True)
    assert script.main([*arguments, "--resume"])["resumed_from_step"] == 4


@pytest.fixture(scope="module")
def adapted(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has trained an adapter, with dropout."""
    out = tmp_path_factory.mktemp("adapted") / "out"
    script.main(flags(place, out, lora_rank=4, lora_dropout=0.2))
    return out


class TestAnAdapter:
    def test_it_alone_is_trained_and_saved(self, adapted: Path, place: Path) -> None:
        metrics = json.loads((adapted / "metrics.json").read_text())
        state = load_file(adapted / "adapter_model.safetensors")
        assert metrics["trained_parameters"] == sum(t.numel() for t in state.values())
        # all linear layers but the head: 7 in each of 2 layers, A and B of each
        assert len(state) == 2 * 7 * 2 and not any("lm_head" in name for name in state)
        for folder in (adapted, adapted / "checkpoint-6"):
            assert not (folder / "model.safetensors").exists()
        config = json.loads((adapted / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (4, 16)
        assert config["base_model_name_or_path"] is None, "a path of this machine"
        assert_no_path(adapted, place, adapted.parent)

    def test_the_folder_opens_with_peft_alone(self, adapted: Path, place: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(place / "llama")
        before = logits(base)
        assert not torch.equal(logits(PeftModel.from_pretrained(base, adapted)), before)

    @pytest.mark.invariant
    def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
        self, adapted: Path, place: Path, tmp_path: Path
    ) -> None:
        cut = tmp_path / "cut"
        resumed(adapted, cut, flags(place, cut, lora_rank=4, lora_dropout=0.2))
        name = "adapter_model.safetensors"
        assert (cut / name).read_bytes() == (adapted / name).read_bytes()

    @pytest.mark.parametrize("model", ["llama", "gpt"])
    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_merged_into_a_plain_model(
        self, model: str, quantization: str, place: Path, tmp_path: Path
    ) -> None:
        keys = {"model": place / model, "quantization": quantization, "merge_adapter": True}
        out = tmp_path / "out"
        ready = prepared(place, out, lora_rank=4, lora_dropout=0, max_steps=3, **keys)
        found: dict[str, Any] = {}
        whole = script.merged

        def watched(recipe: Any, trained: Any) -> Any:
            trained.get_base_model().set_attn_implementation("sdpa")
            found["logits"] = logits(trained)
            return whole(recipe, trained)

        script.merged = watched
        try:
            script.run(ready)
        finally:
            script.merged = whole
        plain, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"]
        assert not hasattr(plain.config, "quantization_config")
        # 4-bit layers compute in bfloat16, of 8 bits
        scale = found["logits"].abs().max()
        tolerance = 1e-5 if quantization == "none" else 0.02
        assert (logits(plain) - found["logits"]).abs().max() <= tolerance * scale
        assert not (out / "adapter_config.json").exists()

    def test_the_best_checkpoint_is_kept(self, place: Path, tmp_path: Path) -> None:
        """At a rate at which it soon gets worse."""
        out = tmp_path / "out"
        keys = {"learning_rate": 5.0, "guard": "off", "schedule": "constant", "warmup_steps": 0}
        metrics = script.main(
            flags(place, out, lora_rank=4, select="loss", save_steps="none", **keys)
        )
        state = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())
        losses = {e["step"]: e["eval_loss"] for e in state["log_history"] if "eval_loss" in e}
        assert min(losses, key=losses.__getitem__) != 6, losses
        assert metrics["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-6)
        name = "adapter_model.safetensors"
        best = Path(state["best_model_checkpoint"])
        assert (out / name).read_bytes() == (best / name).read_bytes()

    def test_of_a_model_that_knows_only_eager_attention(self, place: Path, tmp_path: Path) -> None:
        """Prompts are cut at what the rows were cut at, or the model's positions."""
        config = Gemma2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=30,
        )
        Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
        AutoTokenizer.from_pretrained(place / "gpt").save_pretrained(tmp_path / "gemma")
        keys = {"model": tmp_path / "gemma", "attention": "eager", "packing": False, "max_steps": 1}
        out = tmp_path / "out"
        script.main(flags(place, out, lora_rank=2, max_length=24, **keys))
        assert (out / "samples.jsonl").read_text() and (out / "metrics.json").exists()
        assert not (out / "training_args.bin").exists()

    def test_layers_computed_twice_give_the_same_weights(self, place: Path, tmp_path: Path) -> None:
        runs = [tmp_path / "kept", tmp_path / "twice"]
        for out in runs:
            is_twice = out.name == "twice"
            keys = {"lora_rank": 4, "max_steps": 2, "gradient_checkpointing": is_twice}
            script.main(flags(place, out, **keys, lora_targets="q_proj, down_proj"))
        one, other = (load_file(out / "adapter_model.safetensors") for out in runs)
        assert len(one) == 2 * 2 * 2
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)


def quantized(place: Path) -> Any:
    recipe = CausalLMRecipe(
        model=str(place / "llama"), lora_rank=4, lora_dropout=0, quantization="nf4", max_length=48
    )
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    return causal_lm_model(recipe, tokenizer, torch.device("cpu"))


class TestFourBits:
    def test_everything_else_is_as_peft_would_prepare_it(self, place: Path) -> None:
        model = quantized(place)
        before = {name: p.dtype for name, p in model.named_parameters() if "lora" not in name}
        assert {torch.uint8, torch.float32} == {*before.values()}
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert before == {n: p.dtype for n, p in model.named_parameters() if "lora" not in n}

    def test_evaluations_leave_the_gradients_alone(self, place: Path) -> None:
        """On CPUs with bfloat16 an evaluation packs weights so that nothing below them learns."""
        model = quantized(place)
        ids = torch.arange(40).reshape(2, 20)

        def gradients() -> list[torch.Tensor]:
            model.zero_grad()
            model.train()(input_ids=ids, labels=ids).loss.backward()
            return [p.grad.clone() for p in model.parameters() if p.grad is not None]

        before = gradients()
        logits(model)
        assert len(before) == 2 * 7 * 2
        assert all(map(torch.equal, before, gradients()))

    @pytest.mark.invariant
    def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
        self, place: Path, tmp_path: Path
    ) -> None:
        keys = {"lora_rank": 4, "quantization": "nf4"}
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        script.main(flags(place, whole, **keys))
        resumed(whole, cut, flags(place, cut, **keys))
        files = [(out / "adapter_model.safetensors").read_bytes() for out in (whole, cut)]
        assert files[0] == files[1]


QUESTIONS = {"prompt_column": "question", "completion_column": "answer"}


class TestInstructions:
    def learned(self, ready: Any) -> list[str]:
        """What the labels of the first packed row spell, document by document."""
        tokenizer, row = ready.trainer.processing_class, ready.rows["train"].rows[0]
        texts, part = [], []
        for label, following in zip(row["labels"], [*row["labels"][1:], -100], strict=True):
            part += [label] if label != -100 else []
            if part and following == -100:
                texts.append(tokenizer.decode(part))
                part = []
        return texts

    @pytest.mark.parametrize("packing", [True, False])
    def test_completions_alone_are_learned(
        self, packing: bool, place: Path, tmp_path: Path
    ) -> None:
        keys = {**QUESTIONS, "corpus": place / "faq.jsonl", "packing": packing}
        ready = prepared(place, tmp_path / "out", **keys, max_length=80)
        texts = self.learned(ready)
        assert all(text.startswith(" It is ") for text in texts)
        assert all(text.endswith(".<|endoftext|>") for text in texts)
        assert (len(texts) > 1) == packing
        assert script.run(ready)["steps"] == 6

    def test_answers_of_chats_alone_are_learned(self, place: Path, tmp_path: Path) -> None:
        keys = {"messages_column": "talk", "corpus": place / "chats.jsonl", "max_length": 80}
        ready = prepared(place, tmp_path / "out", **keys, packing=False)
        first, second = self.learned(ready)
        assert first.startswith(" It is ") and first.endswith(".<|endoftext|>")
        assert second == "Yes.<|endoftext|>"
        script.run(ready)
        sample = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
        assert sample["prompt"].endswith("<user>Sure?<assistant>")
        assert sample["reference"] == "Yes."

    def test_what_does_not_fit_is_told(self, place: Path, tmp_path: Path, capsys: Any) -> None:
        rows = [
            {"question": f"{n}" + "x" * 400 * (n % 2), "answer": "yes, and more of it" * 9}
            for n in range(20)
        ]
        (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
        keys = {**QUESTIONS, "corpus": tmp_path / "long.jsonl", "max_steps": 1}
        ready = prepared(place, tmp_path / "out", **keys, eval_fraction=0.5)
        parts = ready.rows.values()
        assert [sum(counts) for counts in zip(*(part[1:] for part in parts), strict=True)] == [
            10,  # cut
            10,  # left out
        ]
        script.run(ready)
        told = capsys.readouterr().out
        assert "are cut at max_length 48" in told and "untrained" not in told


def test_samples_that_cannot_be_written_do_not_cost_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """On the device of the training, here one that computes nothing."""
    out = tmp_path / "out"
    ready = prepared(place, out, max_steps=1)
    metrics = script.measured(ready)
    monkeypatch.setattr(type(ready.trainer.args), "device", torch.device("meta"))
    assert script.tell(ready, metrics) == []
    assert "Samples    none: " in capsys.readouterr().out
    assert (out / "README.md").exists() and (out / "metrics.json").exists()


class TestWhatIsHeldOut:
    def held_out(self, place: Path, **keys: Any) -> list[str]:
        given = {"model": str(place / "llama"), "corpus": str(place / "texts.txt"), **keys}
        return causal_lm_texts(CausalLMRecipe(**given))["eval"]["text"][:]

    def test_it_is_the_same_for_all_seeds(self, place: Path) -> None:
        recipe = CausalLMRecipe(model=str(place / "llama"), corpus=str(place / "texts.txt"))
        runs = [seed_recipe(recipe, seed) for seed in (1, 2)]
        first, second = (causal_lm_texts(run)["eval"]["text"][:] for run in runs)
        assert first == second == self.held_out(place)
        assert self.held_out(place, seed=7) == first

    def test_it_is_what_the_seed_of_the_split_draws(self, place: Path) -> None:
        drawn = [
            tfo.load_corpus(place / "texts.txt", seed=seed)["eval"]["text"][:] for seed in (3, 4)
        ]
        assert [self.held_out(place, split_seed=seed) for seed in (3, 4)] == drawn
        assert drawn[0] != drawn[1]

    def test_by_a_corpus_of_its_own_split_is_told(
        self, place: Path, tmp_path: Path, capsys: Any
    ) -> None:
        """By all recipes that are left, and in the terminal; and seeds go on from there."""
        corpus, out = tmp_path / "corpus", tmp_path / "out"
        corpus.mkdir()
        (corpus / "train.txt").write_text("\n\n".join(documents(20)))
        (corpus / "validation.txt").write_text("\n\n".join(documents(24)[20:]))
        line = [*flags(place, out, corpus=corpus, max_steps=1), "--seeds", "1", "2"]
        script.main(line)
        assert "4 more documents are held out, its own split" in capsys.readouterr().out
        for folder in (out, out / "seed-1", out / "seed-2"):
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
            assert (recipe["eval_fraction"], recipe["split_seed"]) == (None, None), folder
        assert "others for each seed" not in (out / "README.md").read_text()
        shutil.rmtree(out / "seed-2")
        script.main([*line, "--resume"])
        sample = prepared(place, tmp_path / "sample", corpus=corpus, max_documents=16)
        recipe = yaml.safe_load((sample.folder / "recipe.yaml").read_text())
        assert (recipe["eval_fraction"], recipe["split_seed"]) == (0.15, 0), "it drew a sample"


def test_two_processes_make_one_adapter(
    place: Path, tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    out = tmp_path / "out"
    keys = {"lora_rank": 4, "max_steps": 2, "merge_adapter": True}
    done = two_interpreters.run(SCRIPT, *flags(place, out, **keys))
    assert json.loads((out / "metrics.json").read_text())["steps"] == 2
    assert done.stdout.count("Everything is in") == 1
    assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 64


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "gpt2", "lora_rank": 4}, "lora_rank 4 with a new model"),
        ({"model": "gpt2", "quantization": "nf4"}, "quantization nf4 of a new model"),
        ({"lora_rank": 4, "push_to": "me/model"}, "nobody else could open it; .* --merge_adapter"),
        ({"quantization": "nf4"}, "without lora_rank: .* nothing would be"),
        ({"quantization": "nf5", "lora_rank": 4}, "did you mean 'nf4'"),
        ({"lora_alpha": 4}, "lora_alpha: given, but it is read only with lora_rank"),
        ({"lora_rank": 4, "lora_targets": "q_prj"}, "did you mean 'q_proj'"),
        ({"model": "classifier"}, "another task"),
        ({"model": "tied-classifier"}, "saved as GPT2ForSequenceClassification"),
        ({"model": "encoder"}, "is an encoder: it sees"),
        ({"model": "t5"}, "model"),
        ({"model": "nowhere"}, "cannot be opened"),
        ({"model": "lama"}, "did you mean 'llama'"),
        ({"model": "mamba", **MAMBA}, "attention unpadded: .*--attention eager"),
        ({"model": "mamba", **MAMBA, "attention": "eager"}, "packing: .*--packing false"),
        ({"max_length": 81}, "reads only 80 tokens"),
        ({"corpus": "faq.jsonl"}, "no column 'text'"),
        ({"corpus": "faq.jsonl", "prompt_column": "question"}, "completion_column: none given"),
        ({"prompt_column": "qestion", "completion_column": "answer"}, "did you mean"),
        ({"messages_column": "talk", "corpus": "embedded"}, "corpus: the embedded one"),
        ({"messages_column": "talk", "text_column": "text"}, "text_column: given, but"),
        ({"corpus": "empty.txt"}, "empty"),
    ],
)
def test_mistakes_end_before_anything_is_trained(
    keys: dict[str, Any], message: str, place: Path, tmp_path: Path
) -> None:
    (place / "empty.txt").touch()
    for name in ("model", "corpus"):
        path = place / str(keys.get(name))
        keys = {**keys, **({name: path} if path.exists() else {})}
    if keys.get("model") == "nowhere":
        keys = {**keys, "model": tmp_path / "nowhere"}
    if "prompt_column" in keys and "corpus" not in keys:
        keys = {**keys, "corpus": place / "faq.jsonl"}
    with pytest.raises((ValueError, OSError), match=message):
        script.main(flags(place, tmp_path / "out", **keys))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("recipe.yaml"))


@pytest.mark.parametrize(("package", "extra"), [("peft", "peft"), ("bitsandbytes", "quantization")])
def test_packages_that_are_not_there(
    package: str, extra: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    keys = {"lora_rank": 4, "quantization": "nf4"}
    with pytest.raises(ImportError, match=rf"pip install 'hf-tfopt\[{extra}\]'"):
        script.main(flags(place, tmp_path / "out", **keys))


def test_an_adapter_is_no_model_to_go_on_from(adapted: Path, place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an adapter, not a model"):
        script.main(flags(place, tmp_path / "out", model=_without_config(adapted, tmp_path)))


def _without_config(adapted: Path, folder: Path) -> Path:
    found = folder / "adapter"
    shutil.copytree(adapted, found, ignore=shutil.ignore_patterns("checkpoint-*"))
    return found


class TestTheRecipe:
    def test_presets(self) -> None:
        mini, qlora = load(CausalLMRecipe, "gpt-mini"), load(CausalLMRecipe, "qlora")
        assert (mini.continues, mini.vocab_size, mini.lora_rank) == (False, 8192, None)
        assert load(CausalLMRecipe, "gpt-mini", {"max_steps": "9"}).hidden_size == 256
        assert (qlora.quantization, qlora.lora_rank, qlora.lora_alpha) == ("nf4", 64, 16)
        assert (qlora.learning_rate, qlora.schedule, qlora.max_grad_norm) == (2e-4, "constant", 0.3)
        plain = load(CausalLMRecipe, "qlora", {"lora_rank": "none", "corpus": "x.txt"})
        assert (plain.quantization, plain.merge_adapter) == (None, None)
        chats = load(CausalLMRecipe, "qlora", {"messages_column": "talk"})
        assert (chats.columns, chats.text_column) == ({"messages": "talk"}, None)

    def test_a_model_of_its_own_is_not_trained_at_the_rate_of_a_new_one(self) -> None:
        trained = load(CausalLMRecipe, None, {"model": "owner/name"})
        assert trained.learning_rate == pytest.approx(5e-5)
        assert load(CausalLMRecipe, None, {"model": "a/b", "lora_rank": "8"}).learning_rate == (
            pytest.approx(2e-4)
        )
        assert script.default_preset(["--model", "a/b"]) is None
        assert script.default_preset(["--max_steps", "3"]) == "gpt-mini"
