"""export_hf.py: transformers' own pipeline, offline, has to give our probabilities; and the folder comes back to us."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BLOCK_SIZE, random_model, refuse, save, succeed, transformers_model, visible
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

import export_hf
import prepare_sst
from classifier.answers.models import Classifier
from classifier.data.dataset import load_meta, load_split
from classifier.data.own import read_course_file
from classifier.data.tokenizer import load_tokenizer
from classifier.errors import UserError, printable
from classifier.gpt2 import load_gpt2
from classifier.training.batches import Texts
from classifier.training.predict import loss_and_accuracy, predict
from model import GPT, Batch, GPTConfig

NAMES = ["very bad", "bad", "so-so", "good", "very good"]
EXPORT = ["--ckpt=best.pt", "--out=hf"]
ENCODING = load_tokenizer()
ODD_TEXTS = [
    "A lovely film.",
    " A lovely film.",
    "   three spaces, and some at the end   ",
    "\ttab\tand\u00a0no-break space\u3000and an ideographic one",
    "<|endoftext|>",
    "before<|endoftext|>after <|endoftext|>",
    "👩‍👩‍👧‍👦 🇨🇭 👍🏽 love it!!! 😍",
    "这部电影真好看。 とても面白い 정말 좋아요",
    "naïve café e\u0301 ﬁlm \u202eright to left\u202c \x00\x1b[2J",
    "It 's n't they'll I'VE 1,234.56 ½ ²",
    "a",
    " ",
    "word " * 300,
    "x" * 1000,
]


def export(*words: object) -> None:
    """export_hf.py's main in this process: importing PyTorch anew for every call would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export_hf.py", *map(str, words)])
        export_hf.main()


def exported(folder: Path, model: GPT, data: dict = {}, **parts: dict) -> Path:  # noqa: B006
    export("--ckpt", save(folder / "best.pt", model, data, **parts), "--out", folder / "hf")
    return folder / "hf"


def pipeline(folder: Path):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.pipeline("text-classification", model=str(folder), device="cpu")


def pipeline_probabilities(folder: Path, names: list[str], texts: list[str]) -> torch.Tensor:
    """What transformers' pipeline says of the texts, in padded batches: (texts, classes)."""
    rows = pipeline(folder)(texts, batch_size=16, top_k=None, truncation=True)
    by_name = [{entry["label"]: entry["score"] for entry in row} for row in rows]
    return torch.tensor([[row[name] for name in names] for row in by_name])


def our_tokens(text: str, leading_space: bool, prompt: list[int], block_size: int, keep: str = "last") -> list[int]:
    """The tokens that the README promises, computed by hand."""
    tokens = ENCODING.encode_ordinary(" " + text if leading_space and not text.startswith(" ") else text)
    room = block_size - len(prompt)
    return (tokens[-room:] if keep == "last" else tokens[:room]) + prompt


