"""The tensors of a checkpoint, by name and size and without reading weights, and those of a model that it lacks."""

import logging
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from transformers import AutoModel
from transformers.modeling_utils import _find_missing_and_unexpected_keys

from qa.arguments import ModelArguments
from qa.errors import UserError, reason_of
from qa.files import parse_json
from qa.lora import ADAPTER_CONFIG
from qa.upstream.models import trunk_mapping
from qa.weightless import build_weightless


logger = logging.getLogger(__name__)

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
NAMES_SHOWN = 3
OLD_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9"  # the beginning of what PyTorch before 1.6 saved

Sizes = dict[str, tuple[int, ...]]

# ---------------------------------------------------------------------------------------------------------------------
# A checkpoint's names and sizes


def read_sizes(model_args: ModelArguments, remote: bool) -> Sizes | None:
    """Return the size of each tensor of a checkpoint by name, from the heads of its files.

    Return None where that would need weights to be read or downloaded: `.bin` files of PyTorch before 1.6, and models
    of the hub that are not in its cache and, with `remote`, have no safetensors there.

    Raises:
        UserError: a folder without weights, or a file that is missing or incomplete.
    """
    name = model_args.model_name_or_path
    try:
        files = weight_files(model_args)
        if files is None:
            return sizes_on_hub(model_args) if remote and not Path(name).is_dir() else None  # a folder of adapters
        if not all([file.suffix == ".safetensors" or is_archive(file) for file in files]):
            return None
        return {key: size for file in files for key, size in sizes_in_file(file).items()}
    except Exception as error:  # the files can hold anything
        raise UserError(
            f"--model_name_or_path {name}: its weights cannot be read ({reason_of(error)}); copy or download them again"
        ) from error


def weight_files(model_args: ModelArguments) -> list[Path] | None:
    """Return the files of weights in a folder or the hub's cache; None where the cache does not have all of them."""
    first = next(filter(None, (find_file(model_args, name) for name in WEIGHT_FILES)), None)
    folder = Path(model_args.model_name_or_path)
    if first is None and folder.is_dir() and not (folder / ADAPTER_CONFIG).exists():
        raise FileNotFoundError(f"there is none of {', '.join(WEIGHT_FILES)}")
    if first is None or first.suffix != ".json":
        return first and [first]
    shards = sorted(set(parse_json(first.read_text())["weight_map"].values()))
    files = [find_file(model_args, shard) for shard in shards]
    if None in files and folder.is_dir():
        raise FileNotFoundError(f"there is no {shards[files.index(None)]}, which {first.name} names")
    return None if None in files else files


def find_file(model_args: ModelArguments, name: str) -> Path | None:
    folder = Path(model_args.model_name_or_path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    place = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}
    cached = huggingface_hub.try_to_load_from_cache(model_args.model_name_or_path, name, **place)
    return Path(cached) if isinstance(cached, str) else None


def is_archive(file: Path) -> bool:
    """Return whether a file of PyTorch is an archive, as since version 1.6, and not of its older format.

    Raises:
        ValueError: it is neither of them, or not complete.
    """
    if zipfile.is_zipfile(file):
        return True
    with file.open("rb") as content:
        if content.read(len(OLD_MAGIC)) != OLD_MAGIC:
            raise ValueError(f"{file.name} is incomplete, or no file of PyTorch")
    return False


def sizes_in_file(file: Path) -> Sizes:
    if file.suffix == ".safetensors":
        return {name: tuple(tensor["shape"]) for name, tensor in safetensors_head(file).items()}
    try:
        tensors = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to run whatever code the file holds
        raise ValueError(f"{file.name} holds other things than tensors") from error
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def safetensors_head(file: Path) -> dict[str, dict]:
    """Return type, shape and place of each tensor in a file.

    The safetensors library would map the whole file, which fails on a machine with less memory.

    Raises:
        ValueError: the file is incomplete.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            head = parse_json(content.read(min(length, file.stat().st_size)))
        except ValueError as error:
            raise ValueError(f"{file.name} is incomplete, or no file of safetensors") from error
    tensors = {name: tensor for name, tensor in head.items() if name != "__metadata__"}
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if file.stat().st_size != expected:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, not {expected}")
    return tensors


def sizes_on_hub(model_args: ModelArguments) -> Sizes | None:
    """Return the sizes that the hub has of a model's safetensors; None without such files, or without the hub."""
    place = {"revision": model_args.model_revision, "token": model_args.token}
    try:
        files = huggingface_hub.get_safetensors_metadata(
            model_args.model_name_or_path, **place
        ).files_metadata.values()
    except (OSError, NotASafetensorsRepoError, SafetensorsParsingError):
        return None
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# A model and a checkpoint


def model_names(model: torch.nn.Module, names: list[str]) -> dict[str, str]:
    """Return the model's name of each tensor of a checkpoint, as `from_pretrained` of transformers 4.55 finds it."""
    alone, inside = loads_trunk(model, names)
    return model._get_key_renaming_mapping(names, trunk_mapping(model), inside, alone)


