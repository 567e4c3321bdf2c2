"""Your own data: any columns and labels, a fair dev split, a true report, suggested settings that run."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, decoded, succeed, unwrapped, visible
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare_own
from classifier.data.dataset import load_meta, load_split
from classifier.data.labels import class_numbers, label_value
from classifier.data.own import Examples, choose_dev
from classifier.data.prepare import _print_classes, _print_row
from classifier.errors import UserError
from classifier.settings import read_settings
from prepare_own import config_text, suggest_block_size


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script's main() in an empty folder; return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, name: str = "x") -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_own.py", *map(str, arguments), "--name", name])
        prepare_own.main()
        return capsys.readouterr().out

    return run


def write(path: str, rows: list[tuple], header: str = "sentence\tsentiment") -> str:
    Path(path).write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def examples(split: str, name: str = "x") -> list[tuple[str, str, int]]:
    """A prepared split's (id, sentence, label)."""
    data = load_split(Path("data") / name, split)
    return list(zip(data.ids(), decoded(data), data.labels.tolist(), strict=True))


# -----------------------------------------------------------------------------
# labels and columns


def test_words_as_labels_are_numbered_alphabetically_or_as_asked_and_keep_their_characters(run):
    names = ["a\u200db", "complaint", "praise", "tr\u00e8s\u00a0bien", "\u0645\u06cc\u200c\u067e\u0633"]
    write("a.tsv", [("late", "complaint"), ("thanks", "praise"), *((f"text {name}", f" {name} ") for name in names)])
    write("b.tsv", [("why?", name) for name in names if name != "complaint"])
    printed = run("--train", "a.tsv", "--dev", "b.tsv")
    counts = zip([1, 2, 2, 1, 1], [1, 0, 1, 1, 1], names, strict=True)
    table = "".join(f"{train:>7} {dev:>7}  {name}\n" for train, dev, name in counts)
    assert f"\n  train     dev  label\n{table}" in printed
    assert "note: dev has fewer than 5 texts of a" in printed and "drawn at random" not in printed
    assert load_meta("data/x")["label_names"] == names
    assert examples("train")[:3] == [("1", "late", 1), ("2", "thanks", 2), ("3", "text a\u200db", 0)]
    assert [label for _, _, label in examples("dev")] == [0, 2, 3, 4]
    run("--train", "a.tsv", "--dev", "b.tsv", "--labels", *names[1:], names[0])
    assert load_meta("data/x")["label_names"] == [*names[1:], names[0]]
    assert [label for _, _, label in examples("train")] == [0, 1, 4, 0, 1, 2, 3]


def test_numbers_are_names_in_their_order_and_may_be_named(run):
    for labels, names in [
        (range(11, -1, -1), [str(i) for i in range(12)]),  # 10 and 11 come after 9, not after 1
        ([0, -1, 1], ["-1", "0", "1"]),
        (["10 stars", "1 star", "2 stars"], ["1 star", "2 stars", "10 stars"]),
        (["2.5", "10", "b"], ["2.5", "10", "b"]),
        (["0.0", "1.0", "10.0"], ["0.0", "1.0", "10.0"]),
        ("1.20 10 1.1 018 1.10 18 1.2 -1 0018".split(), "-1 1.1 1.10 1.2 1.20 10 18 018 0018".split()),
        (["+1", "1", "1.", "-1"], ["-1", "1", "+1", "1."]),
        (["x2", "x10", "2"], ["2", "x2", "x10"]),
    ]:
        write("a.tsv", [(f"text {label}", label) for label in labels])
        assert "note: taken" not in run("--train", "a.tsv", "--dev", "a.tsv")
        assert load_meta("data/x")["label_names"] == names
        assert [names[number] for _, _, number in examples("train")] == [str(label) for label in labels]
    run("--train", "a.tsv", "--dev", "a.tsv", "--labels", "x10", "2", "x2")
    assert [label for _, _, label in examples("train")] == [2, 0, 1]
    write("a.tsv", [("bad", -1), ("good", 1)])
    run("--train", "a.tsv", "--dev", "a.tsv", "--labels", "no", "yes")
    assert load_meta("data/x")["label_names"] == ["no", "yes"]


