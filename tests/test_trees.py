"""SST's trees: every phrase as the TSV files would write it, and none that reads as a sentence of dev or test."""

import numpy as np
import pytest
from conftest import succeed
from hypothesis import given
from hypothesis import strategies as st

import prepare_sst
from classifier.data.dataset import load_meta, load_split
from classifier.data.own import Examples, read_course_file
from classifier.data.trees import read_trees, with_phrases
from classifier.errors import UserError

HEADER = "id\tsentence\tsentiment\n"
WORDS = st.text("abé`'.\\/\u00a0", min_size=1, max_size=3)
TREES = st.recursive(
    st.tuples(st.integers(0, 4), WORDS),
    lambda parts: st.tuples(st.integers(0, 4), st.lists(parts, min_size=1, max_size=3)),
    max_leaves=12,
)


def written(tree) -> str:
    label, content = tree
    inside = content if isinstance(content, str) else " ".join(map(written, content))
    return f"({label} {inside})"


def phrases(tree) -> list[tuple[str, int]]:
    """A tree's phrases by recursion: those of its parts, and then itself."""
    label, content = tree
    if isinstance(content, str):
        return [(" " + content, label)]
    parts = [phrases(part) for part in content]
    return sum(parts, []) + [("".join(part[-1][0] for part in parts), label)]


@given(st.lists(TREES, min_size=1, max_size=3))
def test_trees_are_read_as_their_phrases(tmp_path_factory, trees):
    path = tmp_path_factory.mktemp("trees") / "trees.txt"
    path.write_text("".join(written(tree) + "\n" for tree in trees), encoding="utf-8", newline="\n")
    assert list(read_trees(path)) == [phrases(tree) for tree in trees]


@pytest.mark.parametrize(
    "line", [b"", b"fine", b"(2 fine", b"(5 fine)", b"(x fine)", b"(", b")", b"(2 a))", b"(2 (3 a) \xff)", b"(12 a)"]
)
def test_what_is_no_tree_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "trees.txt").write_bytes(b"(2 (2 a) (1 b))\n" + line + b"\n(3 c)\n")
    with pytest.raises(UserError, match="trees.txt, line 2: not a tree"):
        list(read_trees(tmp_path / "trees.txt"))


def test_a_tree_of_any_depth_is_read(tmp_path):
    (tmp_path / "trees.txt").write_text("(2 " * 5000 + "a" + ")" * 5000)
    (tree,) = read_trees(tmp_path / "trees.txt")
    assert tree == [(" a", 2)] * 5000


@pytest.fixture
def source(tmp_path):
    """Files of two training sentences, their trees, and one sentence each for dev and test."""
    rows = {"train": "7\t A good film .\t3\n9\t -LRB- Bad -RRB- film\t0\n", "dev": "1\t GOOD!\t4\n"}
    for split, text in rows.items():
        (tmp_path / f"{split}.tsv").write_text(HEADER + text)
    (tmp_path / "test.tsv").write_text("id\tsentence\n1\t ( film . )\n")
    trees = "(3 (2 A) (3 (3 (3 good) (2 film)) (2 .)))\n(0 (1 (2 -LRB-) (1 (0 Bad) (2 -RRB-))) (1 film))\n"
    (tmp_path / "trees.txt").write_text(trees)
    return tmp_path


def phrased(source) -> Examples:
    files = {split: source / f"{split}.tsv" for split in ("train", "dev", "test")}
    splits = {
        split: read_course_file(path, prepare_sst.COLUMNS, list("01234"), split == "test")
        for split, path in files.items()
    }
    return with_phrases(splits, source / "trees.txt")


def test_phrases_follow_the_sentences_but_for_what_reads_as_a_sentence(source):
    # "good" is in dev, "film" in test; "film" has another label in the second tree; "." has no letter
    found = phrased(source)
    assert list(zip(found.ids, found.texts, found.labels, strict=True)) == [
        ("7", " A good film .", 3),
        ("9", " -LRB- Bad -RRB- film", 0),
        ("7/1", " A", 2),
        ("7/4", " good film", 3),
        ("7/6", " good film .", 3),
        ("9/2", " Bad", 0),
        ("9/4", " Bad -RRB-", 1),
        ("9/5", " -LRB- Bad -RRB-", 1),
    ]


def test_trees_of_other_sentences_are_refused(source):
    text = (source / "trees.txt").read_text()
    for before, after, message in (
        ("(2 A)", "(2 The)", "line 1: not the tree of .*train.tsv, line 2"),
        ("(0 (1 (2 -LRB-)", "(1 (1 (2 -LRB-)", "line 2: not the tree of .*train.tsv, line 3"),
        ("film))\n", "film))\n(2 more)\n", "has 3 trees, but there are 2 sentences"),
    ):
        (source / "trees.txt").write_text(text.replace(before, after))
        with pytest.raises(UserError, match=message):
            phrased(source)


def test_the_real_trees_give_the_counted_phrases(tsv_dir, tmp_path):
    if not (tsv_dir / "trees" / "train.txt").is_file():
        pytest.skip("needs SST's trees: TSV_DIR has no trees/train.txt")
    succeed("prepare_sst.py", "--source", tsv_dir, cwd=tmp_path)
    printed = succeed("prepare_sst.py", "--phrases", "--source", tsv_dir, cwd=tmp_path)
    assert "note" not in printed and "wrote data/sst-phrases/" in printed
    folder = tmp_path / "data" / "sst-phrases"
    meta, alone = load_meta(folder), load_meta(tmp_path / "data" / "sst")
    assert meta["splits"]["train"]["examples"] == 8544 + 147_818
    counts, own_counts = (np.array(each["splits"]["train"]["label_counts"]) for each in (meta, alone))
    assert (counts - own_counts).tolist() == [5800, 24_788, 79_369, 30_260, 7601]
    for split in ("dev", "test"):
        assert meta["splits"][split] == alone["splits"][split]
    # what is prepared never changes
    files = meta["splits"]["train"]["files"]
    assert files["train.bin"] == "fa6f5321ce7a83f789bacda12b8e15b34ff4c5dbe0bd02e030b30cd163752664"
    assert files["train.ids.txt"] == "453d45727a1600d989aa0b36fb8a84cf92c18d2011475187d31be73394453022"
    whole, own = load_split(folder, "train"), load_split(tmp_path / "data" / "sst", "train")
    assert (whole.tokens[: len(own.tokens)] == own.tokens).all() and whole.ids()[:8544] == own.ids()
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "data" / "sst").iterdir()}
