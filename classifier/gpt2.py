"""Load GPT-2's weights from all common formats, and convert them back.

transformers and huggingface_hub find or download the files, safetensors and torch read them, and load_state_dict names
tensors that are missing, unknown or of another shape. Checked here: the function is GPT-2's, all numbers are finite,
and a stored head has the data's classes.
"""

import json
import re
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifier import checkpoint
from classifier.errors import UserError, did_you_mean, is_out_of_memory, printable, tell
from model import GPT, GPTConfig

HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
FORMS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
GPT2S = {  # values in a config.json; with any other it would be another function
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
WITHOUT_HEAD = "or leave the head out and train a new one: --new_head=True"
FOLD_TOLERANCE = 1e-5  # in a logit; a probability moves by at most half of that


def load_gpt2(
    name_or_path: str,
    num_classes: int = 2,
    dropout: float = 0.0,
    block_size: int | None = None,
    label_names: list[str] | None = None,
    new_head: bool = False,
) -> GPT:
    """Load GPT-2's weights in float32, with the stored head if there is one, otherwise with a random one.

    Args:
        name_or_path: a folder in transformers' format, a checkpoint of finetune.py or nanoGPT, or a name: gpt2,
            gpt2-medium, gpt2-large, gpt2-xl or any GPT-2 on the Hugging Face hub, from its cache or downloaded.
        block_size: keep only the first so many positions; None keeps all.
        label_names: the classes in the order of their numbers, compared with those of a stored head.
        new_head: leave out the stored head.

    Raises:
        UserError: the weights cannot be found, are not GPT-2's or do not fill the model exactly; or the stored head has
            other classes.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".pt" and not path.is_file():
        raise UserError(f"init_from: there is no checkpoint {name_or_path}{did_you_mean(path)}")
    read = read_file_of_model if path.is_file() else read_folder
    theirs, weights = read(name_or_path)
    config = read_config(name_or_path, theirs, num_classes, dropout, block_size)
    if new_head:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    if "head.weight" in weights:
        check_head(name_or_path, len(weights["head.weight"]), theirs.get("id2label"), num_classes, label_names)
    return fill_model(config, weights, name_or_path)


# -----------------------------------------------------------------------------
# from files to tensors


def read_folder(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config.json and the tensors, by our names, from a folder or the hub."""
    config, *files = find_files(name)
    theirs, weights = read_file(config), dict[str, Tensor]()
    for file in files:
        weights |= {name: transposed(name, tensor) for name, tensor in unwrapped(read_file(file)).items()}
    return theirs, weights


def find_files(name: str) -> list[Path]:
    """Find config.json and the weight files in a folder or the hub's cache, or download them.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url  # takes a second to import
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError, logging

    logging.set_verbosity_error()  # one message is enough
    if (folder := Path(name).expanduser()).is_dir():
        return files_of(str(folder), local_files_only=True)
    repository = HUB_NAMES.get(name, name)
    meant = "" if name in HUB_NAMES else did_you_mean(name, ["scratch", "resume", *HUB_NAMES])
    try:
        with suppress(UserError):
            return files_of(repository, local_files_only=True)  # the cache needs no network
        print(f"{repository} is not in the Hugging Face cache: downloading it", flush=True)
        # asked once, since a download without a network would try again for half a minute
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return files_of(repository, local_files_only=False)
    except HFValidationError:
        raise UserError(
            f"init_from: there is no folder {name!r}, and no model on the hub has such a name{meant}"
        ) from None
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise UserError(f"{name} is no folder here, and the hub answered: {str(error):.300}{meant}") from None
    except Exception as error:  # of whichever http library the hub's client uses
        local = repository.rpartition("/")[2]
        raise UserError(
            f"cannot get GPT-2's weights: there is no folder {name}, and {repository} is not in the Hugging Face cache "
            f"and cannot be downloaded ({error or type(error).__name__}). On a machine with network run "
            f"`hf download {repository} config.json model.safetensors --local-dir {local}`, "
            f"bring the folder {local} here, or name it with --init_from=DIR; or begin with a small model and random "
            f"weights: --init_from=scratch --learning_rate=1e-3 --gradient_accumulation_steps=1{meant}"
        ) from None


def files_of(source: str, local_files_only: bool) -> list[Path]:
    """Return the paths of config.json and the weight files of a folder, or of a repository on the hub."""
    # from_pretrained does the same, but also makes up what is missing, casts integers, and takes seconds to import
    from transformers.utils import cached_file, has_file

    def first(*names: str) -> Path:
        for name in names:
            if has_file(source, name, local_files_only=local_files_only):
                found = cached_file(source, name, local_files_only=local_files_only)
                if found:
                    return Path(found)
        best = Path(source) / "best.pt"
        meant = f"; did you mean {best}?" if best.is_file() else ""
        raise UserError(f"{source} has no {printable(' or '.join(names))}, as transformers saves a model{meant}")

    config, weights = first("config.json"), first(*FORMS)
    if weights.suffix != ".json":
        return [config, weights]
    return [config, *(first(shard) for shard in sorted(set(read_file(weights).get("weight_map", {}).values())))]


def read_file(path: Path) -> dict[str, Any]:
    """Read a file of weights or a configuration; only tensors and plain values are unpickled."""
    import safetensors.torch

    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            try:
                content = safetensors.torch.load_file(path)
            except OSError:  # a file system that cannot map files
                content = safetensors.torch.load(path.read_bytes())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content)
    except Exception as error:  # broken bytes lead the readers into any error
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        raise UserError(f"{path} is truncated, damaged or of another program") from None


def unwrapped(stored: dict[str, Any]) -> dict[str, Any]:
    """Take the tensors, by our names, out of what training programs and other models wrap around them.

    Old versions' causal masks and a language model's output matrix, which is wte again, are left out.
    """
    for key in ("state_dict", "model"):
        if isinstance(stored.get(key), dict):
            stored = stored[key]
    weights = {}
    for name, tensor in stored.items():
        name = re.sub(r"^((module|_orig_mod|model|transformer)\.)*", "", name)
        if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            weights["head.weight" if name == "score.weight" else name] = tensor
    return weights


def read_file_of_model(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint of finetune.py or nanoGPT: what config.json would contain, and the tensors by our names."""
    path = Path(name).expanduser()
    content = read_file(path)
    if content.get("format") == checkpoint.FORMAT:
        del content
        model, saved = checkpoint.load(path)  # which checks it
        data, weights = saved["data"], model.state_dict()
        seen = "if texts of this dev set are among them, its accuracy is too high"
        tell(f"note: {path} was trained on the texts of {data['folder']}: {seen}")
        names = {str(number): name for number, name in enumerate(data["label_names"])}
        sizes = asdict(model.config) | {"id2label": names}
    elif "model_args" in content:
        sizes, weights = content["model_args"], unwrapped(content)
        if not sizes.get("bias", True):  # which is the same as zeros
            layers = [name for name in weights if name.startswith(("h.", "ln_f."))]
            weights |= {name.replace(".weight", ".bias"): torch.zeros(len(weights[name])) for name in layers}
        tell(f"note: {path} was trained with nanoGPT's exact GELU; here it is GPT-2's tanh approximation")
    else:
        raise UserError(f"{path} is no checkpoint of finetune.py or nanoGPT: name a folder with it and a config.json")
    return sizes | {"n_positions": sizes["block_size"]}, weights


# -----------------------------------------------------------------------------
# from tensors to a model


def read_config(
    source: str, theirs: dict[str, Any], num_classes: int, dropout: float, block_size: int | None
) -> GPTConfig:
    """Make our config of transformers' config.json; refuse a function that is not GPT-2's."""
    most = theirs.get("n_positions", 1024)
    sizes = {name: theirs[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd") if name in theirs}
    try:
        config = GPTConfig(num_classes=num_classes, block_size=most, dropout=dropout, **sizes)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    for key, values in GPT2S.items():
        if theirs.get(key, values[0]) not in values:
            raise UserError(f"{source}: {key} is {theirs[key]!r:.60}, but GPT-2 has {values[0]!r}")
    if block_size is not None and block_size > most:
        raise UserError(f"block_size {block_size} is more than {source}'s {most} positions: try --block_size={most}")
    return replace(config, block_size=block_size or most)


def check_head(source: str, classes: int, id2label: Any, num_classes: int, label_names: list[str] | None) -> None:
    """Refuse a stored head for other classes or in another order; print a note if only the names differ."""
    if classes != num_classes:
        raise UserError(
            f"the head in {source} is for {classes} classes, and the data has {num_classes}: take other data, "
            f"{WITHOUT_HEAD}"
        )
    if not label_names or not isinstance(id2label, dict):
        return
    stored = [str(id2label.get(str(number))) for number in range(classes)]
    if stored in (label_names, [f"LABEL_{number}" for number in range(classes)]):  # the default says nothing
        return
    theirs, ours = ", ".join(stored), ", ".join(label_names)
    if sorted(stored) == sorted(label_names):
        raise UserError(
            f"the head in {source} has the classes in the order {theirs}, but the data has {ours}: prepare the data "
            f"with --labels in the head's order, {WITHOUT_HEAD}"
        )
    tell(f"note: the head's classes in {source}, {theirs}, now stand for {ours}")


def fill_model(config: GPTConfig, theirs: dict[str, Any], source: str) -> GPT:
    """Make a model of exactly these tensors, with a random head if they have none.

    Raises:
        UserError: a tensor is missing, unknown, of another shape, or has no finite floating-point numbers.
    """
    # transformers' head has no bias, and a language model has no head
    random_head = torch.empty(config.num_classes, config.n_embd).normal_(std=0.02)
    weights = {"head.weight": random_head, "head.bias": torch.zeros(config.num_classes)}
    for name, tensor in theirs.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(f"{printable(name)} in {source} is no tensor of floating-point numbers")
        tensor = tensor[: config.block_size] if name == "wpe.weight" else tensor
        tensor = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # the file is only mapped
        if not tensor.sum().isfinite():  # NaN and infinity show in the sum, which needs no memory
            raise UserError(f"{printable(name)} in {source} has numbers that are not finite in float32")
        weights[name] = tensor
    with torch.device("meta"):  # shapes only
        model = GPT(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        wrong = " ".join(str(error).partition(":")[2].split())
        raise UserError(f"the weights in {source} do not fit the model: {printable(wrong):.600}") from None
    return model


# -----------------------------------------------------------------------------
# and back


def to_transformers(model: GPT) -> dict[str, Tensor]:
    """Return the tensors of a GPT2ForSequenceClassification with the same logits: the inverse of load_gpt2.

    Raises:
        UserError: the head's bias, which transformers' head lacks, does not fit into the final LayerNorm.
    """
    trunk = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    trunk["ln_f.bias"] = with_folded_bias(model)
    theirs = {f"transformer.{name}": transposed(name, tensor).contiguous() for name, tensor in trunk.items()}
    return theirs | {"score.weight": model.head.weight.detach()}


def transposed(name: str, tensor: Tensor) -> Tensor:
    """Convert a parameter of ours to transformers' layout, or theirs to ours: the blocks' matrices are transposed."""
    return tensor.t() if name.startswith("h.") and tensor.dim() == 2 else tensor


@torch.no_grad()
def with_folded_bias(model: GPT) -> Tensor:
    """Fold the head's bias into the final LayerNorm's: float32 (n_embd,), with which the logits stay the same.

    The logits are W x + c. If W d = c they are W (x + d), so d can be added to x, the LayerNorm's output. The shortest
    such d is computed in double precision.

    Raises:
        UserError: there is no such d, since the rows of W depend on each other.
    """
    weight, bias = (tensor.double().numpy() for tensor in (model.head.weight, model.head.bias))
    before = model.ln_f.bias.double()
    shift = np.linalg.lstsq(weight, bias, rcond=1e-6)[0]  # smaller singular values are float32's rounding
    folded = (before + torch.from_numpy(shift)).float()
    off = np.abs(weight @ (folded.double() - before).numpy() - bias).max()
    if not off <= FOLD_TOLERANCE:
        raise UserError(
            f"transformers' head has no bias, and this one's cannot go into the final LayerNorm: a logit would be off "
            f"by {off:.1e}, since the rows of head.weight depend on each other. Train with another seed, or a model "
            f"with n_embd ({model.config.n_embd}) at least the number of classes ({model.config.num_classes})"
        )
    return folded