def test_one_value_in_two_spellings_is_one_class_in_all_splits(run):
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    for train, dev, names, note in [
        (["1.0", "0.0", "0"], ["0", "1.0", "1"], ["0", "1.0"], "0 and 0.0; 1 and 1.0"),
        (["true", "False", "TRUE"], ["False", "true", "True"], ["False", "TRUE"], "TRUE and True and true"),
        (["the", nfd, nfc, nfd], [nfd, "the"], [nfd, "the"], "caf\u00e9 and cafe\\u0301"),
        ([nfc, "the"], [nfd, "the"], [nfc, "the"], "caf\u00e9 and cafe\\u0301"),
    ]:
        write("a.tsv", [(f"text {i}", label) for i, label in enumerate(train)])
        write("d.tsv", [(f"other {i}", label) for i, label in enumerate(dev)])
        printed = unwrapped(run("--train", "a.tsv", "--dev", "d.tsv", "--test", "d.tsv", "--overwrite"))
        assert f"note: taken for one class: {note}: to keep them apart, rename them\n" in printed
        assert load_meta("data/x")["label_names"] == names
        assert len({label for _, _, label in examples("train")}) == 2
        assert [label for _, _, label in examples("dev")] == [0, 1, 1][: len(dev)]
        assert examples("test") == examples("dev")
        assert class_numbers([*dev, "x"], names).tolist() == [*[0, 1, 1][: len(dev)], -1]
    assert label_value("-1.0") == label_value("-1") and label_value("9" * 400) == "9" * 400


SEVERAL = " look like several labels in one. A text has one class here"
SCORES = ": each is learnt as a class of its own. If they are scores"
ALIKE = "labels that differ only in case, spaces, Unicode form or invisible characters: "
UNLABELLED = 'labels that often mean "no label" (rows): '
NOTES = {  # labels, how the note begins; "" for none
    "combinations": (["sad", "calm,sad", "angry,proud,sad", "calm,proud"], "labels such as 'calm,proud'" + SEVERAL),
    "of two classes": (["pos", "neg", "neg|pos"], "labels such as 'neg|pos'" + SEVERAL),
    "never alone": (["action; drama", "comedy; drama", "action; comedy"], "labels such as 'action; comedy'" + SEVERAL),
    "of numbers": (["27", "2,20", "4,27", "3,10", "10", "2", "3", "4"], "labels such as '3,10'" + SEVERAL),
    "lists": (["['calm']", "['calm', 'sad']"], "labels such as \"['calm', 'sad']\"" + SEVERAL),
    "many-hot": (["[0, 1, 0]", "[1, 1, 0]"], "labels such as '[0, 1, 0]'" + SEVERAL),
    "many-hot, bare": (["0 1 0", "1 1 0"], "labels such as '0 1 0'" + SEVERAL),
    "names with a comma": (["Arts, Culture", "Arts", "Arts, Music", "News, Politics"], ""),
    "names with &": (["ART", "ART & STYLE", "STYLE & ART", "HOME & LIVING", "STYLE & BEAUTY", "FOOD & TEA"], ""),
    "pairs": (["food#good", "food#bad", "service#good", "service#bad"], ""),
    "words": (["good", "very good", "not good", "very bad", "bad"], ""),
    "fractions": ([f"{i}/5" for i in range(1, 6)], ""),
    "half stars": (["1", "1,5", "2", "2,5", "3", "3,5", "4", "4,5", "5"], ""),
    "scores": ([f"{i / 20:.2f}" for i in range(101)], "101 labels are numbers from 0.00 to 5.00" + SCORES),
    "decimal commas": ([f"{i // 10},{i % 10}" for i in range(50)], "50 labels are numbers from 0,0 to 4,9" + SCORES),
    "per cent": (range(0, 101, 4), "26 labels are numbers from 0 to 100" + SCORES),
    "class numbers": ([i for i in range(77) if i not in (5, 60)], ""),
    "stars": (range(1, 31), ""),
    "codes": ([f"{i}.{j}" for i in range(1, 4) for j in range(1, 11)], ""),
    "years": (range(1990, 2021), ""),
    "case": (["Pos", "pos", "neg"], ALIKE + "Pos, pos. Each is a class of its own"),
    "invisible": (["neg", "neg\u200b", "\ufeffpos", "p\u00ados"], ALIKE + "neg, neg\\u200b; p\\xados, \\ufeffpos"),
    "spaces": (["so so", "so\u00a0so"], ALIKE + "so so, so\\xa0so. Each"),
    "ZWNJ": (["\u0645\u06cc\u200c\u067e\u0633", "\u0646\u0645\u06cc\u200c\u067e\u0633"], ""),
    "-1": ([0, 1, 2, "-1.0"], UNLABELLED + "'-1.0' (5). If they do here, leave them out with --drop_label -1.0"),
    "-1 beside words": (["pos", "neg", "-1"], UNLABELLED + "'-1' (5)"),
    "marks": (["-", "yes", "?", "N/A"], UNLABELLED + "'-' (5), '?' (5), 'N/A' (5). If they do here, leave"),
    "-1 and 1": ([-1, 1], ""),
    "-1 to 1": (["-1.0", "0.0", "+1"], ""),
    "-2 to 2": (range(-2, 3), ""),
}  # fmt: skip


