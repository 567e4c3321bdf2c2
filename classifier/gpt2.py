"""GPT-2's weights as people have them, into our model; and back.

What libraries do: transformers and huggingface_hub find or download the files, safetensors and torch read them, and
load_state_dict names what is missing, unknown or of another shape. What is ours: the function must be GPT-2's, every
parameter filled and none made up; a stored head must have the data's classes; and without a network a line says within
5 seconds what to do.
"""

import json
import re
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from classifier import checkpoint
from classifier.errors import UserError, printable, tell
from model import GPT, GPTConfig

HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
FORMS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LFS = b"version https://git-lfs.github.com/spec/"  # how its pointers begin
ANSWER_SECONDS = 2  # for the hub to answer at all; a download may take as long as it likes
GPT2S = {  # of a configuration; anything else would be another function
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
TRUNK_ALONE = "or keep the trunk alone, under a new head: --new_head=True"
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
        name_or_path: a folder as transformers saves GPT-2's models; a checkpoint of finetune.py or nanoGPT; else gpt2,
            gpt2-medium, gpt2-large, gpt2-xl or the name of any GPT-2 on the Hugging Face hub, from its cache or
            downloaded.
        num_classes: classes of the head.
        dropout: dropout probability, everywhere.
        block_size: keep only the first so many positions; None keeps all of them.
        label_names: the classes in the order of their numbers, compared with those of a stored head.
        new_head: leave out the stored head.

    Raises:
        UserError: the weights are out of reach, not GPT-2's, or do not fill the model exactly; or the stored head has
            other classes.
    """
    path = Path(name_or_path).expanduser()
    read = read_file_of_model if path.is_file() or path.suffix == ".pt" else read_folder
    theirs, weights = read(name_or_path)
    config = read_config(name_or_path, theirs, num_classes, dropout, block_size)
    if new_head:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    if "head.weight" in weights:
        check_head(name_or_path, len(weights["head.weight"]), theirs.get("id2label"), num_classes, label_names)
    return filled(config, weights, name_or_path)


# -----------------------------------------------------------------------------
# from files to tensors


def read_folder(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a config.json's content, and the tensors by our names, from a folder or the hub."""
    config, *files = find_files(name)
    theirs, weights = read_file(config), {}
    for file in files:
        weights |= {name: turned(name, tensor) for name, tensor in unwrapped(read_file(file)).items()}
    return theirs, weights


def find_files(name: str) -> list[Path]:
    """Return the paths of config.json and of the weight files: in a folder, else in the hub's cache, else downloaded.

    Raises:
        UserError: there are none, or they are out of reach.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # here and not above, for a quick start without it
    from huggingface_hub.utils import HFValidationError, logging

    logging.set_verbosity_error()  # one message is enough
    if (folder := Path(name).expanduser()).is_dir():
        return files_of(str(folder), local_files_only=True)
    repository = HUB_NAMES.get(name, name)
    try:
        with suppress(UserError):
            return files_of(repository, local_files_only=True)  # what is in the cache needs no network
        # a download would try for half a minute, and looking up the hub's address heeds no time-out: hence the thread
        url, limit = hf_hub_url(repository, "config.json"), {"timeout": ANSWER_SECONDS}
        with ThreadPool(1) as thread:
            thread.apply_async(get_hf_file_metadata, [url], limit).get(ANSWER_SECONDS)
        print(f"{repository} is not in the Hugging Face cache: downloading it")
        return files_of(repository, local_files_only=False)
    except HFValidationError:
        raise UserError(f"init_from: there is no folder {name!r}, and no model on the hub has such a name") from None
    except UserError:
        raise
    except Exception as error:  # the hub client lets through the errors of whichever http library it uses
        folder = repository.rpartition("/")[2]
        raise UserError(
            f"cannot get GPT-2's weights: there is no folder {name}, and {repository} is not in the Hugging Face cache "
            f"and cannot be downloaded ({type(error).__name__}). On a machine with network run "
            f"`hf download {repository} config.json model.safetensors --local-dir {folder}`, "
            f"bring the folder {folder} here, or name it with --init_from=DIR; or begin with a small model and random "
            f"weights: --init_from=scratch --learning_rate=1e-3"
        ) from None


def files_of(source: str, local_files_only: bool) -> list[Path]:
    """Return the paths of config.json and of the weight files in a folder, or in a repository of the hub."""
    # from_pretrained, which does the same, also makes up what is missing, casts integers, and takes seconds to import
    from transformers.utils import cached_file, has_file

    def first(*names: str) -> Path:
        for name in names:
            if has_file(source, name, local_files_only=local_files_only):
                return Path(cached_file(source, name, local_files_only=local_files_only))
        raise UserError(f"{source} has no {printable(' or '.join(names))}, as transformers saves a model")

    config, weights = first("config.json"), first(*FORMS)
    if weights.suffix != ".json":
        return [config, weights]
    return [config, *(first(shard) for shard in sorted(set(read_file(weights).get("weight_map", {}).values())))]


def read_file(path: Path) -> dict[str, Any]:
    """Return what a file of weights or a configuration holds; nothing is unpickled but tensors and plain values."""
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path} is Git LFS's pointer to a file, not the file: run `git lfs pull` in its folder")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        return dict(content)
    except MemoryError:
        raise
    except Exception:  # they raise whatever the broken bytes lead them into
        raise UserError(f"{path} is truncated, damaged or of another program") from None


def unwrapped(stored: dict[str, Any]) -> dict[str, Any]:
    """Return tensors by our names, freed from what training programs and other models wrap around them.

    Left out are the causal masks that old versions stored, and a language model's output matrix, which is wte again.
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
    """Return what config.json would have, and the tensors by our names, from a checkpoint of ours or of nanoGPT's."""
    path = Path(name).expanduser()
    content = read_file(path)
    if content.get("format") == checkpoint.FORMAT:
        model, saved = checkpoint.load(path)
        data, weights = saved["data"], model.state_dict()
        seen = "if these have sentences of this dev set, accuracies flatter"
        tell(f"note: {path} was trained on the texts of {data['folder']}: {seen}")
        names = {str(number): name for number, name in enumerate(data["label_names"])}
        sizes = asdict(model.config) | {"id2label": names}
    elif "model_args" in content:
        sizes, weights = content["model_args"], unwrapped(content)
        if not sizes.get("bias", True):  # no bias is one of zeros
            layers = [name for name in weights if name.startswith(("h.", "ln_f."))]
            weights |= {name.replace(".weight", ".bias"): torch.zeros(len(weights[name])) for name in layers}
        tell(f"note: {path} was trained with nanoGPT's exact GELU; from here on GPT-2's tanh approximation takes over")
    else:
        raise UserError(f"{path} is of neither finetune.py nor nanoGPT: name a folder with it and a config.json")
    return sizes | {"n_positions": sizes["block_size"]}, weights


# -----------------------------------------------------------------------------
# from tensors to a model


def read_config(
    source: str, theirs: dict[str, Any], num_classes: int, dropout: float, block_size: int | None
) -> GPTConfig:
    """Return our config from the content of transformers' config.json; refuse what would not be GPT-2's function."""
    sizes = {"n_positions": 1024, "vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_embd": 768}
    try:
        config = GPTConfig(num_classes, *(theirs.get(name, size) for name, size in sizes.items()), dropout)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    for key, values in GPT2S.items():
        if theirs.get(key, values[0]) not in values:
            raise UserError(f"{source}: {key} is {theirs[key]!r:.60}, but GPT-2 has {values[0]!r}")
    most = config.block_size
    if block_size is not None and block_size > most:
        raise UserError(f"block_size {block_size} is more than {source}'s {most} positions: try --block_size={most}")
    return replace(config, block_size=block_size or most)


def check_head(source: str, classes: int, id2label: Any, num_classes: int, label_names: list[str] | None) -> None:
    """Refuse a stored head of other classes or another order; say so where it has classes of other names."""
    if classes != num_classes:
        raise UserError(
            f"the head in {source} is for {classes} classes, and {num_classes} are asked for: take data with its "
            f"classes, {TRUNK_ALONE}"
        )
    if not label_names or not isinstance(id2label, dict):
        return
    stored = [str(id2label.get(str(number))) for number in range(classes)]
    theirs, ours = ", ".join(stored), ", ".join(label_names)
    if stored in (label_names, [f"LABEL_{number}" for number in range(classes)]):  # the latter says nothing
        return
    if sorted(stored) == sorted(label_names):
        raise UserError(
            f"the head in {source} has the classes in the order {theirs}, but the data has {ours}: number the data's "
            f"labels as the head does, {TRUNK_ALONE}"
        )
    tell(f"note: the head's classes in {source}, {theirs}, now stand for {ours}")


def filled(config: GPTConfig, theirs: dict[str, Any], source: str) -> GPT:
    """Return a model of exactly these tensors; a head that is not there is random.

    Raises:
        UserError: one is missing, unknown, of another shape, or no finite floating-point numbers.
    """
    # transformers' head has no bias, and a language model has no head
    random_head = torch.empty(config.num_classes, config.n_embd).normal_(std=0.02)
    weights = {"head.weight": random_head, "head.bias": torch.zeros(config.num_classes)}
    for name, tensor in theirs.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(f"{printable(name)} in {source} is no tensor of floating-point numbers")
        tensor = tensor[: config.block_size] if name == "wpe.weight" else tensor
        tensor = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # the file is only mapped
        if not tensor.sum().isfinite():  # NaN and infinity get into every sum, which needs no memory
            raise UserError(f"{printable(name)} in {source} holds numbers that are not finite in float32")
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
    """Return the tensors of a GPT2ForSequenceClassification with the model's very logits: load_gpt2's inverse.

    transformers' head has no bias; ours goes into the final LayerNorm's.

    Raises:
        UserError: it does not go in there.
    """
    trunk = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    trunk["ln_f.bias"] = with_folded_bias(model)
    theirs = {f"transformer.{name}": turned(name, tensor).contiguous() for name, tensor in trunk.items()}
    return theirs | {"score.weight": model.head.weight.detach()}


def turned(name: str, tensor: Tensor) -> Tensor:
    """Return a parameter of ours as transformers keeps it, or theirs as we do: blocks' matrices the other way round."""
    return tensor.t() if name.startswith("h.") and tensor.dim() == 2 else tensor


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
