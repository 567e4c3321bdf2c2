"""Prompts: the head starts as the language model's logits for the label words. See test_export.py for their tokens."""

from dataclasses import replace

import pytest
import torch
from conftest import REPO, make_split, refuse, succeed, transformers_model

from classifier import checkpoint
from classifier.data.tokenizer import encode_label_words, encode_prompt, load_tokenizer
from classifier.errors import UserError
from classifier.gpt2 import load_gpt2
from classifier.settings import read_settings
from classifier.training.start import start_head_from
from model import Batch

CONFIGS = {name: read_settings(REPO / "finetune.py", [str(REPO / "config" / f"finetune_{name}_prompt.py")])
           for name in ("sst", "cfimdb")}  # fmt: skip


@pytest.mark.parametrize("task, num_classes", [("sst", 5), ("cfimdb", 2)])
def test_the_first_logits_are_the_language_models_for_the_label_words(task, num_classes, tmp_path):
    settings, encoding = CONFIGS[task], load_tokenizer()
    theirs = transformers_model("GPT2LMHeadModel", tmp_path, vocab_size=50257, n_positions=128)
    model = load_gpt2(str(tmp_path), num_classes=num_classes, block_size=96)
    start_head_from(model, encode_label_words(settings.label_words, num_classes))
    for sentence in (" A lovely film .", " " + "A mess of a film . " * 3):
        tokens = torch.tensor([encoding.encode_ordinary(sentence + settings.prompt)])
        split = make_split([encoding.encode_ordinary(sentence)], None)
        split = replace(split, prompt=encode_prompt(settings.prompt, 96))
        assert split.sequence(0, 96).tolist() == tokens[0].tolist()
        batch = Batch.from_padded(tokens, torch.tensor([tokens.shape[1]]))
        words = [encoding.encode_single_token(word) for word in settings.label_words]
        with torch.no_grad():
            expected = theirs(tokens).logits[0, -1, words]
            torch.testing.assert_close(model(batch)[0], expected, atol=1e-4, rtol=1e-4)
    assert model.head.weight.data_ptr() != model.wte.weight.data_ptr()  # a copy: the embeddings stay as they are


def test_label_words_and_prompts_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="the label word 'unbelievably' is not one token but 4"):
        encode_label_words(["good", "unbelievably"], 2)
    for words in (["good"], ["good", "good"]):
        with pytest.raises(UserError, match="label_words must be 2 different words"):
            encode_label_words(words, 2)
    with pytest.raises(UserError, match="the prompt's 4 tokens leave no room for a sentence: block_size is 4"):
        encode_prompt(" Good or bad:", 4)


def test_a_run_with_a_prompt_keeps_it_for_evaluation_and_resuming(workspace):
    run = ["finetune.py", "--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=16"]
    run += ["--block_size=32", "--dtype=float32", "--max_steps=3", "--gradient_accumulation_steps=1"]
    run += ["--prompt= Is it good or bad:", '--label_words=["bad","good"]']
    printed = succeed(*run, "--learning_rate=1e-9", "--weight_decay=0", cwd=workspace)
    model, saved = checkpoint.load(workspace / "out" / "best.pt")
    words = encode_label_words(["bad", "good"], 2)
    # Adam's first steps move each weight by the learning rate
    torch.testing.assert_close(model.head.weight, model.wte.weight[words], atol=1e-8, rtol=0)
    assert (
        saved["settings"]["prompt"] == " Is it good or bad:"
        and "train texts are longer than 26 tokens: their last 26 are read" in printed
    )
    evaluated = succeed("evaluate.py", "--predictions=p.csv", "--dtype=float32", cwd=workspace)
    assert f"dev accuracy: {saved['progress']['best']['accuracy']:.3f}" in evaluated
    message = refuse(*run, "--prompt= Good?", "--init_from=resume", "--max_steps=5", cwd=workspace)
    assert "prompt was ' Is it good or bad:' and is now ' Good?'" in message