@pytest.mark.parametrize("labels, note", NOTES.values(), ids=NOTES.keys())
def test_labels_that_may_not_be_what_they_seem_are_told(run, labels, note):
    write("a.tsv", [(f"text {i}", label) for i, label in enumerate([*labels] * 5)], header="text\tlabel")
    printed = unwrapped(run("--train", "a.tsv", "--dev", "a.tsv"))
    found = re.findall("^note: (labels .*|.* labels are .*|taken .*)$", printed, re.MULTILINE)
    assert len(found) == bool(note) and "".join(found).startswith(note)
    assert len(load_meta("data/x")["label_names"]) == len(labels)


def test_several_columns_of_labels_are_told_and_one_is_learnt(run):
    rows = [(f"text {i}", i % 2, "01"[i % 3 == 0], 0, i) for i in range(20)]
    write("a.tsv", rows, header="text\ttoxic\tobscene\tthreat\tlength")
    printed = unwrapped(run("--train", "a.tsv", "--dev", "a.tsv", "--label_column", "toxic"))
    assert "note: 'obscene', 'threat' are 0 or 1 in each row, as 'toxic' is. If they are labels, too: only" in printed
    with pytest.raises(UserError, match="--label_column toxic obscene: a text has one class here, so pass one column"):
        run("--train", "a.tsv", "--label_column", "toxic", "obscene")
    for names, label in (("not\tlength", "length"), ("text 2\tid", "toxic")):
        write("a.tsv", [row[:3] + row[4:] + row[4:] for row in rows], header=f"text\ttoxic\tobscene\t{names}")
        assert "are 0 or 1" not in run("--train", "a.tsv", "--dev", "a.tsv", "--label_column", label, "--overwrite")


def test_rows_without_a_label_or_with_an_unwanted_one_are_left_out_and_told(run):
    write("a.tsv", [("a", 0), ("b", 1), ("c", -1), ("d", " "), (" ", 1), ("e", 0), ("f", "-"), ("", ""), ("g", "")])
    write("t.tsv", [("x", 0), ("y", "-1.0"), ("z", "")])
    files = ["--train", "a.tsv", "--dev", "a.tsv", "--test", "t.tsv"]
    printed = unwrapped(run(*files, "--drop_label", "-1", "-", "odd"))
    assert "\na.tsv: left out 2 rows without a text: lines 6, 9\na.tsv: left out 2 rows without a label:" in printed
    assert "without a label: lines 5, 10\n" in printed
    assert "t.tsv: left out 1 row without a label: line 4\n" in printed
    assert "train: left out 2 rows labelled '-1', '-': a.tsv, line 4; line 8\n" in printed
    assert "test: left out 1 row labelled '-1.0': t.tsv, line 3\n" in printed
    assert "note: no row is labelled 'odd' (--drop_label)\n" in printed and "often mean" not in printed
    assert examples("train") == examples("dev") == [("1", "a", 0), ("2", "b", 1), ("6", "e", 0)]
    assert examples("test") == [("1", "x", 0)]
    with pytest.raises(
        UserError, match="--strict refuses a file with a note: .*left out 2 rows without a text: lines 6, 9$"
    ):
        run(*files, "--strict")
    write("t.tsv", [("x", -1), ("y", -1)])  # unlabelled, with or without the option
    assert "test: no labels\n" in run(*files, "--drop_label", "-1", "-")
    assert load_split("data/x", "test").labels is None and len(load_split("data/x", "test").ids()) == 2
    with pytest.raises(UserError, match="no row of train is left: --drop_label names all its labels"):
        run(*files, "--drop_label", "-1", "-", "0", "1")


