import pytest

from hf_tfopt.run.tables import duration, number, shown_value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (59.4, "59.4 s"), (60, "1 min 0 s"), (171.2, "2 min 51 s"), (11100, "3 h 5 min")],
)
def test_durations_are_said_as_people_say_them(value, text):
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (3.14159, "3.142"), (12345.6, "12,346"), (True, "True"), ("x", "x")],
)
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("embedded", "embedded"),
        ("owner/name", "owner/name"),
        ("texts/mine.txt", "texts/mine.txt"),
        ("/home/me/mine.txt", "mine.txt"),
        ("~/mine.txt", "mine.txt"),
        ("../../mine", "mine"),
        ("C:\\Users\\me\\mine.txt", "mine.txt"),
    ],
)
def test_paths_are_cut_where_they_tell_of_the_machine(value, text):
    assert shown_value("corpus", value) == text
