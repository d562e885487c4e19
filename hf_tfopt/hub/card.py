"""A trained model's card: README.md with the metadata that the Hub reads, from the run folder."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_tfopt.data.labelled_names import NO_LABELS
from hf_tfopt.hub.citations import citations
from hf_tfopt.hub.tasks import TASKS, has_adapter, is_distilled, is_student, origin
from hf_tfopt.registry import check_name
from hf_tfopt.run import tables
from hf_tfopt.run.facts import is_hub_name
from hf_tfopt.run.folder import Run, read_run, write_text
from hf_tfopt.run.score_names import SCORES, is_beside, score_label, score_names
from hf_tfopt.run.search_summary import SearchSummary, read_search
from hf_tfopt.run.seed_summary import SEEDS, SeedSummary, lost_numbers, spread_rows

_TEMPLATE = Path(__file__).parents[1] / "templates" / "model_card.md"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#&{}]|:(?=//))")
_DATASETS = ("train", "corpus", "eval", "test")
_OF_ITS_OWN = {"eval": ", held out", "test": ", its test split"}
# Of the pictures beside the report, those that a card shows.
_PICTURES = ("curves.png",)


def one_line(text: Any) -> str:
    """The text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def markdown(text: Any) -> str:
    """The text as Markdown shows it literally, on one line: no link, tag, table or emphasis."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def _base(run: Run) -> str | None:
    """The model of the Hub that this one began with."""
    name = run.hub_names.get("teacher" if is_student(run) else "model", "")
    return name.partition(":")[0] if is_hub_name(name) else None


def _part(run: Run, name: str = "") -> str:
    """The part of the data that a score is of: the test data where there are any, with labels.

    What begins with "eval_" never is, nor perplexity, which is of an evaluation's loss.
    """
    test = run.data.get("test")
    has_test = run.recipe.get("test") if test is None else test.get("labels") != NO_LABELS
    return "test" if has_test and not name.startswith(("eval_", "perplexity")) else "eval"


def _evaluated(run: Run, name: str) -> dict[str, str | None]:
    """What a score was measured on, in the Hub's names."""
    part = _part(run, name)
    own = part if run.recipe.get(part) else None
    key = own or TASKS[run.task].data
    shown = tables.shown_value(key, run.recipe.get(key) or "unknown")
    hub_name, _, configuration = run.hub_names.get(key, "").partition(":")
    return {
        "dataset_name": one_line(shown) + ("" if own else _OF_ITS_OWN[part]),
        "dataset_type": hub_name or "local",
        "dataset_config": configuration or None,
        # results of one dataset and split become one entry; what is held out may be no split
        "dataset_split": "test" if part == "test" else None,
    }


def _results(run: Run) -> list[EvalResult]:
    """The scores that the Hub knows, as it lists them."""
    found: list[EvalResult] = []
    for name in score_names(run.metrics):
        if name not in SCORES or not SCORES[name].hub:
            continue
        where: dict[str, Any] = _evaluated(run, name)
        found.append(
            EvalResult(
                task_type=run.task,
                task_name=TASKS[run.task].name,
                metric_type=SCORES[name].hub,
                metric_name=SCORES[name].label + _words_of_doubt(run, name),
                metric_value=run.metrics[name],
                **where,
            )
        )
    return found


def _words_of_doubt(run: Run, name: str) -> str:
    """What stands behind a score's name where it is known how far it may be off."""
    spread, seeds = run.metrics.get(f"{name}_std"), run.metrics.get("num_seeds")
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    number = tables.number
    text = "" if spread is None else f", mean of {number(seeds)} seeds ± {number(spread)}"
    return text if low is None or high is None else f"{text}, {number(low)} to {number(high)}"


def _languages(recipe: Mapping[str, Any]) -> str | list[str] | None:
    """Those that were named, or that a translation is of; None where nobody has said any."""
    if recipe.get("language"):
        found = [one_line(name) for name in str(recipe["language"]).split(",")]
    else:
        named = (str(recipe.get(key) or "") for key in ("source_language", "target_language"))
        found = [code[0] for name in named if (code := re.match(r"[a-z]{2,3}(?=_|$)", name))]
    found = list(dict.fromkeys(name for name in found if name))
    return found[0] if len(found) == 1 else found or None


