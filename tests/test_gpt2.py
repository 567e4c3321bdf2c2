"""GPT-2's weights: read to the bit in every form in which people have them, or refused in a line that says why."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_model, save, succeed, transformers_model
from safetensors.torch import save_file

from classifier import checkpoint
from classifier.errors import UserError
from classifier.gpt2 import load_gpt2
from model import GPT, GPTConfig

KINDS = {"GPT2Model": torch.float64, "GPT2LMHeadModel": torch.float16, "GPT2ForSequenceClassification": torch.bfloat16}
FORMS = ["safetensors", "sharded safetensors", "bin", "sharded bin", "old bin", "state_dict", "model"]
PREFIXES = ["", "module.", "_orig_mod.module.transformer."]


def trunk(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    return getattr(theirs, "transformer", theirs).state_dict()


def assert_same(ours: GPT, theirs: torch.nn.Module) -> None:
    """Every parameter of the trunk has the bits that transformers has, in float32."""
    weights = trunk(theirs)
    for name, parameter in ours.named_parameters():
        if not name.startswith("head."):
            tensor = weights.pop(name).float()
            assert torch.equal(parameter, tensor.t() if name.startswith("h.") and tensor.dim() == 2 else tensor), name
            assert parameter.dtype == torch.float32 and parameter.requires_grad and parameter.is_contiguous()
    assert not weights


def store(folder: Path, weights: dict[str, torch.Tensor], form: str) -> None:
    """Put tensors in place of a folder's weights: in two files if sharded, one of them in a shard of its own."""
    (folder / "model.safetensors").unlink()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    whole, extension = ("model", "safetensors") if "safetensors" in form else ("pytorch_model", "bin")
    shards = {f"{whole}.{extension}": weights}
    if "sharded" in form:
        first = next(iter(weights))
        shards = {f"{whole}-00001-of-00002.{extension}": {first: weights.pop(first)}}
        shards[f"{whole}-00002-of-00002.{extension}"] = weights
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        (folder / f"{whole}.{extension}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, shard in shards.items():
        if extension == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            content = {form: shard, "epoch": 3} if form in ("state_dict", "model") else shard
            torch.save(content, folder / file, _use_new_zipfile_serialization=form != "old bin")


@pytest.mark.parametrize("form, prefix", [*((form, "transformer.") for form in FORMS), *(("bin", p) for p in PREFIXES)])
def test_weights_are_read_in_every_form(tmp_path, form, prefix):
    theirs = transformers_model("GPT2Model", tmp_path)
    masks = {"h.0.attn.bias": torch.ones(1, 1, 40, 40).bool(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    weights = trunk(theirs) | masks | {"lm_head.weight": trunk(theirs)["wte.weight"].clone()}
    store(tmp_path, {prefix + name: tensor for name, tensor in weights.items()}, form)
    assert_same(load_gpt2(str(tmp_path)), theirs)


@pytest.mark.parametrize("kind, dtype", KINDS.items())
def test_what_transformers_saves_is_read_in_float32(tmp_path, kind, dtype):
    theirs = transformers_model(kind).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(str(tmp_path), num_classes=5, dropout=0.1)
    assert_same(ours, theirs)
    assert ours.config == GPTConfig(5, 40, 211, 3, 4, 48, 0.1) and not ours.head.bias.any()
    if kind == "GPT2ForSequenceClassification":
        assert torch.equal(ours.head.weight, theirs.score.weight.float())


def test_names_of_the_hub_come_from_its_cache_and_folders_may_lie_at_home(tmp_path, monkeypatch):
    theirs = transformers_model("GPT2Model", tmp_path / "gpt2s")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(load_gpt2("~/gpt2s"), theirs)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: pytest.fail("it asks the hub"))
    for name, folder in [
        ("gpt2-medium", "models--openai-community--gpt2-medium"),
        ("somebody/own-gpt2", "models--somebody--own-gpt2"),
    ]:
        (tmp_path / folder / "refs").mkdir(parents=True)
        (tmp_path / folder / "refs" / "main").write_text("c0ffee")
        shutil.copytree(tmp_path / "gpt2s", tmp_path / folder / "snapshots" / "c0ffee")
        assert_same(load_gpt2(name), theirs)


def test_weights_out_of_reach_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, repository in [("gpt2", "openai-community/gpt2"), ("some/gpt", "some/gpt"), ("nowhere", "nowhere")]:
        with pytest.raises(UserError) as error:
            load_gpt2(name)
        assert f"there is no folder {name}, and {repository} is not in the Hugging Face cache" in str(error.value)
        assert f"`hf download {repository} config.json model.safetensors --local-dir " in str(error.value)
    for name in ("./nowhere", "/a/b", "a/b/c", "a b", "\x1b[31m", "x" * 100):
        with pytest.raises(UserError, match="there is no folder .*, and no model on the hub has such a name"):
            load_gpt2(name)


def test_what_the_machine_cannot_read_is_not_called_damaged(tmp_path, monkeypatch):
    theirs = transformers_model("GPT2Model", tmp_path)

    def cannot_map(path: Path) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("safetensors.torch.load_file", cannot_map)  # a file system without mmap: it is read
    assert_same(load_gpt2(str(tmp_path)), theirs)
    path = save(tmp_path / "best.pt", random_model())
    for error in (
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        for name in ("torch.load", "safetensors.torch.load_file", "safetensors.torch.load"):
            monkeypatch.setattr(name, fail)
        for read in (lambda: checkpoint.load(path), lambda: load_gpt2(str(path)), lambda: load_gpt2(str(tmp_path))):
            with pytest.raises(type(error)):
                read()


# -----------------------------------------------------------------------------
# nanoGPT's checkpoints


def save_nanogpt(path: Path, model: GPT, prefix: str = "", bias: bool = True) -> Path:
    """A checkpoint as nanoGPT's train.py writes it: its layers are torch's own, as ours are."""
    weights = {f"{prefix}transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    weights = {name: tensor for name, tensor in weights.items() if "head." not in name}
    weights[f"{prefix}lm_head.weight"] = model.wte.weight.detach()
    if not bias:
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith("bias")}
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "dropout")
    sizes = {name: getattr(model.config, name) for name in names} | {"bias": bias}
    others = {"iter_num": 7, "best_val_loss": torch.tensor(3.1), "config": {"out_dir": "out"}}
    torch.save({"model": weights, "optimizer": {"state": {}}, "model_args": sizes} | others, path)
    return path


@pytest.mark.parametrize("prefix, bias", [("", True), ("_orig_mod.", True), ("_orig_mod.", False)])
def test_nanogpts_checkpoint_is_read(tmp_path, capsys, prefix, bias):
    theirs = GPT(GPTConfig(2, 32, 304, 2, 4, 48))
    for name, parameter in theirs.named_parameters():
        if bias or not name.endswith("bias"):  # without, they stay zero
            torch.nn.init.normal_(parameter)
    ours = load_gpt2(str(save_nanogpt(tmp_path / "ckpt.pt", theirs, prefix, bias)), num_classes=5, block_size=16)
    expected = theirs.state_dict() | {"wpe.weight": theirs.wpe.weight[:16]}
    for name, parameter in ours.named_parameters():
        assert name.startswith("head.") or torch.equal(parameter, expected[name]), name
    assert ours.config == GPTConfig(5, 16, 304, 2, 4, 48) and "nanoGPT's exact" in capsys.readouterr().out


def test_training_starts_from_nanogpts_checkpoint(workspace):
    save_nanogpt(workspace / "ckpt.pt", GPT(GPTConfig(2, 32, 50304, 1, 2, 8)))  # the vocabulary as nanoGPT pads it
    words = ["--max_steps=1", "--batch_size=8", "--gradient_accumulation_steps=1", "--block_size=32", "--dtype=float32"]
    printed = succeed("finetune.py", "--init_from=ckpt.pt", "--data_dir=data/sample", *words, cwd=workspace)
    assert "init_from ckpt.pt" in printed and "exact GELU" in printed
    assert "accuracy" in succeed("evaluate.py", "--ckpt=out/best.pt", cwd=workspace)


# -----------------------------------------------------------------------------
# what is refused


def refused(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        load_gpt2(str(folder), **options)
    message = str(error.value)
    assert len(message) < 1000 and message.isprintable()
    return message


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"score.weight": torch.zeros(3, 48)}, "the head in {} is for 3 classes, and the data has 2"),
        ({"h.1.ln_2.bias": None}, 'Missing key(s) in state_dict: "h.1.ln_2.bias"'),
        ({"adapter.weight": torch.zeros(3)}, 'Unexpected key(s) in state_dict: "adapter.weight"'),
        ({"h.0.attn.c_attn.weight": torch.zeros(144, 48)}, "size mismatch for h.0.attn.c_attn.weight"),
        ({"wpe.weight": torch.zeros(40, 48).int()}, "wpe.weight in {} is no tensor of floating-point numbers"),
        ({"ln_f.bias": torch.full((48,), float("nan"))}, "ln_f.bias in {} has numbers that are not finite"),
        ({"ln_f.bias": torch.tensor([1e39] * 48).double()}, "ln_f.bias in {} has numbers that are not finite"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_named(tmp_path, changes, message):
    theirs = transformers_model("GPT2Model", tmp_path)
    weights = trunk(theirs) | changes
    store(tmp_path, {name: tensor for name, tensor in weights.items() if tensor is not None}, "safetensors")
    assert message.format(tmp_path) in refused(tmp_path)


def test_a_configuration_of_another_function_or_of_absurd_sizes_is_refused(tmp_path):
    transformers_model("GPT2Model", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in [
        *[("n_layer", 10**9), ("n_embd", 0), ("n_head", 5), ("n_positions", "many"), ("vocab_size", None)],
        *[("activation_function", "gelu"), ("layer_norm_epsilon", 1e-6), ("model_type", "opt")],
        *[("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True)],
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        ours = {"n_positions": "block_size"}.get(key, key)
        assert f"{tmp_path}: " in (message := refused(tmp_path)) and ours in message
    for options, message in [
        ({"n_inner": 100}, "size mismatch for h.0.mlp.c_fc.weight"),
        ({"add_cross_attention": True}, "Unexpected key(s) in state_dict"),
    ]:
        transformers_model("GPT2Model", tmp_path, **options)
        assert message in refused(tmp_path)


def test_folders_without_whole_files_are_refused(tmp_path):
    transformers_model("GPT2Model", tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "model.safetensors is truncated, damaged or of another program" in refused(tmp_path)
    weights.unlink()
    assert "has no model.safetensors or model.safetensors.index.json or pytorch_model.bin or" in refused(tmp_path)
    torch.save([1], tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin is truncated, damaged or of another program" in refused(tmp_path)
    config.write_text("{")
    assert "config.json is truncated, damaged or of another program" in refused(tmp_path)
    config.unlink()
    assert "has no config.json" in refused(tmp_path)
    torch.save(random_model().state_dict(), tmp_path / "weights.bin")
    message = refused(tmp_path / "weights.bin")
    assert "weights.bin is no checkpoint of finetune.py or nanoGPT: name a folder with it" in message


def test_the_index_says_which_shards_count(tmp_path):
    theirs = transformers_model("GPT2Model", tmp_path)
    store(tmp_path, trunk(theirs), "sharded safetensors")
    save_file({"ln_f.bias": torch.zeros(48)}, tmp_path / "model-00099-of-00099.safetensors")  # another model left it
    assert_same(load_gpt2(str(tmp_path)), theirs)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "has no model-00002-of-00002.safetensors" in refused(tmp_path)
