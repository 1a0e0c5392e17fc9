"""Workarounds for loading models with transformers. See the table in `qa.upstream`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch


logger = logging.getLogger(__name__)


def trunk_mapping(model: torch.nn.Module) -> dict[str, str] | None:
    """Return the `key_mapping` with which `from_pretrained` finds the trunk's tensors; None where it needs none.

    The models for question answering of Llama, Qwen2 and others call their trunk `transformer`. The trunk's own class, and
    so every other checkpoint of the family, calls it `model`. `from_pretrained` takes a checkpoint without the model's
    prefix for a bare trunk, in which the family's prefix must go.
    """
    own = model.base_model_prefix
    family = getattr(getattr(model, own, None), "base_model_prefix", own)
    return None if family == own else {rf"^{family}\.": ""}


@contextmanager
def changed_configurations(change: Callable[[dict], None]) -> Iterator[None]:
    """Let a function change, in place, the content of each config.json that transformers reads within, before it is used."""
    from transformers import PretrainedConfig

    read = vars(PretrainedConfig)["_dict_from_json_file"]

    def read_and_change(cls, file) -> dict:
        settings = read.__func__(cls, file)
        change(settings)
        return settings

    PretrainedConfig._dict_from_json_file = classmethod(read_and_change)
    try:
        yield
    finally:
        PretrainedConfig._dict_from_json_file = read


@contextmanager
def own_generation_ignored(model_args) -> Iterator[None]:
    """Let a model that is loaded within bring no `custom_generate/generate.py`, and report that it is not run.

    transformers 4.55.4 runs the one of a folder without --trust_remote_code, and loads no model of the hub that has one.
    """
    from transformers import GenerationMixin

    load = GenerationMixin.load_custom_generate

    def ignore(model, name, **kwargs):
        file, folder = "custom_generate/generate.py", Path(name)
        place = {"revision": kwargs.get("revision"), "token": kwargs.get("token")}
        if (folder / file).is_file() if folder.is_dir() else huggingface_hub.file_exists(name, file, **place):
            logger.warning(
                f"{name}: its code for generation, {file}, is not run; add --trust_remote_code if you trust it"
            )
        raise FileNotFoundError(file)  # the libraries go on without

    GenerationMixin.load_custom_generate = load if model_args.trust_remote_code else ignore
    try:
        yield
    finally:
        GenerationMixin.load_custom_generate = load