def loads_trunk(model: torch.nn.Module, names: list[str]) -> tuple[bool, bool]:
    """Return whether the checkpoint is the bare trunk of the model, and whether the model is that of the checkpoint."""
    prefix = model.base_model_prefix
    if not prefix:
        return False, False
    there, here = any(name.startswith(prefix) for name in names), hasattr(model, prefix)
    return here and not there, there and not here


def missing_and_unexpected(model: torch.nn.Module, names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the model's names that the checkpoint lacks, of tied tensors if it has none of them, and the surplus ones."""
    _, inside = loads_trunk(model, list(names))
    return _find_missing_and_unexpected_keys(
        type(model), model, list(names), list(names.values()), inside, hf_quantizer=None, device_map=None
    )


def trunk_parameters(model: torch.nn.Module) -> set[str]:
    """Return the names of all parameters that are not part of the task's head.

    They are the parameters of the model's base model. Where that is no module of the model, as in T5, they are the
    parameters that the base model of the same configuration also has.
    """
    prefix, trunk = f"{model.base_model_prefix}.", getattr(model, model.base_model_prefix, None)
    if trunk is None:
        try:
            prefix, trunk = "", build_weightless(AutoModel, model.config)
        except ValueError:  # a type without a base model: all its parameters are
            trunk = model
    return {prefix + name for name, _ in trunk.named_parameters(remove_duplicate=False)}


def part_of(model: torch.nn.Module, name: str) -> str:
    """Return the module at the top of the trunk that a tensor belongs to: `bert.encoder` of `bert.encoder.layer.0...`."""
    return ".".join(name.split(".")[: 2 if hasattr(model, model.base_model_prefix) else 1])


def checkpoint_problems(model: torch.nn.Module, sizes: Sizes) -> list[str]:
    """Return why tensors of these sizes cannot be a model's; warn of tensors for which its trunk has no place."""
    names = model_names(model, list(sizes))
    missing, unexpected = missing_and_unexpected(model, names)
    parts = {part_of(model, name) for name in trunk_parameters(model)}
    if surplus := [name for name in unexpected if part_of(model, name) in parts]:
        logger.warning(f"The configuration has no place for {count_of(surplus)} of the checkpoint: {listed(surplus)}")
    return lost_tensors(model, missing) + wrong_sizes(model, {name: sizes[key] for key, name in names.items()})


def lost_tensors(model: torch.nn.Module, missing: Iterable[str]) -> list[str]:
    """Return the problem with missing tensors, if one of them is not part of the task's head."""
    lost = sorted(trunk_parameters(model).intersection(missing))
    if not lost:
        return []
    return [
        f"the checkpoint lacks {count_of(lost)} of the model, which would be random numbers: {listed(lost)}; "
        f"name a checkpoint of a {model.config.model_type} model"
    ]


def wrong_sizes(model: torch.nn.Module, sizes: Sizes) -> list[str]:
    """Return the problem with tensors whose size differs from that of the model's tensor of the same name, if any."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
    wrong = [
        f"{name} is {shape_of(size)}, not {shape_of(expected[name])}"
        for name, size in sizes.items()
        if size != expected.get(name, size)
    ]
    if not wrong:
        return []
    return [
        f"{count_of(wrong)} of the checkpoint with another size than in the configuration: {listed(wrong)}; "
        "name the configuration that belongs to the checkpoint"
    ]


def adapter_problems(model: torch.nn.Module, model_args: ModelArguments) -> list[str]:
    """Return why the adapters in a folder cannot be those of a weightless model that has their places; none for the hub's.

    Without `adapter_model.safetensors` they may be in an older file of PyTorch, which is not read here.
    """
    folder = Path(model_args.model_name_or_path)
    file = folder / "adapter_model.safetensors"
    if not folder.is_dir() or (folder / "adapter_model.bin").is_file():
        return []
    if not file.is_file():
        return [f"there is no {file.name}; copy it again"]
    try:
        sizes = sizes_in_file(file)
    except (OSError, ValueError) as error:
        return [f"its adapters cannot be read ({reason_of(error)}); copy them again"]
    expected = {
        f"base_model.model.{name.replace('.modules_to_save.', '.').replace('.default.', '.')}": tuple(weight.shape)
        for name, weight in model.named_parameters()
        if ".lora_" in name or ".modules_to_save." in name
    }
    wrong = [name for name, size in expected.items() if sizes.get(name) != size]
    if not wrong:
        return []
    return [
        f"{count_of(wrong)} of the adapters are missing or have another size than in their model: {listed(wrong)}; name the "
        f"model that they were trained with as base_model_name_or_path in {ADAPTER_CONFIG}"
    ]


def shape_of(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def count_of(tensors: list) -> str:
    return f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}"


def listed(names: list[str]) -> str:
    """Return the first names, and how many others there are."""
    others = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {others} others" if others > 0 else "")