def _metadata(run: Run) -> ModelCardData:
    recipe, base = run.recipe, _base(run)
    names = {
        run.hub_names[key].partition(":")[0]: None for key in _DATASETS if key in run.hub_names
    }
    more: dict[str, Any] = {}
    if base:
        more["base_model_relation"] = "adapter" if has_adapter(run) else "finetune"
    kinds = {"distillation": is_distilled(run), "lora": has_adapter(run)}
    return ModelCardData(
        language=_languages(recipe),
        license=one_line(recipe["license"]) if recipe.get("license") else None,
        library_name="peft" if has_adapter(run) else "transformers",
        pipeline_tag=run.task,
        tags=[
            *("hf_tfopt", run.task, *TASKS[run.task].tags),
            *(kind for kind, is_such in kinds.items() if is_such),
        ],
        base_model=base,
        datasets=list(names) or None,
        model_name=one_line(run.name),
        eval_results=_results(run) or None,
        **more,
    )


def _class_of(run: Run) -> str:
    """What scores of classes are of."""
    positive = run.recipe.get("positive")
    return "the mean over the classes" if positive is None else f"of the class {markdown(positive)}"


def _meanings(run: Run) -> list[str]:
    """What the numbers are of."""
    found = run.metrics
    tokens = "masked tokens" if run.task == "fill-mask" else "tokens"
    rarely = ", with masks that never change" if run.task == "fill-mask" else ""
    is_told = {
        f"Perplexity is exp(Σ nll / Σ tokens) over the {tokens} of what was held out of training"
        f"{rarely}.": "perplexity" in found,
        "± is the sample standard deviation over the seeds; the model here is that of one of "
        "them.": any(name.endswith("_std") and is_beside(name, found) for name in found),
        "In brackets are the ends of the bootstrap interval over the examples.": any(
            name.endswith("_low") and is_beside(name, found) for name in found
        ),
        f"F1, precision and recall are {_class_of(run)}.": "positive" in run.recipe
        and any(name in found for name in ("f1", "precision", "recall")),
        "The speeds of the two models are the median over turns, on the same batches, on the "
        "machine below.": "times_as_fast" in found,
        "The energy is what the machine's own counters told while it trained; a processor's counts "
        "whatever ran on it.": any(name.startswith("energy_kwh") for name in found),
    }
    return [sentence for sentence, is_so in is_told.items() if is_so]


def _num_bad_steps(run: Run) -> int:
    told = (entry.get("num_bad_steps") for entry in run.history)
    return max((number for number in told if isinstance(number, int)), default=0)


def _of_search(search: SearchSummary | None, flatter: str) -> str:
    """How the best values were found."""
    if search is None:
        return ""
    keys = ", ".join(map(markdown, search.keys))
    return (
        f"The best of {search.num_trials} trials, by {markdown(search.by)} of the held-out data, "
        f"chose its values of {keys}{flatter}. Time and energy are without those of the trials."
    )


def _limits(run: Run, search: SearchSummary | None = None) -> list[str]:
    """What to keep in mind, by the task and by what happened."""
    has_test = _part(run) == "test"
    recipe, bad, seeds = run.recipe, _num_bad_steps(run), run.metrics.get("num_seeds")
    is_told = {
        markdown(run.unfinished): bool(run.unfinished),
        TASKS[run.task].limits: True,
        "Its teacher's errors and prejudices are its own.": bool(run.recipe.get("teacher")),
        "It is evaluated on nothing but the data above.": True,
        "The numbers are of one run with one seed; another seed gives others.": not seeds,
        "Its checkpoint was chosen on the same held-out data that the numbers are of: they flatter "
        "it a little.": bool(recipe.get("select")) and not has_test,
        _of_search(search, "" if has_test else ", so that the numbers flatter it"): bool(search),
        f"In {bad:,} of its steps the loss or a gradient was no number, or far off; the guard's "
        f"action was: {markdown(recipe.get('guard') or 'skip')}.": bad > 0,
    }
    return [sentence for sentence, is_so in is_told.items() if is_so]


