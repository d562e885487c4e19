"""What a card says of each task: what the model is, how it is used, and what it does not do.

A snippet opens the folder that it is in; it is run by the tests on a model of its task.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from hf_tfopt.run.folder import Run

_HERE = "  # this folder, or the repository's name"
_PAIRS = {
    "mlm+nsp": "whether one text follows another (next sentence prediction)",
    "mlm+sop": "whether two texts changed places (sentence order prediction)",
}


class Task(NamedTuple):
    """One task's part of a card.

    Args:
        name: for people.
        what: what the model is: "A ...".
        snippet: Python that uses it.
        data: the key of a recipe that names what it is evaluated on, where nothing else does.
        more: what else can be done with it; may be empty.
        tags: that it is found by, beside the task itself.
        script: the file in scripts/ that makes it.
        limits: what nobody should expect of it.
    """

    name: str
    what: Callable[[Run], str]
    snippet: Callable[[Run], str]
    data: str
    more: Callable[[Run], str]
    tags: tuple[str, ...]
    script: str
    limits: str


def literal(text: str) -> str:
    """A text as code has it, in double quotes, without what would end a block of it in Markdown."""
    written = repr(text)
    return (written if '"' in written else f'"{written[1:-1]}"').replace("`", "\\x60")


def has_adapter(run: Run) -> bool:
    """Whether what was saved is an adapter beside a model that stays as it was."""
    return "adapter" in run.model


def is_distilled(run: Run) -> bool:
    """Whether the model learned from another one's answers."""
    return bool(run.recipe.get("teacher")) and run.recipe.get("alpha") != 0


def is_student(run: Run) -> bool:
    """Whether the model was made of layers of its teacher, by `scripts/distill.py`."""
    return run.task == "text-classification" and bool(run.recipe.get("teacher"))


def origin(run: Run, base: str | None) -> str:
    """What it was made of, as a part of a sentence; empty for a new model.

    Args:
        run: the model's.
        base: the model of the Hub that it began with.
    """
    name = f" (`{base}`)" if base else ""
    if is_student(run):
        how = ", distilled from it" if is_distilled(run) else ""
        return f"made of layers of a larger one{name}{how}"
    began = f"fine-tuned from `{base}`" if base else ""
    learned = "distilled from a teacher" if is_distilled(run) else ""
    return ", ".join(part for part in (began, learned) if part)


def _pipeline(name: str, task: str, *calls: str, options: str = "") -> str:
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f'{name} = pipeline("{task}", model="."{options}){_HERE}',
            *calls,
        ]
    )


def _fill(run: Run) -> str:
    sentence = 'fill(f"The file is {fill.tokenizer.mask_token} before it is closed.")'
    return _pipeline("fill", "fill-mask", f"print({sentence})")


def _what_is_masked(run: Run) -> str:
    pairs = _PAIRS.get(str(run.recipe.get("objective")))
    return "A masked language model" + (f" that also tells {pairs}" if pairs else "")


def _more_of_masked(run: Run) -> str:
    more = (
        "`AutoModelForMaskedLM.from_pretrained` and `AutoModel.from_pretrained` work as for any "
        "model, for fine-tuning too."
    )
    if run.recipe.get("objective") in _PAIRS:
        more += (
            " `AutoModelForPreTraining` has the head for pairs as well; 0 means that the second "
            "text follows the first."
        )
    return more


def _problem(run: Run) -> str:
    return str(run.recipe.get("problem") or run.model.get("problem"))


def _has_pairs(run: Run) -> bool:
    return bool(run.recipe.get("text_pair_column"))


def _classify(run: Run) -> str:
    text = '"A text to classify."'
    if _has_pairs(run):
        text = '{"text": "A text.", "text_pair": "Another one."}'
    options = {
        "regression": ', function_to_apply="none"',
        "multi_label_classification": ', top_k=None, function_to_apply="sigmoid"',
    }.get(_problem(run), "")
    name = "measure" if _problem(run) == "regression" else "classify"
    return _pipeline(name, "text-classification", f"print({name}({text}))", options=options)


def _what_is_classified(run: Run) -> str:
    kind = {
        "regression": "A model that gives a number to",
        "multi_label_classification": "A classifier that finds every label of",
    }.get(_problem(run), "A classifier of")
    return f"{kind} {'pairs of texts' if _has_pairs(run) else 'texts'}"


def _more_of_classes(run: Run) -> str:
    first = {
        "regression": "The `score` is the number itself. ",
        "multi_label_classification": "Each `score` is a label's own probability. ",
    }.get(_problem(run), "")
    return first + _more("AutoModelForSequenceClassification")(run)


