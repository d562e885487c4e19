"""What a person who watches a run sees of what takes long."""

import datasets
import pytest
from datasets.utils import is_progress_bar_enabled

from hf_tfopt.run.progress import progress_where_long


@pytest.mark.parametrize("was_shown", [False, True])
@pytest.mark.parametrize(("num_bytes", "is_long"), [(10 << 10, False), (1 << 30, True)])
def test_much_text_shows_its_progress_whatever_was_told(
    was_shown: bool, num_bytes: int, is_long: bool
) -> None:
    before = is_progress_bar_enabled()
    tell = {True: datasets.enable_progress_bars, False: datasets.disable_progress_bars}
    tell[was_shown]()
    try:
        with pytest.raises(KeyError), progress_where_long(num_bytes):
            assert is_progress_bar_enabled() == (was_shown or is_long)
            raise KeyError
        assert is_progress_bar_enabled() == was_shown
    finally:
        tell[before]()
