"""LoRA: flags, and models on the disk that are adapters, a few trained weights next to the weights of another model.

    python run_qa.py --model_name_or_path BASE --lora_r 16 ... --output_dir OUT
    python run_qa.py --model_name_or_path OUT ...

OUT holds `adapter_config.json`, which names BASE, and `adapter_model.safetensors`: the adapters and the answer head.
`qa.adapters` builds and loads such models, and is the one module that imports peft.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from qa.arguments import ModelArguments
from qa.errors import UserError, in_one_line
from qa.files import parse_json
from qa.hub import can_be_on_hub
from qa.names import is_missing, missing_package


ADAPTER_CONFIG = "adapter_config.json"
FLAGS = ("lora_alpha", "lora_dropout", "lora_target_modules")
DROPOUT = 0.05  # of optimum-habana's run_lora_clm.py
SCALE = 2  # lora_alpha / lora_r: 16 and 8 there


def lora_problems(values) -> list[str]:
    """Return the problems of flags that need `--lora_r`.

    Args:
        values: the values of all flags, as a namespace.
    """
    problems = [f"--{name} is a setting of adapters; add --lora_r" for name in FLAGS if given_alone(values, name)]
    name = getattr(values, "model_name_or_path", None) or ""
    if os.path.isfile(f"{name}/{ADAPTER_CONFIG}") and is_missing("peft"):
        problems.append(peft_is_missing(name))
    merges = getattr(values, "merge_lora", False)
    if merges and not values.do_train:
        problems.append("--merge_lora merges adapters after their training; add --do_train, or omit it")
    elif merges and has_none(values):
        problems.append("--merge_lora: the model has no adapters; add --lora_r, or omit --merge_lora")
    if merges and values.fsdp:
        problems.append("--merge_lora: FSDP distributes the weights; omit --merge_lora, or --fsdp")
    return problems


def has_none(values) -> bool:
    """Return whether a run has no adapters; of a model on the hub that is not known here."""
    folder = values.model_name_or_path or ""
    return values.lora_r is None and os.path.isdir(folder) and not os.path.isfile(f"{folder}/{ADAPTER_CONFIG}")


def peft_is_missing(name: str) -> str:
    return missing_package(f"--model_name_or_path {name} holds adapters, and", "peft", "name another model")


def given_alone(values, name: str) -> bool:
    return getattr(values, name, None) is not None and getattr(values, "lora_r", None) is None


def read_adapter(model_args: ModelArguments) -> dict | None:
    """Return the content of the `adapter_config.json` of what `--model_name_or_path` names; None for a whole model.

    Raises:
        UserError: it is no adapter of LoRA, or names no model that it belongs to.
    """
    name, file = model_args.model_name_or_path, find_adapter(model_args)
    if file is None:
        return None
    try:
        settings = parse_json(file.read_bytes())
        kind, base = settings["peft_type"], settings["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--model_name_or_path {name}: its {ADAPTER_CONFIG} is damaged ({in_one_line(error)}); copy it again"
        ) from error
    if kind != "LORA":
        raise UserError(f"--model_name_or_path {name}: its adapters are of the type {kind}; name adapters of LoRA")
    if base is None or not (os.path.isdir(base) or can_be_on_hub(base)):
        raise UserError(
            f"--model_name_or_path {name}: its adapters belong to the model {base}, which does not exist; copy it there, or "
            f"change base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    return settings


def find_adapter(model_args: ModelArguments) -> Path | None:
    """Return the `adapter_config.json` of what `--model_name_or_path` names, None for a whole model.

    Raises:
        Exception: of many kinds, where the hub does not answer.
    """
    name = model_args.model_name_or_path
    if os.path.isdir(name):
        return Path(name) / ADAPTER_CONFIG if (Path(name) / ADAPTER_CONFIG).is_file() else None
    return find_on_hub(name, model_args.cache_dir, model_args.model_revision, model_args.token)


@cache
def find_on_hub(name: str, cache_dir: str | None, revision: str, token: str | None) -> Path | None:
    """Do the same for a name on the hub, which is asked once, and not for a whole model in its cache."""
    place = {"cache_dir": cache_dir, "revision": revision}
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json", **place), str):
        return None
    try:
        return Path(huggingface_hub.hf_hub_download(name, ADAPTER_CONFIG, token=token, **place))
    except LocalEntryNotFoundError:  # also an EntryNotFoundError
        raise
    except EntryNotFoundError:
        return None


def base_arguments(model_args: ModelArguments) -> ModelArguments:
    """Return the arguments that name the model of adapters; the same ones for a whole model."""
    adapter = read_adapter(model_args)
    if adapter is None:
        return model_args
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    return replace(model_args, model_name_or_path=base, model_revision=revision or "main")


def adapter_files(folder: Path) -> list[Path]:
    """Return the files in a folder that decide what adapters compute; none for a whole model."""
    weights = sorted(folder.glob("adapter_model.*"))
    return [folder / ADAPTER_CONFIG, *weights] if (folder / ADAPTER_CONFIG).is_file() else []


def has_adapters(model: torch.nn.Module) -> bool:
    """Return whether a model, with or without weights, has adapters."""
    return hasattr(model, "peft_config")


def own_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model of transformers in a model with adapters, which peft wraps and `build_weightless` does not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_of_adapter(name: str) -> bool:
    """Return whether a tensor of a model with adapters is none of the whole model: of an adapter, or of the untrained head."""
    return ".lora_" in name or ".original_module." in name


def trained_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters a training changes, and how many there are; ZeRO-3 keeps a part of them on each rank."""
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