def _tag(run: Run) -> str:
    call = 'print(tag("A sentence with a name in it."))'
    options = ', aggregation_strategy="simple"'
    return _pipeline("tag", "token-classification", call, options=options)


def _rewrite(run: Run) -> str:
    """The host (5) has no pipeline for these any more."""
    text = literal(f"{run.recipe.get('prefix') or ''}A text.")
    given, language = run.recipe.get("max_new_tokens"), run.recipe.get("source_language")
    longest = given if isinstance(given, int) else 64
    options = f", src_lang={literal(str(language))}" if language else ""
    return "\n".join(
        [
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("."{options}){_HERE}',
            f'model = AutoModelForSeq2SeqLM.from_pretrained("."){_HERE}',
            f'inputs = tokenizer({text}, return_tensors="pt")',
            f"written = model.generate(**inputs, max_new_tokens={longest})[0]",
            "print(tokenizer.decode(written, skip_special_tokens=True))",
        ]
    )


def _write(run: Run) -> str:
    text = "The beginning of a text"
    if not has_adapter(run):
        call = f'print(write("{text}", max_new_tokens=40)[0]["generated_text"])'
        return _pipeline("write", "text-generation", call)
    if "model" in run.hub_names:
        opened = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("."){_HERE}',
        ]
    else:
        opened = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'base = AutoModelForCausalLM.from_pretrained("BASE")  # the model that it changes',
            f'model = PeftModel.from_pretrained(base, "."){_HERE}',
        ]
    return "\n".join(
        [
            *opened,
            f'tokenizer = AutoTokenizer.from_pretrained("."){_HERE}',
            f'inputs = tokenizer("{text}", return_tensors="pt")',
            "written = model.generate(**inputs, max_new_tokens=40)[0]",
            "print(tokenizer.decode(written, skip_special_tokens=True))",
        ]
    )


def _more_of_writing(run: Run) -> str:
    if has_adapter(run):
        alone = "What is here is the adapter alone: the model that it changes is loaded beside it"
        local = "; that one lay in a folder, whose path belongs in the place of BASE."
        return alone + ("." if "model" in run.hub_names else local)
    return _more("AutoModelForCausalLM")(run)


def _what_writes(run: Run) -> str:
    return (
        "An adapter of a causal language model" if has_adapter(run) else "A causal language model"
    )


def _more(auto_class: str) -> Callable[[Run], str]:
    return lambda run: f"`{auto_class}.from_pretrained` works as for any model."


def _always(text: str) -> Callable[[Run], str]:
    return lambda run: text


_CLASSIFIER = (
    "It knows the labels and the kind of text above and nothing else; to a text of another kind it "
    "gives one of them all the same."
)
_WRITER = (
    "What it writes may be wrong, and may repeat what it was trained on, errors and prejudices "
    "included. The scores compare words with a reference; they do not tell whether a text is true."
)
# By what the model does, as the Hub calls it.
TASKS: Mapping[str, Task] = {
    "fill-mask": Task(
        "Masked language modelling",
        _what_is_masked,
        _fill,
        "corpus",
        _more_of_masked,
        ("masked-language-modeling",),
        "pretrain.py",
        "It has read the corpus above and nothing else, and it repeats what is in it, errors and "
        "prejudices included.",
    ),
    "text-classification": Task(
        "Text classification",
        _what_is_classified,
        _classify,
        "train",
        _more_of_classes,
        (),
        "finetune_classification.py",
        _CLASSIFIER,
    ),
    "token-classification": Task(
        "Token classification",
        _always("A model that finds the marked parts of a text, word by word"),
        _tag,
        "train",
        _more("AutoModelForTokenClassification"),
        (),
        "finetune_classification.py",
        _CLASSIFIER,
    ),
    "translation": Task(
        "Translation",
        _always("A model that translates texts"),
        _rewrite,
        "train",
        _more("AutoModelForSeq2SeqLM"),
        (),
        "finetune_seq2seq.py",
        _WRITER,
    ),
    "summarization": Task(
        "Summarization",
        _always("A model that summarizes texts"),
        _rewrite,
        "train",
        _more("AutoModelForSeq2SeqLM"),
        (),
        "finetune_seq2seq.py",
        _WRITER,
    ),
    "text-generation": Task(
        "Causal language modelling",
        _what_writes,
        _write,
        "corpus",
        _more_of_writing,
        (),
        "finetune_causal_lm.py",
        "It writes on as its texts did, errors and prejudices included, and what it says may be "
        "wrong.",
    ),
}