def _escaped(rows: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    return [tuple(map(markdown, row)) for row in rows]


def _seeds(summary: SeedSummary, are_same_rows: bool) -> dict[str, Any]:
    """What the runs of several seeds come to, beside their means."""
    seeds = ", ".join(markdown(seed) for seed in summary.metrics)
    by = re.sub(r"[^\w ./-]", "", str(summary.by))
    return {
        "told": f"The run was made {len(summary.metrics)} times, with the seeds {seeds}. The "
        "numbers at the top are means. The model here, with its curves and examples, is that of "
        f"seed {markdown(summary.median_seed)}, the median by `{by}` and not the best."
        + ("" if are_same_rows else " Rows that are held out by chance are others for each seed."),
        "lost": [
            f"{markdown(score_label(name))} is no finite number for the seed "
            f"{', '.join(map(markdown, seeds))}, and has no mean."
            for name, seeds in lost_numbers(summary.metrics).items()
        ],
        "rows": _escaped((score_label(name), ends) for name, _, ends in spread_rows(summary)),
    }


def model_card(
    run: Run,
    pictures: Sequence[str] = (),
    summary: SeedSummary | None = None,
    search: SearchSummary | None = None,
) -> str:
    """The card of a run, as the text of a README.md.

    Every name and sentence that comes from the run is escaped; no path, host or variable of the
    machine it ran on is in it.

    Args:
        run: a finished run.
        pictures: names of files beside the card.
        summary: of a run that was made with several seeds.
        search: of a run whose values were searched.

    Raises:
        ValueError: for a task that there is no card for.
    """
    task = TASKS[check_name("task", run.task, TASKS)]
    given = {key for key, value in run.recipe.items() if value is not None}
    has_one_split = "split_seed" in given or "eval_fraction" not in given
    papers = citations(run.recipe, run.task, _num_bad_steps(run) > 0)
    card = ModelCard.from_template(
        _metadata(run),
        template_path=str(_TEMPLATE),
        title=markdown(run.name),
        what=task.what(run),
        origin=origin(run, _base(run)),
        is_adapter=has_adapter(run),
        meanings=_meanings(run),
        pictures=list(pictures),
        has_blanks=run.task == "fill-mask",
        snippet=task.snippet(run),
        more=task.more(run),
        script="distill.py" if is_student(run) else task.script,
        data_parts=list(map(markdown, tables.data_parts(run))),
        limits=_limits(run, search),
        seeds=_seeds(summary, has_one_split) if summary else None,
        rows={
            "headlines": _escaped(tables.headlines(run)),
            "examples": _escaped(tables.example_rows(run)),
            "model": _escaped(tables.fact_rows(run.model)),
            "data": _escaped(tables.data_rows(run)),
            "recipe": _escaped(tables.recipe_rows(run)),
            "hardware": _escaped(tables.hardware_rows(run)),
            "versions": _escaped(tables.version_rows(run)),
            "papers": [(markdown(who), markdown(text), link) for who, text, link in papers],
        },
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def write_card(folder: str | Path) -> Path:
    """Write README.md into a finished run's folder, and return its path.

    Raises:
        ValueError: if the folder holds no finished run.
        OSError: it cannot be written.
    """
    path = Path(folder) / "README.md"
    pictures = [name for name in _PICTURES if (path.parent / name).is_file()]
    summary, search = _summary(path.parent / SEEDS), read_search(path.parent)
    write_text(path, model_card(read_run(folder), pictures, summary, search))
    return path


def _summary(file: Path) -> SeedSummary | None:
    """What `--seeds` left beside the means; None for a single run."""
    if not file.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return SeedSummary(found["seeds"], found["by"], found["median_seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what --seeds leaves: {error!r}") from error