def assert_same(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    assert ours.std(0).max() > 0.03  # the comparison is about something
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


# -----------------------------------------------------------------------------
# the same probabilities


def test_the_pipeline_has_our_probabilities_over_the_dev_set_of_the_sample(prepared_sample, tmp_path):
    folder = prepared_sample / "data" / "sample"
    meta, model = load_meta(folder), random_model(2)
    data = {"label_names": meta["label_names"], "leading_space": meta["splits"]["train"]["leading_space"]}
    save(tmp_path / "best.pt", model, data)
    printed = succeed("export_hf.py", *EXPORT, cwd=tmp_path)
    assert 'pipeline("text-classification", "hf", truncation=True)' in printed
    split = load_split(folder, "dev")
    assert (np.diff(split.offsets) > BLOCK_SIZE).sum() > 10  # some are cut
    ours = predict(model, Texts(split, model), torch.float32).softmax(-1)
    texts = read_course_file(folder / "dev.tsv", prepare_sst.COLUMNS, ["0", "1"]).texts
    theirs = pipeline_probabilities(tmp_path / "hf", meta["label_names"], texts)
    assert_same(theirs, ours)


@pytest.mark.parametrize(
    "leading_space, prompt, keep",
    [(False, " It was", "last"), (True, "\n\nThe film was 👍 <|endoftext|> or", "last"), (True, " It was", "first")],
)
def test_odd_texts_become_our_tokens_and_have_our_probabilities(tmp_path, leading_space, prompt, keep):
    model, ending = random_model(), ENCODING.encode_ordinary(prompt)
    data = {"label_names": NAMES, "leading_space": leading_space}
    folder = exported(tmp_path, model, data, settings={"prompt": prompt, "keep": keep})
    sequences = [our_tokens(text, leading_space, ending, BLOCK_SIZE, keep) for text in ODD_TEXTS]
    tokens = pipeline(folder).tokenizer(ODD_TEXTS, truncation=True)
    assert tokens["input_ids"] == sequences and set(tokens) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        batches = [Batch.from_padded(torch.tensor([tokens]), torch.tensor([len(tokens)])) for tokens in sequences]
        alone = [model(batch).softmax(-1)[0] for batch in batches]
    assert_same(pipeline_probabilities(folder, NAMES, ODD_TEXTS), torch.stack(alone))
    classifier = Classifier.load(tmp_path / "best.pt", "cpu", "float32")
    assert_same(classifier.logits(classifier.tokenize(ODD_TEXTS)).softmax(-1).float(), torch.stack(alone))


@pytest.fixture(scope="module")
def their_tokenizers(tmp_path_factory):
    """What transformers loads, by leading_space and prompt."""
    found = {}
    for key in [(True, ""), (False, " It was")]:
        data, settings = {"leading_space": key[0]}, {"prompt": key[1]}
        folder = exported(tmp_path_factory.mktemp("hf"), random_model(), data, settings=settings)
        found[key] = pipeline(folder).tokenizer
    return found


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=80))
def test_any_text_becomes_our_tokens_and_these_the_text(their_tokenizers, text):
    assert ENCODING.decode(ENCODING.encode_ordinary(text)) == text
    for (leading_space, prompt), tokenizer in their_tokenizers.items():
        expected = our_tokens(text, leading_space, ENCODING.encode_ordinary(prompt), BLOCK_SIZE)
        assert tokenizer(text, truncation=True)["input_ids"] == expected


@pytest.mark.parametrize("scale", [0, 30])
def test_a_large_bias_changes_no_logit(tmp_path, scale):
    from transformers import GPT2ForSequenceClassification

    model = random_model()
    with torch.no_grad():
        model.head.bias.copy_(scale * torch.tensor([1, -0.3, 0.5, 0, 0.9]))  # and they do not sum to 0
    theirs = GPT2ForSequenceClassification.from_pretrained(exported(tmp_path, model)).eval()
    tokens = torch.randint(50256, (8, BLOCK_SIZE))
    with torch.no_grad():
        ours = model(Batch.from_padded(tokens, torch.full((8,), BLOCK_SIZE)))
        torch.testing.assert_close(theirs(tokens).logits, ours, atol=2e-5, rtol=0)
        if scale == 0:
            assert torch.equal(theirs.transformer.ln_f.bias, model.ln_f.bias)