def test_as_many_classes_as_the_model_takes(run):
    rows = [(f"text {i}", f"class {i % 2**15}") for i in range(2**16)]
    write("a.tsv", rows)
    write("d.tsv", rows[-5:])
    printed = run("--train", "a.tsv", "--dev", "d.tsv")
    assert "label_column" not in printed and load_split("data/x", "train").labels.max() == 2**15 - 1
    assert [label for _, _, label in examples("dev")] == list(range(2**15 - 5, 2**15))
    write("a.tsv", rows[: 2**15 + 5])
    assert "note: 32,768 classes in 32,773 rows: if" in run("--train", "a.tsv", "--dev", "d.tsv")
    write("a.tsv", [*rows, ("x", "one more")])
    with pytest.raises(UserError, match="a.tsv: 32,769 different labels, but there must be 2 to 32,768 classes"):
        run("--train", "a.tsv", "--dev", "d.tsv")


GOOD = [("fine", "pos"), ("dull", "neg"), ("good", "pos"), ("bad", "neg")]
REFUSED = {  # rows of a.tsv, arguments, the message
    "unknown dev label": (GOOD, ["--dev", "d.tsv"], "d.tsv, line 3: the label 'odd' is not among 'neg, pos': cor"),
    "no label in dev": (GOOD, ["--dev", "e.tsv"], "e.tsv: no row has a text and a label: choose with --text_column"),
    "looks like a class": (GOOD, ["--dev", "c.tsv"], "line 2: the label 'POS.*' is not .*: it looks like 'pos': give"),
    "label not in --labels": ([*GOOD, ("so", "meh")], ["--labels", "neg", "pos"], "--labels must list all 3 labels"),
    "label of no row": (GOOD, ["--labels", "neg", "pos", "meh"], "must list all 2 labels of a.tsv"),
    "too many names": ([("a", 0), ("b", 1)], ["--labels", "a", "b", "c"], "must list all 2 labels of a.tsv"),
    "one class": ([("a", "pos"), ("b", "pos")], [], "every label is 'pos'"),
    "one number": ([("a", "0"), ("b", "0.0")], [], "every label is '0'"),
    "no rows": ([], [], "a.tsv: no row has a text"),
    "one class besides a row without a label": ([("a", "pos"), ("b", " ")], [], "every label is 'pos'"),
    "label of control characters": ([("a", "\x1b[2J")], [], "line 2: the label .* has control characters: rename it"),
    "repeats of one": ([*GOOD, ("so", "meh"), ("so", "meh")], [], "the class 'meh' has fewer than two different texts"),
    "share too small": (GOOD, [], "only 4 different texts, too few .* the 2 classes with a share of 0.1: add texts"),
    "share": (GOOD, ["--dev_share", "0.9"], "--dev_share must be above 0 and at most 0.5"),
    "share not a number": (GOOD, ["--dev_share", "nan"], "--dev_share must be"),
    "doubled name": (GOOD, ["--labels", "a", "a"], "--labels must name"),
    "one column for two": (GOOD, ["--text_column", "sentiment"], "no column has a usual name for labels"),
    "groups without a split": (GOOD, ["--dev", "d.tsv", "--group_column", "sentence"], "--group_column only affects"),
    "a folder": (GOOD, ["--dev", "."], ". is a folder without folders"),
    "no file": (GOOD, ["--dev", "x.tsv"], "x.tsv: No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("rows, arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_and_nothing_written(run, rows, arguments, message):
    write("a.tsv", rows)
    write("d.tsv", [("fine", "pos"), ("hm", "odd")])
    write("e.tsv", [("fine", " "), ("hm", "")])
    write("c.tsv", [("fine", "POS\u200b")])
    with pytest.raises(UserError, match=message):
        run("--train", "a.tsv", *arguments)
    assert not Path("data").exists() and not Path("config").exists()


@pytest.mark.parametrize("name", ["sst", "cfimdb", "own", "..", "a/b", "a\\b", "/tmp/x", "", "A", "x.y", "ä"])
def test_a_name_that_is_taken_or_none_is_refused(run, name):
    with pytest.raises(UserError, match="--name"):
        run("--train", "a.tsv", name=name)


# -----------------------------------------------------------------------------
# dev out of train

CLASSES = st.lists(st.integers(2, 40), min_size=2, max_size=5)


def made_of(texts: list, labels: np.ndarray, groups: list = ()) -> Examples:
    texts = [f"text {text}" for text in texts]
    return Examples(texts, texts, texts, np.array(labels), [str(group) for group in groups])


@settings(max_examples=150, deadline=None)
@given(CLASSES, st.lists(st.integers(0, 10**6), max_size=60), st.floats(0.05, 0.5), st.integers(0, 2**32 - 1))
def test_the_split_is_stratified_and_keeps_repeated_sentences_together(counts, repeats, share, seed):
    classes = np.repeat(np.arange(len(counts)), counts)
    size = len(classes)
    picked = np.concatenate([np.arange(size), np.array(repeats, dtype=int) % size])
    picked = np.random.default_rng(seed).permutation(picked)
    names = [str(i) for i in range(len(counts))]
    train = made_of(picked.tolist(), classes[picked])
    try:
        in_dev = choose_dev(train, names, share, seed)
    except UserError as error:
        assert size * share <= len(counts) or "left to train on" in str(error)
        return
    sides = defaultdict(set)
    for sentence, side in zip(picked.tolist(), in_dev.tolist(), strict=True):
        sides[sentence].add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == int(np.ceil(share * size))
    for number, count in enumerate(counts):
        chosen = sum(sides[sentence] == {True} for sentence in np.flatnonzero(classes == number).tolist())
        assert abs(chosen - share * count) < 2 and chosen < count
    assert (choose_dev(train, names, share, seed) == in_dev).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.5))
