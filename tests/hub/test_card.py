import dataclasses
import math
import re

import pytest
from huggingface_hub import ModelCard

from hf_tfopt.hub import markdown, model_card, write_card
from hf_tfopt.run.folder import METRICS, read_run, write_json, write_run
from hf_tfopt.run.search_summary import FOLDER, TRIALS
from hf_tfopt.run.seed_summary import SEEDS, SeedSummary, mean_and_spread
from tests.run.finished import HOSTILE, finished_run, write_finished_run


def test_the_card_says_what_was_measured_and_how_it_was_made(tmp_path):
    folder = write_finished_run(tmp_path / "run", license="apache-2.0", language="en")
    card = ModelCard.load(write_card(folder))
    data = card.data
    assert (data.pipeline_tag, data.library_name) == ("fill-mask", "transformers")
    assert (data.language, data.license) == ("en", "apache-2.0")
    assert "hf_tfopt" in data.tags and "fill-mask" in data.tags
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"perplexity": 25.79, "loss": 3.25}
    for shown in ("| 25.79 |", "learning\\_rate", "open 31%", "from_pretrained", "1,234", "2.13.0"):
        assert shown in card.text
    assert "```python" in card.text


def test_without_a_licence_the_card_names_none(tmp_path):
    card = ModelCard.load(write_card(write_finished_run(tmp_path / "run")))
    assert card.data.license is None


def test_names_and_sentences_cannot_change_the_card(tmp_path):
    plain = write_finished_run(tmp_path / "plain")
    hostile = write_finished_run(
        tmp_path / "hostile", HOSTILE, language=HOSTILE, corpus=HOSTILE, license=HOSTILE
    )
    record = read_run(hostile)
    write_run(
        hostile,
        dataclasses.replace(
            record,
            data={"train": {"documents": HOSTILE, "fullness": 0.5}, "eval": {"documents": 12}},
            model={"class": HOSTILE, "layers": 2},
            environment={"torch": HOSTILE},
        ),
    )
    cards = [ModelCard.load(write_card(folder)) for folder in (plain, hostile)]
    keys = [set(card.data.to_dict()) for card in cards]
    assert keys[1] - keys[0] == {"license", "language"}, "a key came in through a name"
    assert cards[1].data.license != "evil"
    assert "<script" not in cards[1].text.replace("\\<script", "")
    assert not re.search(r"(?<!\\)\]\(|http://", cards[1].text), "a link"
    rows = [card.text.count("\n|") for card in cards]
    assert rows[1] == rows[0] + 2, "licence and language have a row more in the recipe's table"


def test_a_hub_name_is_linked_and_a_path_is_not(tmp_path):
    names = {"corpus": "owner/texts:part", "model": "owner/base"}
    linked = ModelCard(model_card(_with(hub_names=names, recipe=names)))
    assert linked.data.datasets == ["owner/texts"]
    assert (linked.data.base_model, linked.data.base_model_relation) == ("owner/base", "finetune")
    result = linked.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config) == ("owner/texts", "part")
    assert "fine-tuned from `owner/base`" in linked.text
    paths = {"corpus": str(tmp_path / "texts.txt"), "model": "runs/base"}
    local = ModelCard(model_card(_with(recipe=paths)))
    assert local.data.datasets is None and local.data.base_model is None
    assert "base_model" not in local.content.partition("# run")[0]
    assert str(tmp_path) not in str(local)


def _with(**changed):
    return dataclasses.replace(finished_run(), **changed)