def test_a_bias_that_the_layernorm_cannot_take_is_refused(tmp_path):
    model = random_model()
    with torch.no_grad():
        model.head.weight[3] = model.head.weight[1] + model.head.weight[0]
        model.head.bias.copy_(torch.tensor([0.5, 0.25, 0.0, 0.75, 1.0]))
    exported(tmp_path, model)  # this bias it can take
    model.head.bias.data[3] += 0.01
    with pytest.raises(UserError, match=r"a logit would be off by 3.3e-03, since the rows of head.weight"):
        export("--ckpt", save(tmp_path / "best.pt", model), "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=r"n_embd \(4\) at least the number of classes \(6\)"):
        export("--ckpt", save(tmp_path / "narrow.pt", random_model(6, n_embd=4)), "--out", tmp_path / "other")


# -----------------------------------------------------------------------------
# back into our model


def test_an_exported_folder_loads_back_with_the_same_logits(tmp_path):
    model = random_model()
    ours = load_gpt2(str(exported(tmp_path, model)), num_classes=5).eval()
    assert ours.config == GPTConfig(5, BLOCK_SIZE, 50257, 2, 4, 32) and not ours.head.bias.any()
    batch = Batch.from_padded(torch.randint(50257, (8, BLOCK_SIZE)), torch.arange(1, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), model(batch), atol=1e-5, rtol=0)
    again = load_gpt2(str(tmp_path / "hf"), num_classes=5)
    export("--ckpt", save(tmp_path / "again.pt", again), "--out", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "hf/model.safetensors").read_bytes()


def test_finetune_starts_from_an_exported_folder(workspace):
    model = random_model(2)
    exported(workspace, model, {"label_names": ["negative", "positive"]})
    split = load_split(workspace / "data" / "sample", "dev")
    loss, accuracy = loss_and_accuracy(predict(model, Texts(split, model), torch.float32), split.labels)
    printed = succeed("finetune.py", "--data_dir=data/sample", f"--block_size={BLOCK_SIZE}", "--max_steps=1",
                      "--gradient_accumulation_steps=1", "--dtype=float32", "--learning_rate=1e-12", "--init_from=hf",
                      cwd=workspace)  # fmt: skip
    assert f"dev accuracy {accuracy:.3f}, loss {loss:.4f}" in printed and "note: the head" not in printed
    export("--ckpt", workspace / "out" / "best.pt", "--out", workspace / "hf2")  # a checkpoint as finetune.py wrote it
    card = (workspace / "hf2" / "README.md").read_text()
    assert f"Accuracy **{accuracy:.3f}**" in card


def load(folder: Path, label_names: str, **options) -> GPT:
    return load_gpt2(str(folder), len(label_names), label_names=list(label_names), **options)


def test_a_classifier_of_transformers_loads_where_its_classes_fit(tmp_path, capsys):
    theirs = transformers_model("GPT2ForSequenceClassification")
    theirs.config.id2label = dict(enumerate("abcde"))
    theirs.save_pretrained(tmp_path / "hf")
    assert torch.equal(load(tmp_path / "hf", "abcde").head.weight, theirs.score.weight)
    assert not capsys.readouterr().out
    load(tmp_path / "hf", "abcdx")
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: the head's classes in" in printed and "a, b, c, d, e, now stand for a, b, c, d, x" in printed
    with pytest.raises(UserError, match="has the classes in the order a, b, c, d, e, but the data has a, b, c, e, d"):
        load(tmp_path / "hf", "abced")
    with pytest.raises(UserError, match="is for 5 classes, and the data has 2: .*--new_head=True"):
        load(tmp_path / "hf", "ab")
    for label_names in ("ba", "abced"):  # as the messages say
        model = load(tmp_path / "hf", label_names, new_head=True)
        assert torch.equal(model.wte.weight, theirs.transformer.wte.weight)
    theirs.config.id2label = {number: f"LABEL_{number}" for number in range(5)}  # they say nothing
    theirs.save_pretrained(tmp_path / "hf")
    capsys.readouterr()
    load(tmp_path / "hf", "edcba")
    assert not capsys.readouterr().out


# -----------------------------------------------------------------------------
# the folder


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "best.pt", random_model())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    words = ["export_hf.py", "--ckpt=out/best.pt", "--out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")  # one of our names makes no export
    problems = {"file": "--out file is a file", "out": "out contains other files (best.pt): name a new folder"}
    problems["mine"] = "mine contains other files (README.md): name a new folder"
    for out, message in (problems | {"nowhere/hf": "cannot write nowhere/hf: No such file or directory"}).items():
        assert message in refuse(*words, out, "--overwrite", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine", "out"]
    succeed(*words, "empty", cwd=tmp_path)
    before = visible(tmp_path / "empty")
    assert {path.stat().st_mode for path in (tmp_path / "empty").iterdir()} == {(tmp_path / "file").stat().st_mode}
    message = refuse(*words, "empty", cwd=tmp_path)
    assert "empty contains an exported model: name another folder, or add --overwrite" in message
    assert visible(tmp_path / "empty") == before


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path):  # or, on a full disk, not at all: test_faults.py
    words = ["--ckpt", save(tmp_path / "best.pt", random_model()), "--out", tmp_path / "hf", "--overwrite"]
    export(*words)
    (tmp_path / ".hf.tmp").mkdir()  # a writer was killed
    (tmp_path / ".hf.tmp" / "half").touch()
    save(tmp_path / "best.pt", random_model(3))
    export(*words)
    before = visible(tmp_path / "hf")
    assert before.keys() == export_hf.FILES and len(json.loads(before["config.json"])["id2label"]) == 3
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "hf"]


