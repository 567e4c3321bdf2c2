"""GPT-2's weights as transformers has them: from the Hugging Face hub or a directory into our model, and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifier.errors import UserError, printable
from classifier.weights import find_weights, read_all_weights
from model import GPT, GPTConfig

TRUNK_ALONE = "keep the trunk alone, under a new head: --new_head=True"
FOLD_TOLERANCE = 1e-5  # in a logit; it moves a probability by half of that at most


def load_gpt2(
    name_or_path: str,
    num_classes: int = 2,
    dropout: float = 0.0,
    block_size: int | None = None,
    label_names: list[str] | None = None,
    new_head: bool = False,
) -> GPT:
    """Load GPT-2's weights, in float32, under the stored head where the weights have one, else a random one.

    Args:
        name_or_path: gpt2, gpt2-medium, gpt2-large or gpt2-xl, from the Hugging Face cache or else its hub; or a local
            directory with config.json and model.safetensors or pytorch_model.bin, as transformers' GPT-2 models save
            it.
        num_classes: classes of the head.
        dropout: dropout probability, everywhere.
        block_size: keep only the first so many positions; None keeps all of them.
        label_names: the classes in the order of their numbers, compared with those of a stored head.
        new_head: leave out the stored head.

    Raises:
        UserError: the weights are out of reach, not GPT-2's, or do not fill the model exactly; or the stored head has
            other classes.
    """
    folder, files = find_weights(name_or_path)
    config = read_config(folder / "config.json", num_classes, dropout, block_size)
    with torch.device("meta"):  # shapes only: the weights come from the file
        model = GPT(config)
    weights = read_all_weights(folder, files)
    if new_head:
        weights.pop("score.weight", None)
    model.load_state_dict(fit_weights(weights, model, folder), assign=True)
    if label_names and "score.weight" in weights:
        check_label_names(folder / "config.json", label_names)
    return model


def read_config(path: Path, num_classes: int, dropout: float, block_size: int | None) -> GPTConfig:
    """Return our config from transformers' config.json; refuse what would be another function than GPT-2's."""
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        config = GPTConfig(
            num_classes=num_classes,
            block_size=theirs.get("n_positions", 1024),
            vocab_size=theirs.get("vocab_size", 50257),
            n_layer=theirs.get("n_layer", 12),
            n_head=theirs.get("n_head", 12),
            n_embd=theirs.get("n_embd", 768),
            dropout=dropout,
        )
    except (AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is no model configuration of transformers") from None
    except ValueError as error:  # GPTConfig's
        raise UserError(f"{path}: {error}") from None
    allowed = {
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, 4 * config.n_embd),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, values in allowed.items():
        if theirs.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key} is {theirs[key]!r:.60}, but GPT-2 has {values[0]!r}")
    if block_size is None:
        return config
    if block_size > config.block_size:
        most = config.block_size
        raise UserError(
            f"block_size {block_size} is more than {path.parent}'s {most} positions: try --block_size={most}"
        )
    return GPTConfig(**{**vars(config), "block_size": block_size})


def check_label_names(config_path: Path, label_names: list[str]) -> None:
    """Refuse a stored head that has the task's classes in another order; say so where it has classes of other names."""
    id2label = json.loads(config_path.read_text(encoding="utf-8")).get("id2label")
    if not isinstance(id2label, dict):
        return
    stored = [str(id2label.get(str(number))) for number in range(len(label_names))]
    if stored in (label_names, [f"LABEL_{number}" for number in range(len(stored))]):  # the latter says nothing
        return
    theirs, ours = ", ".join(stored), ", ".join(label_names)
    if sorted(stored) == sorted(label_names):
        raise UserError(
            f"the head in {config_path.parent} has the classes in the order {theirs}, but the data has {ours}: "
            f"number the data's labels as the head does, or {TRUNK_ALONE}"
        )
    print(printable(f"note: the head's classes in {config_path.parent}, {theirs}, now stand for {ours}"))


