"""The files of GPT-2's weights: found in a folder, in the Hugging Face cache or on its hub, and read."""

from pathlib import Path
from threading import Thread
from typing import Any

import torch

from classifier.errors import UserError, printable
from classifier.schema import read_json

ANSWER_SECONDS = 2  # for the hub to answer at all; a download may take as long as it likes
HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def find_weights(name_or_path: str) -> tuple[Path, dict[str, list[str] | None]]:
    """Return the folder of config.json and the weights; and the weight files, each with its tensors, or None for all.

    Of several shards the index says which files count, and what of them: others may be left from another model.
    """
    folder = Path(name_or_path)
    if name_or_path in HUB_NAMES and not folder.is_dir():
        return from_hub(name_or_path), {"model.safetensors": None}
    if not folder.is_dir():
        names = ", ".join(HUB_NAMES)
        raise UserError(f"init_from: {name_or_path!r} is no directory and none of {names}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it does not hold a model as transformers saves it")
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            return folder, {whole: None}
        if (folder / f"{whole}.index.json").is_file():
            return folder, read_index(folder / f"{whole}.index.json")
    raise UserError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of shards of theirs"
    )


def read_index(path: Path) -> dict[str, list[str]]:
    """Return a sharded model's files, each with the names of its tensors that count."""
    files: dict[str, list[str]] = {}
    for name, file in read_json(path, {"weight_map": is_weight_map})["weight_map"].items():
        files.setdefault(file, []).append(name)
    for file in files:
        if not (path.parent / file).is_file():
            raise UserError(f"{path} names the file {printable(file)}, which is not there")
    return files


def is_weight_map(value: Any) -> bool:
    """Return whether a value says of tensors in which file of the same folder each of them is."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(file, str) and "\0" not in file and Path(file).name == file for file in value.values())


def from_hub(name: str) -> Path:
    """Return the folder, in the Hugging Face cache, with a hub model's config.json and model.safetensors."""
    # it comes with transformers; here and not above, for a quick start without it
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # one message is enough
    repository, files = HUB_NAMES[name], ("config.json", "model.safetensors")
    cached = [try_to_load_from_cache(repository, file) for file in files]
    if all(isinstance(path, str) for path in cached):  # what is in the cache needs no network
        return Path(cached[0]).parent
    print(f"{repository} is not in the Hugging Face cache: downloading it")
    try:
        wait_for_answer(hf_hub_url(repository, "config.json"))
        paths = [hf_hub_download(repository, file) for file in files]
    except Exception as error:  # the hub client lets through the errors of whichever http library it uses
        raise UserError(
            f"cannot get GPT-2's weights: {repository} is not in the Hugging Face cache and cannot be downloaded "
            f"({type(error).__name__}). On a machine with network run "
            f"`hf download {repository} {' '.join(files)} --local-dir {name}`, "
            f"bring the folder {name} here, or name it with --init_from=DIR"
        ) from None
    return Path(paths[0]).parent


def wait_for_answer(url: str) -> None:
    """Return when the hub has answered, whatever it says; hf_hub_download would try for half a minute and longer.

    Raises:
        Exception: it has not, be it that there is no such name, no connection, or no answer in time.
    """
    from huggingface_hub.utils import get_session

    failures = []

    def ask() -> None:
        try:
            get_session().head(url, timeout=ANSWER_SECONDS)
        except Exception as error:
            failures.append(error)

    thread = Thread(target=ask, daemon=True)  # looking up a name heeds no time-out, and each address has its own
    thread.start()
    thread.join(ANSWER_SECONDS)
    if thread.is_alive():
        raise TimeoutError
    if failures:
        raise failures[0]


def read_all_weights(folder: Path, files: dict[str, list[str] | None]) -> dict[str, Any]:
    """Return tensors by their names in GPT2Model; what holds no weights of ours is left out.

    Raises:
        UserError: a tensor is missing from its file, or is there twice, with the prefix "transformer." and without.
    """
    weights = {}
    for file, names in files.items():
        stored = read_weights(folder / file)
        for name in stored if names is None else names:
            if name not in stored:
                raise UserError(f"{folder / file} lacks {printable(name)}, which the index says is in it")
            ours = name.removeprefix("transformer.")
            # the causal mask that old versions stored, and the output matrix, which is wte again
            if ours.endswith((".attn.bias", ".attn.masked_bias")) or ours == "lm_head.weight":
                continue
            if ours in weights:
                raise UserError(f"the weights in {folder} have {printable(ours)} twice, as transformer.{ours}, too")
            weights[ours] = stored[name]
    return weights


def read_weights(path: Path) -> dict[str, Any]:
    """Return what a file holds, by name; nothing is unpickled but tensors and plain values."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file: {error}") from None
    except MemoryError:
        raise
    except Exception:  # both raise whatever the broken bytes, or a type that this torch lacks, lead them into
        form = "torch" if path.suffix == ".bin" else "safetensors"
        raise UserError(f"{path} is no whole {form} file of plain tensors") from None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{path} does not hold tensors by name")
    return weights
