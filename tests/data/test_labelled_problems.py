"""What rows with labels are, as numbers, and what they must not be."""

import datasets
import pytest

from hf_tfopt.data.labelled_names import REGRESSION, SEVERAL, SINGLE, TOKENS
from hf_tfopt.data.labelled_numbers import numbers_of
from hf_tfopt.data.labelled_problems import check_texts, class_names, label_names, problem_of
from hf_tfopt.data.labelled_rows import Labelled, is_labelled, labelled
from hf_tfopt.data.labelled_tags import with_beginnings

WORDS = [["a", "b"], ["c"]]


def rows(label, text=("x", "y"), features=None) -> Labelled:
    table = datasets.Dataset.from_dict({"body": list(text), "topic": label})
    if features is not None:
        table = table.cast_column("topic", features)
    return labelled(table, "train", "body", None, "topic")


def of_classes(*names: str) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=list(names))


@pytest.mark.parametrize(
    ("label", "problem", "names", "numbers"),
    [
        (["no", "yes"], SINGLE, ["no", "yes"], [0, 1]),
        ([True, False], SINGLE, ["False", "True"], [1, 0]),
        ([1, 0], SINGLE, ["0", "1"], [1, 0]),
        (["1.5", "2"], REGRESSION, None, [1.5, 2.0]),
        ([1.5, 2.0], REGRESSION, None, [1.5, 2.0]),
        ([["b", "a"], []], SEVERAL, ["a", "b"], [[1.0, 1.0], [0.0, 0.0]]),
        ([[0, 1, 1], [0, 0, 1]], SEVERAL, ["0", "1", "2"], [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]),
        ([[0, 2], [1]], SEVERAL, ["0", "1", "2"], [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        ([[0, 1], [1, 0]], SEVERAL, ["0", "1"], [[0.0, 1.0], [1.0, 0.0]]),
        ([[0], [1]], SEVERAL, ["0", "1"], [[1.0, 0.0], [0.0, 1.0]]),
    ],
)
def test_labels_are_seen_and_numbered(label, problem, names, numbers) -> None:
    found = rows(label)
    assert problem_of(found) == problem
    check_texts(found, problem)
    assert class_names(found, problem) == names
    assert numbers_of(found, problem, names).column("label") == numbers


def test_tags_of_words() -> None:
    found = rows([["O", "B"], ["O"]], WORDS)
    assert problem_of(found) == TOKENS
    check_texts(found, TOKENS)
    assert class_names(found, TOKENS) == ["B", "O"]
    assert numbers_of(found, TOKENS, ["B", "O"]).column("label") == [[1, 0], [1]]
    with pytest.raises(ValueError, match=r"row 0 has .*1 tags for 2 words"):
        class_names(rows([["O"], ["O"]], WORDS), TOKENS)


def test_names_that_a_table_knows_are_its_classes() -> None:
    """Though a split may lack some; and a model that numbers them otherwise goes by the names."""
    found = rows([1, 0], features=of_classes("neg", "pos", "other"))
    assert class_names(found, SINGLE) == ["neg", "pos", "other"]
    assert numbers_of(found, SINGLE, ["pos", "neg", "other"]).column("label") == [0, 1]
    tags = rows([[0, 1], [1]], WORDS, datasets.List(of_classes("O", "B-X")))
    assert class_names(tags, TOKENS) == ["O", "B-X"]
    with pytest.raises(ValueError, match="row 1 has -1 as 'topic'; it stands for none"):
        class_names(rows([1, -1], features=of_classes("neg", "pos")), SINGLE)


def test_the_training_rows_say_how_lists_are_meant() -> None:
    ends = rows([[0, 1], [1, 0]])
    of_switches, of_classes = rows([[1, 1], [0, 1]]), rows([[0, 1], [0]])
    found = numbers_of(ends, SEVERAL, ["0", "1"], of_switches)
    assert found.column("label") == [[0.0, 1.0], [1.0, 0.0]]
    found = numbers_of(ends._replace(source="eval"), SEVERAL, ["0", "1"], of_classes)
    assert found.column("label") == [[1.0, 1.0], [1.0, 1.0]]
    with pytest.raises(ValueError, match=r"row 0 has \[1\] .*expected 2 numbers, 0 or 1"):
        numbers_of(rows([[1], [0]]), SEVERAL, ["0", "1"], of_switches)


@pytest.mark.parametrize("label", [[1, 0], ["1", "0"]])
def test_numbers_without_names_are_those_of_a_model_with_names(label) -> None:
    assert numbers_of(rows(label), SINGLE, ["up", "down"]).column("label") == [1, 0]
    named = rows([1, 0], features=of_classes("0", "1"))
    assert numbers_of(named, SINGLE, ["up", "down"]).column("label") == [1, 0]
    with pytest.raises(ValueError, match=r"has the label '?1'?, which no training row has"):
        numbers_of(rows(label), SINGLE, ["no", "yes"], rows(["no", "yes"]))


@pytest.mark.parametrize(
    ("tags", "expected", "num"),
    [
        (["I-PER", "I-PER", "O", "I-LOC"], ["B-PER", "I-PER", "O", "B-LOC"], 2),
        (["I-PER", "B-PER", "I-PER", "I-LOC"], ["B-PER", "B-PER", "I-PER", "B-LOC"], 2),
        (["B-PER", "I-PER", "O", "O"], ["B-PER", "I-PER", "O", "O"], 0),
        (["I-PER", "E-PER", "O", "S-LOC"], ["I-PER", "E-PER", "O", "S-LOC"], 0),
    ],
)
def test_entities_begin_with_b(tags, expected, num) -> None:
    found = rows([tags], [["a", "b", "c", "d"]])
    assert with_beginnings(found, sorted({*tags}))[1] == num
    assert with_beginnings(found, sorted({*tags}))[0].column("label") == [expected]
    names = sorted({*tags})
    known = rows(
        [[names.index(tag) for tag in tags]],
        [["a", "b", "c", "d"]],
        datasets.List(of_classes(*names)),
    )
    changed, num_changed = with_beginnings(known, names)
    own = changed.table.features["label"].feature.names
    assert ([own[n] for n in changed.column("label")[0]], num_changed) == (expected, num)


def test_a_separator_cuts_labels() -> None:
    table = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": ["a; b", "", "b"]})
    found = labelled(table, "train", "text", None, "label", ";")
    assert found.column("label") == [["a", "b"], [], ["b"]]
    numbers = table.remove_columns("label").add_column("label", [1, 2, 3])
    with pytest.raises(ValueError, match="label_separator: 'label' of train is no text"):
        labelled(numbers, "train", "text", None, "label", ";")


@pytest.mark.parametrize(
    ("label", "text", "problem", "message"),
    [
        ([1, 0], [3, 4], SINGLE, "'body' holds numbers, and .* reads text"),
        (["a", "b"], [3, 4], SINGLE, "'topic' holds text: were they exchanged"),
        ([1, 0], ["x", " "], SINGLE, "row 1 has ' ' as 'body'; expected text"),
        ([1, 0], ["x", None], SINGLE, "row 1 has None as 'body'"),
        ([1, 0], WORDS, SINGLE, "'body' holds lists of text, and"),
        ([["O"], []], [["a"], []], TOKENS, r"row 1 has \[\] as 'body'; expected lists of words"),
        (["a", "a"], ["x", "y"], SINGLE, "one class only"),
        (["a", ""], ["x", "y"], SINGLE, "row 1 has '' as 'topic'; classes are"),
        ([0, 2], ["x", "y"], SINGLE, "numbered from 0 without gaps"),
        ([0.5, None], ["x", "y"], REGRESSION, "row 1 has None as 'topic'; a regression needs"),
        ([0.5, float("inf")], ["x", "y"], REGRESSION, "row 1 has inf"),
        ([0.5, 0.5], ["x", "y"], REGRESSION, "every target is 0.5"),
        (["good", "bad"], ["x", "y"], REGRESSION, "row 0 has 'good' as 'topic'; a regression"),
        ([[0.2, 0.8], [0.0, 1.0]], ["x", "y"], SEVERAL, r"row 0 .*there is 0 or 1"),
        ([[0.0, float("nan")], [0.0, 1.0]], ["x", "y"], SEVERAL, r"row 0 .*there is 0 or 1"),
        ([[0.0, 1.0], [1.0]], ["x", "y"], SEVERAL, r"row 1 .*a list of 0 and 1, 2 of them"),
        ([["a", "b"], ["b", "a"]], ["x", "y"], SEVERAL, "every row has the same labels"),
        (["a", "b"], ["x", "y"], SEVERAL, "multi_label_classification needs a list of labels"),
    ],
)
def test_bad_rows_are_refused(label, text, problem, message) -> None:
    with pytest.raises(ValueError, match=message):
        found = rows(label, text)
        check_texts(found, problem)
        numbers_of(found, problem, class_names(found, problem))


def test_columns_are_checked() -> None:
    table = datasets.Dataset.from_dict({"text": ["x"], "label": [1]})
    with pytest.raises(ValueError, match=r"no column 'txt'.*did you mean 'text'"):
        labelled(table, "train", "txt", None, "label")
    with pytest.raises(ValueError, match="'text' is named for two things"):
        labelled(table, "train", "text", "text", "label")
    exchanged = labelled(table, "train", "label", None, "text")
    assert (exchanged.column("text"), exchanged.column("label")) == ([1], ["x"])


def test_numbers_written_as_text_stay_in_their_order() -> None:
    numbers = [str(number) for number in range(12)]
    assert label_names(sorted(numbers)) == numbers, "by the alphabet 10 is before 2"
    assert label_names(["1", "10"]) == ["1", "10"], "with gaps they are names"


def test_classes_are_two_or_more_and_without_gaps() -> None:
    with pytest.raises(ValueError, match="there is one class only"):
        label_names([1, 1])
    with pytest.raises(ValueError, match="numbered from 0 without gaps"):
        label_names([0, 2])


@pytest.mark.parametrize(
    ("label", "has_labels"),
    [
        ([-1, -1], False),
        ([-1.0, -1.0], False),
        (["", None], False),
        ([[-1, -1], [-1]], False),
        ([-1, 0], True),
        ([0.0, 0.0], True),
        ([[], []], True),
    ],
)
def test_labels_that_say_nothing_are_none(label, has_labels) -> None:
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": label})
    assert is_labelled(table, "label") == has_labels


def test_a_column_that_is_not_there_has_no_labels_unless_it_is_misspelt() -> None:
    table = datasets.Dataset.from_dict({"text": ["x"], "lable": [1]})
    assert not is_labelled(table, "stars")
    with pytest.raises(ValueError, match=r"no column 'label'.*did you mean 'lable'"):
        is_labelled(table, "label")


@pytest.mark.parametrize(
    ("problem", "text", "names", "zeros"),
    [
        (SINGLE, ["x", "y"], ["a", "b"], [0, 0]),
        (SEVERAL, ["x", "y"], ["a", "b", "c"], [[0.0] * 3, [0.0] * 3]),
        (REGRESSION, ["x", "y"], None, [0.0, 0.0]),
        (TOKENS, WORDS, ["B", "O"], [[0, 0], [0]]),
    ],
)
def test_rows_without_labels_have_the_form_of_the_others(problem, text, names, zeros) -> None:
    found = labelled(datasets.Dataset.from_dict({"body": text}), "test", "body", None, None)
    check_texts(found, problem)
    numbered = numbers_of(found, problem, names)
    assert not numbered.has_labels
    assert numbered.column("label") == zeros