def test_another_vocabulary_than_gpt2s_is_refused(tmp_path):
    with pytest.raises(UserError, match="has 100 tokens, fewer than GPT-2's 50,257"):
        exported(tmp_path, GPT(GPTConfig(2, 8, 100, 1, 1, 8)))
    assert os.listdir(tmp_path) == ["best.pt"]


# -----------------------------------------------------------------------------
# the model card


def card(folder: Path, model: GPT, data: dict = {}, **parts: dict) -> ModelCard:  # noqa: B006
    return ModelCard.load(exported(folder, model, data, **parts) / "README.md")


def test_the_card_tells_what_is_known(tmp_path):
    settings = {"init_from": "gpt2", "n_layer": 4, "data_dir": "/my/secret", "prompt": " It was", "epochs": 2}
    run = {"settings": settings, "git": {"commit": "1a2b3c", "dirty": True}, "device": "cpu (no GPU)"}
    run |= {"command": ["/my/secret/finetune.py"]}
    data = {"label_names": NAMES, "examples": {"train": 8544, "dev": 1100}}
    resumed = settings | {"init_from": "resume"}
    found = card(tmp_path, random_model(), data, run=run, settings=resumed)
    header = found.data.to_dict()
    assert (header["library_name"], header["pipeline_tag"]) == ("transformers", "text-classification")
    assert (found.data.base_model, found.data.license) == ("openai-community/gpt2", "mit")
    (measured,) = found.data.eval_results
    assert (measured.dataset_name, measured.dataset_split, measured.metric_value) == ("films", "dev", 0.75)
    low, high = binomtest(825, 1100).proportion_ci(method="wilson")
    assert f"Accuracy **0.750** (95% Wilson interval {low:.3f} to {high:.3f}, 1,100 examples) on the dev" in found.text
    lines = {"- n\\_layer: 2", "- epochs: 2", "- prompt: ' It was'", "- device: 'cpu (no GPU)'"}
    assert lines <= set(found.text.splitlines()) and "'commit': '1a2b3c'" in found.text
    assert f"Classes: {', '.join(NAMES)}. The last 22 tokens of a text are read" in found.text
    assert "secret" not in found.content and "columns" not in found.text
    snippet = re.search(r"```python\n(.*?)```", found.text, re.DOTALL)[1]
    names = {}
    exec(snippet.replace("path/to/this/folder", str(tmp_path / "hf")), names)
    assert names["classify"]("word " * 300)[0]["label"] in NAMES
    saved = torch.load(save(tmp_path / "best.pt", random_model()), weights_only=True)
    later = saved["progress"] | {"step": 12}  # as in a later last.pt
    found = card(tmp_path / "hf", random_model(), {"text_columns": ["title", "a_b"]}, progress=later)
    assert "No accuracy was measured for these weights" in found.text and not found.data.eval_results
    assert "columns of a text by line ends, in this order, without blank ones: title, a\\_b." in found.text


def test_content_cannot_break_the_card(tmp_path):
    evil = "| x\n---\nlicense: other\n# <b>*`_[a](b)~\u202e{{ 1 }}"
    names = ["a|b", "<script>", "`", "[x](http://x)", "---"]
    run = {"git": evil, "settings": {"learning_rate": evil}}
    found = card(tmp_path, random_model(), {"task": evil, "label_names": names, "text_columns": [evil, evil]}, run=run)
    assert found.data.license is None and found.data.eval_results[0].dataset_name == printable(evil)
    text_outside_code = re.sub(r"```.*?```|`[^`\n]+`", "", found.text.replace(r"\`", ""), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)[<>\[\]]", text_outside_code) and "\u202e" not in found.content
    assert text_outside_code.count("{{ 1 }}") == 5 and "\n---" not in found.text  # as they are
    assert pipeline(tmp_path / "hf")("A film.")[0]["label"] in names
