from hf_tfopt.pictures.events import kind_colors, marks_of
from hf_tfopt.pictures.history import Event


def test_events_of_one_kind_that_are_close_are_one_mark():
    events = [Event(n, "skipped", f"because {n}") for n in (1, 2, 3, 50)]
    events += [Event(2, "spike", "high")]
    colors = kind_colors(events)
    assert len(set(colors.values())) == 2
    marks = marks_of(events, 10, colors)
    assert [mark.told() for mark in marks] == [
        "step 1, skipped: because 1 (and 2 more until step 3)",
        "step 50, skipped: because 50",
        "step 2, spike: high",
    ]
    assert [mark.color for mark in marks] == [colors[m.events[0].kind] for m in marks]