def fit_weights(theirs: dict[str, Any], model: GPT, folder: Path) -> dict[str, Tensor]:
    """Return the model's state dict from transformers' tensors: every parameter filled, every tensor used."""
    theirs = dict(theirs)
    score, num_classes = theirs.get("score.weight"), model.config.num_classes
    if is_plain_tensor(score) and score.dim() == 2 and len(score) != num_classes:
        raise UserError(
            f"the head in {folder} is for {len(score)} classes, and {num_classes} are asked for: "
            f"take data with its classes, or {TRUNK_ALONE}"
        )
    fitted, problems = {}, []
    for name, parameter in model.state_dict().items():
        shape = tuple(parameter.shape)
        if name == "head.bias" or (name == "head.weight" and "score.weight" not in theirs):
            # transformers' head has no bias, and a language model has no head
            fitted[name] = torch.zeros(shape) if name == "head.bias" else torch.empty(shape).normal_(std=0.02)
            continue
        their_name = "score.weight" if name == "head.weight" else name
        expected = shape[::-1] if is_transposed(name, parameter) else shape
        tensor = theirs.pop(their_name, None)
        if name == "wpe.weight" and is_plain_tensor(tensor) and tensor.dim() == 2:
            tensor = tensor[: shape[0]]
        if tensor is None:
            problems.append(f"{their_name} is missing")
        elif not is_plain_tensor(tensor):
            problems.append(f"{their_name} is no plain tensor of floating-point numbers")
        elif tuple(tensor.shape) != expected:
            problems.append(f"{their_name} has shape {tuple(tensor.shape)}, not {expected}")
        else:
            tensor = tensor.t() if is_transposed(name, parameter) else tensor
            fitted[name] = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            if not fitted[name].isfinite().all():
                problems.append(f"{their_name} holds numbers that are not finite in float32")
    problems += [f"{printable(name)} is unknown" for name in theirs]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"the weights in {folder} do not fit the model: {'; '.join(problems[:8])}{more}")
    return fitted


def is_plain_tensor(value: Any) -> bool:
    """Return whether a value is a tensor whose numbers are all there, in a format that is used for weights."""
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    )


def to_transformers(model: GPT) -> dict[str, Tensor]:
    """Return the tensors of a GPT2ForSequenceClassification with the model's very logits: fit_weights' inverse.

    transformers' head has no bias; ours goes into the final LayerNorm's.

    Raises:
        UserError: it does not go in there.
    """
    theirs = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            continue
        theirs[f"transformer.{name}"] = tensor.t().contiguous() if is_transposed(name, tensor) else tensor
    theirs["score.weight"] = model.head.weight.detach()
    theirs["transformer.ln_f.bias"] = with_folded_bias(model)
    return theirs


def is_transposed(name: str, tensor: Tensor) -> bool:
    """Return whether transformers keeps this parameter as (in, out), where ours is (out, in)."""
    return name.startswith("h.") and tensor.dim() == 2


@torch.no_grad()
def with_folded_bias(model: GPT) -> Tensor:
    """Return a bias of the final LayerNorm that does what it and the head's bias do together: float32 (n_embd,).

    The logits are W x + c. Where W d = c they are W (x + d), so d is added to x, the LayerNorm's output: the shortest
    such d, in double precision. Logits stay what they were, not only probabilities.

    Raises:
        UserError: there is no such d, since the rows of W depend on each other.
    """
    weight, bias = (tensor.double().numpy() for tensor in (model.head.weight, model.head.bias))
    before = model.ln_f.bias.double()
    shift = np.linalg.lstsq(weight, bias, rcond=1e-6)[0]  # what is smaller is rounding, the weights being float32
    folded = (before + torch.from_numpy(shift)).float()
    off = np.abs(weight @ (folded.double() - before).numpy() - bias).max()
    if not off <= FOLD_TOLERANCE:
        raise UserError(
            f"transformers' head has no bias, and this one's cannot go into the final LayerNorm: a logit would be off "
            f"by {off:.1e}, since the rows of head.weight depend on each other. Train with another seed, or a model "
            f"with n_embd ({model.config.n_embd}) at least the number of classes ({model.config.num_classes})"
        )
    return folded
