"""Treebank tokens become text as a good typist would have written it."""

import csv
import re

import pytest
from conftest import decoded, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.data.dataset import load_meta, load_split
from classifier.data.detokenize import detokenize

LINES = [
    (" It 's a film that ca n't lose , and you 'll love it .", " It's a film that can't lose, and you'll love it."),
    (" `` Slow , '' she said , `` but never dull . ''", ' "Slow," she said, "but never dull."'),
    (" The ` big ' twist -LRB- if it is one -RRB- is late .", " The 'big' twist (if it is one) is late."),
    ("-LSB- He -RSB- said : `` We 're done . ''", '[He] said: "We\'re done."'),
    (" A writer\\/director 's dream , or half of one .", " A writer/director's dream, or half of one."),
    (" What the \\*\\*\\*\\* was that ?", " What the **** was that?"),
    (" It stumbles ... and then it flies .", " It stumbles... and then it flies."),
    (" ... a mess .", " ...a mess."),
    (" It starts well ...", " It starts well..."),
    (" The plot -- what there is of it -- is thin .", " The plot -- what there is of it -- is thin."),
    ("I 'm gon na stay , and you 've got ta go .", "I'm gonna stay, and you've gotta go."),
    (" One can not help but smile .", " One cannot help but smile."),
    (" It cost $ 40 ; 90 % of it was wasted !", " It cost $40; 90% of it was wasted!"),
    (" The actors ' best work ; the critics ' worst day .", " The actors' best work; the critics' worst day."),
    (" Songs of the ' 60s and the '70s", " Songs of the '60s and the '70s"),
    # cut up and quoted as in CFIMDB
    (" A non - stop , low - budget , up - to - date film .", " A non-stop, low-budget, up-to-date film."),
    (" It was fun - the best of the year .", " It was fun - the best of the year."),
    (" He calls it ' The End ' , and so it is .", " He calls it 'The End', and so it is."),
    (' """ I liked "" "" Dawn "" "" a lot , did n\'t you ? """', ' I liked "Dawn" a lot, didn\'t you?'),
    (" * * * * , or 10 / 10 ! ( Twice . )", " ****, or 10/10! (Twice.)"),
]


@pytest.mark.parametrize("before, after", LINES)
def test_text_as_a_good_typist_writes_it(before, after):
    assert detokenize(before) == after


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(" abs.,'`\"-/\\*()<>$0…\xa0"), min_size=1).filter(str.strip))
def test_no_text_vanishes_and_a_leading_space_stays(text):
    result = detokenize(text)
    assert result.strip() and result.startswith(" ") == text.startswith(" ")


@pytest.mark.parametrize("task", ["sst", "cfimdb"])
def test_little_of_the_treebank_is_left_in_the_real_data(tsv_dir, tmp_path, task):
    succeed(f"prepare_{task}.py", "--source", tsv_dir, "--detokenize", cwd=tmp_path)
    folder = tmp_path / "data" / task
    assert load_meta(folder)["detokenized"] is True
    before, after = [], []
    for split, name in [("train", "train"), ("dev", "dev"), ("test", "test-student")]:
        after += decoded(load_split(folder, split))
        with open(tsv_dir / f"ids-{task}-{name}.csv", encoding="utf-8", newline="") as f:
            before += [row["sentence"] for row in csv.DictReader(f, delimiter="\t")]
    # nothing but spaces inside, quotes and the Treebank's own signs is changed
    for a, b in zip(before, after, strict=True):
        assert (a[0] == " ") == (b[0] == " ")
        a = re.sub("-L[RSC]B-", "(", re.sub("-R[RSC]B-", ")", a))
        assert re.sub(r"[^\w().,!?;:]", "", a) == re.sub(r"[^\w().,!?;:]", "", b)
    treebank = ["``", "''", r"-[LR][RSC]B-", r"\w n't\b", r"\w '(s|re|ve|ll|m|d)\b", r"\\/", r"\\\*", r"\( ", r" \)"]
    treebank += [r"\w ,", r"\w \?", r"\w !", r"\w \.(?!\S)", r"\bgon na\b", r"\bgot ta\b", r"\bcan not\b"]
    for pattern in treebank:
        assert not [text for text in after if re.search(pattern, text)], pattern
