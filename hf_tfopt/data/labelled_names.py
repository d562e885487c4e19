"""What can be learnt from rows with labels, by name: the host's names, and tags of words."""

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
REGRESSION, TOKENS = "regression", "token_classification"
PROBLEMS = (SINGLE, SEVERAL, REGRESSION, TOKENS)
NO_LABELS = "none"  # the fact "labels" of rows that are predicted, and not examined on