def test_a_group_and_a_repeated_sentence_stay_together_and_any_share_is_met(seed, share):
    random = np.random.default_rng(seed)
    groups, texts, labels = random.integers(0, 80, 600), random.integers(0, 20_000, 600), random.integers(0, 3, 600)
    in_dev = choose_dev(made_of(texts.tolist(), labels, groups.tolist()), list("abc"), share, seed)
    for together in (groups, texts):
        assert not np.intersect1d(together[in_dev], together[~in_dev]).size
    shares = np.bincount(labels[in_dev], minlength=3) / np.bincount(labels)
    assert abs(in_dev.mean() - share) < 0.01 and (np.abs(shares - share) < 0.03).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.15, 0.3, 1 / 3, 0.37, 0.4, 0.45, 0.5])
def test_groups_of_one_size_meet_a_share_to_the_nearest_group(share):
    groups, labels = np.arange(1000) // 10, (np.arange(1000) % 2 * 32767).astype(np.int16)
    in_dev = choose_dev(made_of(range(1000), labels, groups.tolist()), ["a", "b"], share, 0)
    assert in_dev.sum() == 10 * round(100 * share) and (labels[in_dev] > 0).sum() == 5 * round(100 * share)
    assert not np.intersect1d(groups[in_dev], groups[~in_dev]).size


def test_the_only_group_of_a_class_stays_in_train():
    groups = np.repeat(np.arange(10), 10)
    for seed in range(20):
        in_dev = choose_dev(made_of(range(100), (groups == 3).astype(int), groups.tolist()), ["a", "b"], 0.5, seed)
        assert in_dev.sum() == 50 and not in_dev[groups == 3].any()
    with pytest.raises(UserError, match="no group can be dev for a share of 0.5: each is too large or has all .*: add"):
        choose_dev(made_of(range(100), groups % 2, ["one"] * 100), ["a", "b"], 0.5, 0)


def test_groups_are_a_column_and_those_that_many_repeated_sentences_tie_together_are_trained_on(run):
    """As customers who all have written "thanks": they must not become the dev split as a whole."""
    tied = [("thanks", 0, f"customer {i}") for i in range(60)]
    rows = [*tied, *((f"mail {i}", i % 2, f"other {i // 4}") for i in range(40))]
    write("a.tsv", rows, header="text\tlabel\tfrom")
    run("--train", "a.tsv", "--test", "a.tsv", "--group_column", "From")
    train, dev = examples("train"), examples("dev")
    assert 4 <= len(dev) <= 20 and "thanks" not in {text for _, text, _ in dev} and len(train) + len(dev) == 100
    train, dev = ({rows[int(id) - 1][2] for id, _, _ in part} for part in (train, dev))
    assert not train & dev


