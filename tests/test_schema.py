"""Stored content is taken only in the shape that was asked for, and what is wrong is named."""

import math

from hypothesis import given
from hypothesis import strategies as st

from classifier.checkpoint import CONTENT
from classifier.schema import EVALUATION, are_names, is_count, misfit

SCHEMA = {"name": str, "counts": {"all": int, "left": is_count}, "is_done": bool, "rest": dict}
WHOLE = {"name": "a", "counts": {"all": -1, "left": 0}, "is_done": False, "rest": {"x": 1}, "more": None}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
)


def test_the_first_part_that_does_not_fit_is_named():
    assert misfit(WHOLE, SCHEMA) is None
    for key, value, name in [
        ("name", 3, "name"),
        ("name", None, "name"),
        ("counts", [], "counts"),
        ("counts", {"left": 1}, "counts.all"),
        ("counts", {"all": True, "left": 1}, "counts.all"),
        ("counts", {"all": 1, "left": -1}, "counts.left"),
        ("counts", {"all": 1, "left": 2**53}, "counts.left"),
        ("is_done", 0, "is_done"),
        ("rest", [], "rest"),
    ]:
        assert misfit(WHOLE | {key: value}, SCHEMA) == name
    for key in SCHEMA:
        assert misfit({other: value for other, value in WHOLE.items() if other != key}, SCHEMA) == key
    assert misfit([], SCHEMA) == ""


def test_names_can_be_printed_and_counts_are_whole_numbers():
    assert are_names(["a", "b c"]) and are_names([])
    assert not any(map(are_names, ["ab", ("a",), ["a\x1b"], [1], None]))
    assert is_count(0) and not any(map(is_count, [True, 1.0, -1, math.inf, "1", None]))


def test_the_best_of_a_run_has_figures_that_can_be_printed():
    best = {"step": 7, "epoch": 0.5, "accuracy": 0.75, "loss": math.inf}  # within an epoch, and of a run that diverged
    assert misfit(best, EVALUATION) is None
    for key in EVALUATION:
        for value in (None, True, 10**400, "1", -1, [1], math.nan):
            assert misfit(best | {key: value}, EVALUATION) == key


@given(ANYTHING, st.sampled_from(sorted(CONTENT)), st.data())
def test_anything_in_a_checkpoint_s_place_is_told_from_what_fits(content, part, data):
    assert misfit(content, CONTENT) is not None  # never a traceback
    schema = CONTENT[part]
    key = data.draw(st.sampled_from(sorted(schema))) if isinstance(schema, dict) else None
    crafted = {part: {key: content} if key else content}
    found = misfit(crafted, {part: {key: schema[key]} if key else schema})
    assert found in (None, part, f"{part}.{key}") or found.startswith(f"{part}.{key}.")