def _table(card):
    lines = [line for line in card.text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_every_known_score_is_in_the_index_and_others_are_told():
    metrics = {
        "accuracy": 0.9,
        "accuracy_low": 0.88,
        "accuracy_high": 0.92,
        "eval_loss": 0.3,
        "my_own_score": 0.5,
        "matthews": None,
        "train_seconds": 62.0,
        "energy_kwh": 0.0123,
        "resumed_from_step": 100,
    }
    metrics |= {"perplexity": 2.0}
    recipe = {"test": "data/test.csv", "train": "data/train.csv", "select": "accuracy"}
    run = _with(task="text-classification", metrics=metrics, recipe=recipe)
    card = ModelCard(model_card(run))
    found = {result.metric_type: result for result in card.data.eval_results}
    assert set(found) == {"accuracy", "loss", "perplexity"}
    assert found["accuracy"].metric_name == "Accuracy, 0.88 to 0.92"
    assert found["accuracy"].dataset_name == "data/test.csv"
    for of_eval in ("loss", "perplexity"):
        assert found[of_eval].dataset_name == "data/train.csv, held out"
        assert found[of_eval].dataset_split is None
    table = _table(card)
    assert table["Accuracy"] == "0.9 (0.88 to 0.92)"
    assert table["My own score"] == "0.5" and "Matthews correlation" not in table
    assert table["Training time from step 100 on"] == "1 min 2 s"
    assert table["Energy from step 100 on"] == "12.3 Wh"
    assert "flatter" not in card.text  # it has test data of its own


def test_a_data_sets_own_test_split_is_what_the_scores_are_of():
    """The recipe names one source; what was counted tells that it has a test split."""
    recipe = {"train": "owner/pairs", "select": "bleu"}
    data = {"train": {"rows": 3}, "eval": {"rows": 2}, "test": {"rows": 2}}
    metrics = {"bleu": 30.0, "eval_loss": 2.0}
    run = _with(task="translation", metrics=metrics, recipe=recipe, data=data)
    card = ModelCard(model_card(run))
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["bleu"].dataset_name == "owner/pairs, its test split"
    assert (found["bleu"].dataset_split, found["loss"].dataset_split) == ("test", None)
    assert "flatter" not in card.text
    assert "flatter" in model_card(dataclasses.replace(run, data={}))


def test_languages_are_told_where_they_are_known():
    def told(**recipe):
        return ModelCard(model_card(_with(task="translation", recipe=recipe))).data.language

    assert told() is None
    assert told(language="en, de") == ["en", "de"]
    assert told(source_language="en_XX", target_language="de_DE") == ["en", "de"]
    assert told(source_language="eng_Latn", target_language="<script>") == "eng"


def test_a_search_before_the_run_is_told(tmp_path):
    folder = write_finished_run(tmp_path / "run")
    assert "trials" not in write_card(folder).read_text()
    (folder / FOLDER).mkdir()
    trials = [{"number": n, "values": {"learning_rate": 0.1 / n}, "score": n} for n in (1, 2)]
    write_json(folder / FOLDER / TRIALS, {"by": "eval_loss", "trials": trials})
    card = write_card(folder).read_text().replace("\\", "")
    assert "best of 2 trials, by eval_loss of the held-out data" in card
    assert "values of learning_rate, so that the numbers flatter it" in card
    write_json(folder / FOLDER / TRIALS, {"by": "eval_loss", "trials": []})
    with pytest.raises(ValueError, match=r"trials\.json is not what --search leaves"):
        write_card(folder)


def test_several_seeds_are_told_with_their_spread():
    metrics = {"accuracy": 0.9, "accuracy_std": 0.004, "steps": 50, "steps_std": 0, "num_seeds": 3}
    card = ModelCard(model_card(_with(task="text-classification", metrics=metrics)))
    assert _table(card)["Accuracy"] == "0.9 ± 0.004" and _table(card)["Seeds"] == "3"
    (result,) = card.data.eval_results
    assert result.metric_name == "Accuracy, mean of 3 seeds ± 0.004"
    assert "standard deviation over the seeds" in card.text and "one seed" not in card.text


def test_the_card_of_several_seeds_is_made_again_from_the_folder(tmp_path):
    folder = write_finished_run(tmp_path / "run")
    runs = {1: {"accuracy": 0.8, "steps": 50}, 2: {"accuracy": 0.9, "steps": 50}}
    write_json(folder / METRICS, mean_and_spread(list(runs.values())))
    write_json(folder / SEEDS, {"seeds": runs, "by": "accuracy", "median_seed": 1})
    card = ModelCard.load(write_card(folder))
    assert _table(card)["Accuracy"] in ("0.85 ± 0.07071", "0.8 to 0.9")
    assert "0.85 ± 0.07071" in card.text and "0.8 to 0.9" in card.text
    assert "that of seed 1, the median by `accuracy` and not the best" in card.text
    assert _table(card)["Steps"] == "50"
    runs[2]["perplexity"] = 3.0
    write_json(folder / SEEDS, {"seeds": runs, "by": "accuracy", "median_seed": 1})
    told = "Held-out perplexity is no finite number for the seed 1, and has no mean."
    assert told in write_card(folder).read_text()
    (folder / SEEDS).write_text("[]")
    with pytest.raises(ValueError, match=r"seeds\.json is not what --seeds leaves"):
        write_card(folder)


@pytest.mark.parametrize(
    ("keys", "are_others"),
    [
        ({"eval_fraction": 0.1, "seed": 0}, True),  # of a run before there was a split_seed
        ({"eval_fraction": 0.1, "split_seed": 0}, False),
        ({"eval_fraction": None, "split_seed": None}, False),  # the data's own split
    ],
)
def test_seeds_with_held_out_rows_of_their_own_are_told(keys, are_others):
    runs = {1: {"eval_loss": 0.8}, 2: {"eval_loss": 0.9}}
    card = model_card(_with(recipe=keys), summary=SeedSummary(runs, "eval_loss", 1))
    assert ("others for each seed" in card) == are_others


def test_numbers_that_are_none_do_not_end_it():
    odd = {"kept_accuracy": "most", "train_seconds": "long", "energy_kwh": True, "steps": math.nan}
    history = [{"num_bad_steps": math.nan}, {"num_bad_steps": "x"}, {}]
    card = ModelCard(model_card(_with(metrics={**odd, "table": [1, 2]}, history=history)))
    assert _table(card)["Share of it kept"] == "most" and "Table" not in _table(card)


def test_a_name_that_is_none_of_the_hub_never_becomes_one():
    hostile = {"model": "a/b`](http://x)", "corpus": "owner/texts"}
    run = _with(hub_names=hostile, recipe={"model": "a/b"})
    card = ModelCard(model_card(run))
    assert card.data.base_model is None and "http://" not in card.text


def test_the_limits_tell_what_happened():
    recipe = {"select": "accuracy", "guard": "skip"}
    plain = model_card(_with(task="text-classification"))
    assert "flatter" not in plain and "guard" not in plain
    chosen = _with(
        task="text-classification", recipe=recipe, history=[{"step": 9, "num_bad_steps": 2}]
    )
    card = model_card(chosen)
    assert "flatter it a little" in card
    assert "In 2 of its steps" in card and "PaLM" in card


def test_curves_are_shown_where_they_are(tmp_path):
    folder = write_finished_run(tmp_path / "run")
    assert "![" not in write_card(folder).read_text()
    (folder / "curves.png").write_bytes(b"")
    assert "\n![curves](curves.png)\n" in write_card(folder).read_text()


def test_an_unknown_task_has_no_card():
    with pytest.raises(ValueError, match="did you mean 'fill-mask'"):
        model_card(_with(task="fil-mask"))


def test_a_path_inside_a_value_is_cut():
    recipe = {
        "callbacks": {"x": {"file": "/home/me/secret place/log.txt"}},
        "train": ["C:\\\\Users\\\\me\\\\a.csv", "~/mine/b.csv"],
        "prefix": "see file:///home/me/c.txt",
    }
    card = model_card(_with(recipe=recipe))
    for kept in ("log.txt", "a.csv", "b.csv", "c.txt"):
        assert kept in card
    for cut in ("home", "secret", "Users", "mine"):
        assert cut not in card


def test_the_card_of_a_run_with_nothing_to_tell_is_still_a_card(tmp_path):
    folder = write_finished_run(tmp_path / "run")
    run = read_run(folder)
    bare = type(run)(name="bare", metrics={}, recipe={})
    card = ModelCard(model_card(bare))
    assert card.data.eval_results is None
    assert "# bare" in card.text


@pytest.mark.parametrize(
    "text", ["a_b*c*", "[x](y)", "<b>", "`c`", "a|b", "# no\nheading", "$x$", "http://x"]
)
def test_markdown_is_escaped_on_one_line(text):
    escaped = markdown(text)
    assert "\n" not in escaped
    assert escaped.replace("\\", "") == " ".join(text.split())