def test_the_split_loses_nothing_and_depends_on_the_seed_alone(run):
    rows = [(f"sentence {i % 180}", "abc"[i % 180 % 3]) for i in range(200)]
    write("a.tsv", rows)
    printed = run("--train", "a.tsv")
    first = visible(Path("data/x"))
    train, dev = examples("train"), examples("dev")
    assert f"dev: {len(dev)} of 200 rows, drawn at random (--dev takes a file instead)\n" in printed
    assert {int(id): (text, "abc"[label]) for id, text, label in train + dev} == dict(enumerate(rows, 1))
    assert len({text for _, text, _ in dev}) == 18 and not {text for _, text, _ in dev} & {text for _, text, _ in train}
    run("--train", "a.tsv")
    assert visible(Path("data/x")) == first
    run("--train", "a.tsv", "--seed", "1")
    assert {id for id, _, _ in examples("dev")} != {id for id, _, _ in dev}
    run("--train", "a.tsv", "--dev_share", "0.5")
    assert len({text for _, text, _ in examples("dev")}) == 90


# -----------------------------------------------------------------------------
# the report, the config file, what is replaced


def test_the_table_of_many_classes_is_a_range_and_columns_stay_apart(run, capsys):
    write("a.tsv", [(f"text {i}", f"name {i % 22}") for i in range(100)])
    write("t.tsv", [("text", "name 5")])
    printed = unwrapped(run("--train", "a.tsv", "--dev", "a.tsv", "--test", "t.tsv"))
    assert "22 classes (name 0, name 1, name 2, name 3, name 4, ...), examples of each: 4 to 5 in train" in printed
    assert "in train, 4 to 5 in dev, 0 to 1 in test\n" in printed and "  label\n" not in printed
    _print_row("train", "2,000,000,000", "30,000,000,000", [20006, 20007, 100_000, 100_000])
    counts = {"train": [12_345_678, 1], "dev": [1_234_567, 1], "test": None}
    _print_classes(counts, ["a\u200b", "b" * 100])
    assert capsys.readouterr().out.splitlines() == [
        "train 2,000,000,000 30,000,000,000 20006 20007 100000 100000",
        "test: no labels",
        "     train       dev  label",
        "12,345,678 1,234,567  a\\u200b",
        f"         1         1  {'b' * 58}",
    ]


def test_the_report_counts_repeats_conflicts_and_what_is_shared(run):
    twice = [("one", 0), ("one", 0), ("two", 0), ("two", 1), (" two", 1), ("three", 0), ("four", 1), ("five", 1)]
    write("a.tsv", twice)
    write("b.tsv", [("four", 1), ("two", 0), ("six", 0)])
    write("c.tsv", [("six",), ("six",), ("seven",)], header="sentence")
    lines = run("--train", "a.tsv", "--dev", "b.tsv", "--test", "c.tsv").splitlines()
    assert lines[2:-2] == [
        "split  examples     tokens  p50  p95  p99  max",
        "train         8          8    1    1    1    1",
        "dev           3          3    1    1    1    1",
        "test          3          3    1    1    1    1",
        "test: no labels",
        "  train     dev  label",
        "      4       2  0",
        "      4       1  1",
        "wrote data/x/",
        "sentences more than once in train: 2, with different labels: 1",
        "sentences more than once in dev: 0, with different labels: 0",
        "sentences more than once in test: 1, with different labels: 0",
        "sentences in both train and dev: 2",
        "note: results on dev will be too good, since many of its texts are in train, too",
        "sentences in both train and test: 0",
        "sentences in both dev and test: 1",
    ]
    assert lines[-2] == "wrote config/finetune_x.py: block_size 32 truncates 0.00% of the texts"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=300))
def test_the_suggested_block_size_holds_99_percent_and_no_smaller_one_does(lengths):
    lengths = np.array(lengths)
    block_size = suggest_block_size(lengths)
    assert block_size % 32 == 0 and 32 <= block_size <= 1024
    assert block_size == 1024 or (lengths <= block_size).mean() >= 0.99
    assert block_size == 32 or (lengths <= block_size - 32).mean() < 0.99


