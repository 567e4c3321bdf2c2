"""Parity with transformers: the same weights on disk give the same outputs and the same gradients."""

import json
import math

import pytest
import torch
from conftest import padded_batch, transformers_model
from torch.nn import functional as F

from classifier.errors import UserError
from classifier.pretrained import load_gpt2
from model import GPT, Batch, GPTConfig

LENGTHS = [7, 1, 40, 23, 2, 31, 40, 12]
FULL_SIZE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


def every_prefix(tokens: torch.Tensor, lengths: torch.Tensor) -> Batch:
    """Every sequence up to each of its tokens, in order: the features of these are all hidden states."""
    rows = torch.arange(len(tokens)).repeat_interleave(lengths)
    return Batch.from_padded(tokens[rows], torch.cat([torch.arange(1, length + 1) for length in lengths.tolist()]))


def ours_and_theirs(folder, **config) -> tuple[GPT, torch.nn.Module]:
    theirs = transformers_model("GPT2ForSequenceClassification", folder, **config)
    return load_gpt2(str(folder), num_classes=5).eval(), theirs


@pytest.mark.parametrize("size", [{}, FULL_SIZE], ids=["small", "124M"])
def test_hidden_states_and_logits_are_those_of_transformers(tmp_path, size):
    ours, theirs = ours_and_theirs(tmp_path, **size)
    tokens, lengths, mask = padded_batch(LENGTHS, theirs.config.vocab_size, theirs.config.pad_token_id)
    with torch.no_grad():
        their_states = theirs.transformer(tokens, attention_mask=mask).last_hidden_state
        our_states = ours.features(every_prefix(tokens, lengths))
        torch.testing.assert_close(our_states, their_states[mask.bool()], atol=1e-4, rtol=0)
        their_logits = theirs(tokens, attention_mask=mask).logits
        our_logits = ours(Batch.from_padded(tokens, lengths))
    assert their_logits.std() > 0.1  # the comparison is about something
    torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=0)


def test_gradients_of_every_parameter_are_those_of_transformers(tmp_path):
    ours, theirs = ours_and_theirs(tmp_path)
    tokens, lengths, mask = padded_batch(LENGTHS, theirs.config.vocab_size, theirs.config.pad_token_id)
    labels = torch.arange(len(LENGTHS)) % 5
    F.cross_entropy(ours(Batch.from_padded(tokens, lengths)), labels).backward()
    F.cross_entropy(theirs(tokens, attention_mask=mask).logits, labels).backward()
    their_gradients = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if name == "head.bias":  # transformers' head has none: its gradient is that of the mean loss by the logits
            continue
        expected = their_gradients.pop("score.weight" if name == "head.weight" else name)
        if name.startswith("h.") and expected.dim() == 2:
            expected = expected.t()
        assert expected.norm() > 0, name
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm(), name
        compared += 1
    assert not their_gradients and compared == 3 * 12 + 5


def test_padding_changes_no_logit_and_no_gradient(tmp_path):
    ours, _ = ours_and_theirs(tmp_path)
    tokens, lengths, mask = padded_batch(LENGTHS, 211, 0)
    gradients, logits = [], []
    for filler in (0, 210, -1, 10**9):  # the last two are no tokens at all
        ours.zero_grad()
        logits.append(ours(Batch.from_padded(tokens.masked_fill(mask == 0, filler), lengths)))
        logits[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    assert all(torch.equal(logits[0], other) for other in logits[1:])
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True))


def test_a_sequence_alone_has_the_logits_that_it_has_in_a_batch(tmp_path):
    ours, _ = ours_and_theirs(tmp_path)
    tokens, lengths, _ = padded_batch(LENGTHS, 211, 0)
    together = ours(Batch.from_padded(tokens, lengths))
    alone = [Batch.from_padded(tokens[i : i + 1, :length], lengths[i : i + 1]) for i, length in enumerate(LENGTHS)]
    alone = torch.cat([ours(batch) for batch in alone])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification"])
