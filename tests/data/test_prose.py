"""What stays of documentation in each of the styles it is written in."""

import pytest

from hf_tfopt.data.prose import is_english, paragraphs

NUMPY = """
    Compute the weighted average along the given axis.

    Parameters
    ----------
    a : array_like
        The array that has the data to be averaged.
    weights : array_like, optional
        The weights of the values, which are all
        equal to one when nothing is given.

    Returns
    -------
    average : float
        The average along the axis that was given.

    See Also
    --------
    mean : The same with equal weights for all of the values.

    Notes
    -----
    It is slower than the mean, as described in [1]_ and in :func:`~numpy.mean`.

    .. math:: \\sum_i a_i and other things that are not words

    .. versionadded:: 1.2
       This is said to nobody in the text that is read here.

    .. note:: This note is for all of the readers.

    >>> average([1, 2])
    1.5

    ======  ======
    a       the b
    ======  ======
    """

GOOGLE = """Load a model that was saved to disk.

    <Tip warning={true}>

    It does not run any code of the model.

    </Tip>

    Args:
        path (`str` or `os.PathLike`):
            The folder in which the model was saved with [`~PreTrainedModel.save_pretrained`].
        strict (`bool`, *optional*, defaults to `True`): Whether or not to
            refuse a file that has other weights.
        **kwargs:
            All of the others, see the [documentation](https://example.org/a_b).

    Returns:
        [`PreTrainedModel`]: The model that was read from the file.

    Example:

    ```python
    # the code that is not read here
    model = load("a")
    ```

    Write to someone@example.org if you want to have more of it.
    See https://example.org for all of the rest.
    """

REST = """Send a **request** to the server and wait for its ``answer``.

    The whole of it is done as follows::

        send() and receive() as shown in the code

    * the first of the items in a list
    * the second, which goes on
      in the next line

    :param url: the address that the request is sent to
    :type url: str
    :returns: what the server has to say to it
    :rtype: str
    """


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            NUMPY,
            [
                ["Compute the weighted average along the given axis."],
                ["The array that has the data to be averaged."],
                ["The weights of the values, which are all equal to one when nothing is given."],
                ["The average along the axis that was given."],
                ["It is slower than the mean, as described in and in numpy.mean."],
                ["This note is for all of the readers."],
            ],
        ),
        (
            GOOGLE,
            [
                ["Load a model that was saved to disk."],
                ["It does not run any code of the model."],
                ["The folder in which the model was saved with PreTrainedModel.save_pretrained."],
                ["Whether or not to refuse a file that has other weights."],
                ["All of the others, see the documentation."],
                ["The model that was read from the file."],
            ],
        ),
        (
            REST,
            [
                ["Send a request to the server and wait for its answer."],
                ["The whole of it is done as follows"],
                ["the first of the items in a list"],
                ["the second, which goes on in the next line"],
                ["the address that the request is sent to"],
                ["what the server has to say to it"],
            ],
        ),
    ],
    ids=["numpy", "google", "rest"],
)
def test_sentences_stay_and_the_rest_goes(text: str, expected: list[list[str]]) -> None:
    assert paragraphs(text) == expected


def test_sentences_are_told_apart() -> None:
    text = 'It is one, e.g. The first. "Is it the second?" It is (or was) the third! so it is.'
    assert paragraphs(text) == [
        ["It is one, e.g. The first.", '"Is it the second?" It is (or was) the third! so it is.']
    ]


@pytest.mark.parametrize("text", ["", "\n \n", ">>> 1\n1", "```\ncode", "x" * 1000, ".. a::", "|"])
def test_nothing_to_read_gives_nothing(text: str) -> None:
    assert paragraphs(text) == []


@pytest.mark.parametrize(
    ("sentence", "english"),
    [
        ("This is an English sentence about the weather.", True),
        ("Returns the `first` of them, if there is one (or None).", True),
        ("Dies ist ein deutscher Satz ohne jedes andere Wort.", False),
        ("for i in range(10): x[i] = y[i] + z[i] * 2", False),
        ("batch_size num_heads query_length head_dim", False),
        ("Copyright 2020 The Authors, who have all of the rights.", False),
        ("{input} is what is given to it", False),
        ("Too short", False),
    ],
)
def test_what_counts_as_english(sentence: str, english: bool) -> None:
    assert is_english(sentence) == english