@pytest.mark.parametrize(
    "count, length, expected",  # block_size, batch_size, accumulation, epochs, warm-up
    [
        (878, 20, (32, 32, 1, 10, 17)),
        (1_999, 40, (64, 32, 1, 10, 38)),
        (2_000, 97, (128, 32, 1, 4, 15)),
        (50_000, 300, (320, 8, 4, 4, 375)),
        (50_001, 100, (128, 32, 2, 2, 94)),
        (1_000_000, 2000, (1024, 4, 32, 2, 938)),
    ],
)
def test_the_config_file_loads_and_fits_the_data(tmp_path, count, length, expected):
    path = tmp_path / "config.py"
    counts = np.array([count - 2, 1, 1]) if count > 50_000 else np.array([count // 2, count // 9, count // 3])
    path.write_text(config_text("x", counts, np.full(count, length)))
    loaded = read_settings(str(REPO / "finetune.py"), [str(path)])
    names = ["block_size", "batch_size", "gradient_accumulation_steps", "epochs", "warmup_steps"]
    assert tuple(getattr(loaded, name) for name in names) == expected
    assert (loaded.data_dir, loaded.out_dir) == ("data/x", "out-x")
    assert (loaded.learning_rate, loaded.lr_schedule) == (3e-5, "cosine")
    unbalanced = ("balanced", "macro_f1") if count > 50_000 else ("none", "accuracy")
    assert (loaded.class_weights, loaded.best_by) == unbalanced


def test_a_second_run_renews_the_data_and_keeps_the_config(run):
    write("a.tsv", GOOD)
    run("--train", "a.tsv", "--dev", "a.tsv")
    config = Path("config/finetune_x.py")
    written = config.read_text()
    config.write_text(written + "dropout = 0.1\n")
    write("a.tsv", [*GOOD, ("new", "pos")])
    printed = run("--train", "a.tsv", "--dev", "a.tsv")
    assert "kept config/finetune_x.py, which may have your changes" in printed
    assert config.read_text() == written + "dropout = 0.1\n" and len(examples("train")) == 5
    write("other.tsv", GOOD[:3])
    run("--train", "a.tsv", "--dev", write("caf\udce9.tsv", GOOD), name="y")  # a name that is not UTF-8
    before = visible(Path("data/x"))
    for train, *dev in (("other.tsv", "--dev", "a.tsv"), ("a.tsv", "--dev", "other.tsv"), ("other.tsv",)):
        found = f"data/x was prepared from sentence of a.tsv, not from sentence of {train}"
        found += f", with {dev[-1]} as dev: choose" if dev else ": choose"
        with pytest.raises(UserError, match=re.escape(found)):
            run("--train", train, *dev)
    assert visible(Path("data/x")) == before
    run("--train", "other.tsv", "--dev", "a.tsv", "--overwrite")
    assert "dropout" not in config.read_text() and len(examples("train")) == 3


def test_somebody_elses_folder_and_a_config_that_is_no_file_are_left_alone(run):
    write("a.tsv", GOOD)
    Path("data/x").mkdir(parents=True)
    Path("data/x/train.bin").write_text("nanoGPT's")
    with pytest.raises(UserError, match="data/x was prepared from unknown files, not from"):
        run("--train", "a.tsv", "--dev", "a.tsv")
    assert Path("data/x/train.bin").read_text() == "nanoGPT's"
    Path("config/finetune_y.py").mkdir(parents=True)
    with pytest.raises(UserError, match="something other than a file is there"):
        run("--train", "a.tsv", "--dev", "a.tsv", name="y")
    assert not Path("data/y").exists()


def test_from_a_file_to_a_trained_model(tmp_path):
    sample = REPO / "data" / "sample" / "train.tsv"
    printed = succeed("prepare_own.py", "--train", sample, "--name", "mine", cwd=tmp_path)
    assert printed.endswith("next: python finetune.py config/finetune_mine.py\n")
    assert all(len(line) <= 80 for line in printed.splitlines())
    config = (tmp_path / "config" / "finetune_mine.py").read_text()
    assert 'init_from = "gpt2"\n' in config
    (line,) = re.findall("^# python (finetune.py config/finetune_mine.py .*)$", config, re.MULTILINE)
    printed = succeed(*line.split(), "--max_steps=2", cwd=tmp_path)  # it needs no weights
    assert "790 train and 88 dev examples" in printed and (tmp_path / "out-mine" / "best.pt").is_file()