@pytest.mark.parametrize("form", ["safetensors", "torch", "sharded"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_load_in_every_form_that_transformers_writes(tmp_path, kind, form, prefix):
    theirs = transformers_model(kind)
    if form == "sharded":
        theirs.save_pretrained(tmp_path, max_shard_size="100KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        theirs.save_pretrained(tmp_path)
    if form == "torch":
        (tmp_path / "model.safetensors").unlink()
        trunk = getattr(theirs, "transformer", theirs).state_dict()
        torch.save({prefix + name: tensor for name, tensor in trunk.items()}, tmp_path / "pytorch_model.bin")
    ours = load_gpt2(str(tmp_path), num_classes=5, block_size=16, dropout=0.1)
    tokens = torch.randint(211, (2, 16))
    with torch.no_grad():
        expected = getattr(theirs, "transformer", theirs)(tokens).last_hidden_state
        states = ours.eval().features(every_prefix(tokens, torch.tensor([16, 16])))
        torch.testing.assert_close(states, expected.flatten(0, 1), atol=1e-4, rtol=0)
    assert ours.config == GPTConfig(5, 16, 211, 3, 4, 48, 0.1)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in ours.parameters())


def test_stored_weights_in_half_precision_come_back_in_float32(tmp_path):
    theirs = transformers_model("GPT2Model").half()
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(str(tmp_path))
    assert torch.equal(ours.h[1].mlp.c_fc.weight, theirs.h[1].mlp.c_fc.weight.t().float())


def spoil(folder, change) -> str:
    """Change the stored tensors; return what load_gpt2 says of them."""
    from safetensors.torch import load_file, save_file

    transformers_model("GPT2ForSequenceClassification", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_gpt2(str(folder), num_classes=5)
    return str(error.value)


def test_misfitting_weights_are_named(tmp_path):
    def change(weights):
        del weights["transformer.h.1.ln_2.bias"]
        weights["transformer.wte.weight"] = torch.zeros(10, 48)
        weights["transformer.h.0.attn.c_attn.weight"] = torch.zeros(144, 48)
        weights["adapter.weight"] = torch.zeros(3)

    message = spoil(tmp_path, change)
    assert "h.1.ln_2.bias is missing" in message
    assert "wte.weight has shape (10, 48), not (211, 48)" in message
    assert "h.0.attn.c_attn.weight has shape (144, 48), not (48, 144)" in message
    assert "adapter.weight is unknown" in message


def test_weights_that_are_no_finite_floats_are_named(tmp_path):
    def change(weights):
        weights["transformer.wpe.weight"] = torch.zeros(40, 48, dtype=torch.int32)
        weights["transformer.ln_f.bias"][3] = math.nan

    message = spoil(tmp_path, change)
    assert "wpe.weight is no plain tensor of floating-point numbers" in message
    assert "ln_f.bias holds numbers that are not finite" in message


STRANGE = {
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "zero-dimensional": lambda tensor: tensor.sum(),
    "sparse": lambda tensor: tensor.to_sparse(),
    "nested": lambda tensor: torch.nested.as_nested_tensor([tensor[0], tensor[1]]),
    "jagged": lambda tensor: torch.nested.as_nested_tensor([tensor[0], tensor[1]], layout=torch.jagged),
    "meta": lambda tensor: tensor.to("meta"),
    "overflowing": lambda tensor: tensor.double() + 1e39,
    "none": lambda tensor: None,
    "list": lambda tensor: tensor.tolist(),
}


@pytest.mark.filterwarnings("ignore")  # of prototypes among these
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["wpe.weight", "h.0.attn.c_attn.weight", "score.weight"])
def test_strange_tensors_are_refused_by_name(tmp_path, kind, name):
    theirs = transformers_model("GPT2ForSequenceClassification", tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    theirs = {key.removeprefix("transformer."): tensor for key, tensor in theirs.items()}
    torch.save(theirs | {name: STRANGE[kind](theirs[name])}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        load_gpt2(str(tmp_path), num_classes=5)
    assert f"{name} " in str(error.value) or "no whole torch file of plain tensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_float8_in_a_safetensors_file_is_refused(tmp_path):
    def change(weights):
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"].to(torch.float8_e4m3fn)

    assert "wpe.weight is no plain tensor of floating-point numbers" in spoil(tmp_path, change)


def test_a_tensor_under_two_names_is_refused(tmp_path):
    def change(weights):
        weights["ln_f.bias"] = weights["transformer.ln_f.bias"] + 1

    assert "have ln_f.bias twice, as transformer.ln_f.bias, too" in spoil(tmp_path, change)


def test_the_index_says_which_shards_and_tensors_count(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = transformers_model("GPT2Model")
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    # a shard of a model that was there before, and a tensor that the index gives to another file
    save_file({"ln_f.bias": torch.full((48,), 7.0)}, tmp_path / "model-00099-of-00099.safetensors")
    holder = tmp_path / next(file for name, file in index["weight_map"].items() if name != "ln_f.bias")
    save_file(load_file(holder) | {"ln_f.weight": torch.zeros(48)}, holder, metadata={"format": "pt"})
    if index["weight_map"]["ln_f.weight"] == holder.name:
        index["weight_map"].pop("ln_f.weight")
    assert torch.equal(load_gpt2(str(tmp_path)).ln_f.bias, theirs.ln_f.bias)
    assert torch.equal(load_gpt2(str(tmp_path)).ln_f.weight, theirs.ln_f.weight)

    def refused(message: str, **weight_map: object) -> None:
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | weight_map}))
        with pytest.raises(UserError, match=message):
            load_gpt2(str(tmp_path))

    refused("names the file gone.safetensors, which is not there", new="gone.safetensors")
    refused("lacks new, which the index says is in it", new=holder.name)
    refused("is damaged or of another program: weight_map", new="../model.safetensors")
    refused("is damaged or of another program: weight_map", new=3)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_gpt2(str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match="has no weights: .* nor an index of shards"):
        load_gpt2(str(tmp_path))


@pytest.mark.parametrize("name, value", [("n_layer", 10**9), ("n_embd", 0), ("n_head", 5), ("n_positions", "many")])
def test_an_absurd_configuration_is_refused_before_anything_is_allocated(tmp_path, name, value):
    transformers_model("GPT2Model", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(UserError, match="config.json: "):
        load_gpt2(str(tmp_path))


def test_torchs_older_file_format_loads(tmp_path):
    theirs = transformers_model("GPT2Model", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(load_gpt2(str(tmp_path)).wte.weight, theirs.wte.weight)


def test_a_stored_head_of_other_classes_is_refused(tmp_path):
    theirs = transformers_model("GPT2ForSequenceClassification", tmp_path)
    with pytest.raises(UserError, match="is for 5 classes, and 2 are asked for: .* the trunk alone"):
        load_gpt2(str(tmp_path), num_classes=2)
    model = load_gpt2(str(tmp_path), num_classes=2, new_head=True)
    assert torch.equal(model.wte.weight, theirs.transformer.wte.weight) and model.head.weight.shape == (2, 48)


@pytest.mark.parametrize(
    "key, value",
    [("activation_function", "gelu"), ("layer_norm_epsilon", 1e-6), ("n_inner", 100), ("model_type", "opt")],
)
def test_a_configuration_that_is_not_gpt2s_is_refused(tmp_path, key, value):
    transformers_model("GPT2Model", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=key):
        load_gpt2(str(tmp_path))


def test_unusable_directories_are_refused(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        load_gpt2(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no config.json"):
        load_gpt2(str(tmp_path))
    transformers_model("GPT2Model", tmp_path)
    with pytest.raises(UserError, match="block_size 41 is more than .* 40 positions: try --block_size=40"):
        load_gpt2(str(tmp_path), block_size=41)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="no whole safetensors file"):
        load_gpt2(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_gpt2(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(whole)
    with pytest.raises(UserError, match="no whole torch file"):
        load_gpt2(str(tmp_path))


def test_weights_out_of_reach_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="openai-community/gpt2 is not in the Hugging Face cache .* --init_from=DIR"):
        load_gpt2("gpt2")


def test_gpt2_small_has_its_124_million_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig(num_classes=5))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808 + 5 * 768 + 5


def test_fresh_weights_have_gpt2s_scale():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=2, n_embd=256))
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert model.head.bias.abs().sum() == 0 and (model.ln_f.weight == 1).all()
