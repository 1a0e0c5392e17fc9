"""Models with adapters: how they are built, loaded, saved and merged. It imports peft, which is optional: import it where needed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from qa.arguments import ModelArguments, hub_place
from qa.checkpoints import trunk_parameters
from qa.errors import UserError
from qa.lora import DROPOUT, SCALE, is_of_adapter, read_adapter


logger = logging.getLogger(__name__)


class Adapted(PeftModel):
    """A model with adapters, which the libraries' trainers train, save and load as adapters.

    peft 0.17.1 has a class for models that mark answers. It drops their token types, and BERT takes the question for a
    part of the context; see https://github.com/huggingface/peft. So the class of no task is the base.

    Attributes:
        merged: the adapters are added to the model's weights, and `save_pretrained` writes the whole model.
    """

    merged = False

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """Let layers compute activations twice; their input needs a gradient, or reentrant autograd has none to compute."""
        self.get_base_model().gradient_checkpointing_enable(*args, **kwargs)
        self.get_base_model().enable_input_require_grads()

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write no model card: the run writes its own."""

    def save_pretrained(self, save_directory, state_dict=None, safe_serialization: bool = True, **settings) -> None:
        """Write adapters and head, or the whole model once it is merged.

        peft would ask the hub at each checkpoint whether the base's vocabulary has another size; adapters change none.
        """
        settings |= {"state_dict": state_dict, "safe_serialization": safe_serialization}
        if not self.merged:
            return super().save_pretrained(save_directory, save_embedding_layers=False, **settings)
        whole = plain_names(self.state_dict() if state_dict is None else state_dict)
        self.get_base_model().save_pretrained(save_directory, **settings | {"state_dict": whole})

    def merge(self) -> None:
        """Add the adapters to the weights that they belong to, layer by layer; on all ranks together."""
        for layer in [layer for layer in self.modules() if isinstance(layer, LoraLayer)]:
            with gathered(layer):
                layer.merge()
        self.merged = True


@contextmanager
def gathered(layer: torch.nn.Module) -> Iterator[None]:
    """Let a layer whose weights ZeRO-3 distributes have all of them within, and distribute them again as rank 0 has them."""
    weights = [weight for weight in layer.parameters() if hasattr(weight, "ds_id")]
    if not weights:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(weights, modifier_rank=0):
        yield


def plain_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a merged model under the names that they have in a model without adapters.

    >>> sorted(plain_names(dict.fromkeys([
    ...     "base_model.model.a.base_layer.weight", "base_model.model.a.lora_A.default.weight",
    ...     "base_model.model.head.original_module.bias", "base_model.model.head.modules_to_save.default.bias",
    ... ])))
    ['a.weight', 'head.bias']
    """
    return {
        name.removeprefix("base_model.model.")
        .replace(".base_layer.", ".")
        .replace(".modules_to_save.default.", "."): tensor
        for name, tensor in tensors.items()
        if not is_of_adapter(name)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Building and loading


def add_adapters(model: torch.nn.Module, model_args: ModelArguments) -> Adapted:
    """Return a model with the adapters of `--model_name_or_path`, without their weights, or the new ones of `--lora_r`."""
    saved = read_adapter(model_args)
    if saved is not None:
        return Adapted(model, saved_config(model_args), autocast_adapter_dtype=False)
    return Adapted(model, new_config(model, model_args), autocast_adapter_dtype=False)


def load_adapters(model: torch.nn.Module, model_args: ModelArguments) -> Adapted:
    """Return a model with the adapters of `--model_name_or_path` and their weights, to be trained further."""
    settings = {"config": saved_config(model_args), "is_trainable": True, "autocast_adapter_dtype": False}
    return Adapted.from_pretrained(
        model, model_args.model_name_or_path, torch_device="cpu", **settings, **hub_place(model_args)
    )


def saved_config(model_args: ModelArguments) -> LoraConfig:
    """Return the configuration of the adapters of `--model_name_or_path`, to be trained further."""
    config = LoraConfig.from_pretrained(model_args.model_name_or_path, **hub_place(model_args))
    config.task_type, config.inference_mode = None, False  # see `Adapted`
    return config


def new_config(model: torch.nn.Module, model_args: ModelArguments) -> LoraConfig:
    """Return the configuration of new adapters, in all linear layers of a model's body unless flags name others.

    Raises:
        UserError: `--lora_target_modules` names no linear layer.
    """
    alpha, dropout = model_args.lora_alpha, model_args.lora_dropout
    heads = head_modules(model)
    return LoraConfig(
        r=model_args.lora_r,
        lora_alpha=SCALE * model_args.lora_r if alpha is None else alpha,
        lora_dropout=DROPOUT if dropout is None else dropout,
        target_modules=target_modules(model, heads, model_args.lora_target_modules),
        modules_to_save=heads or None,
        base_model_name_or_path=model_args.model_name_or_path,
        revision=None if model_args.model_revision == "main" else model_args.model_revision,
    )


def head_modules(model: torch.nn.Module) -> list[str]:
    """Return the modules of the answer head, which the trunk lacks; none of a model that writes: its own head goes on."""
    trunk, written = trunk_parameters(model), model.get_output_embeddings()
    heads = {name.split(".")[0] for name, _ in model.named_parameters() if name not in trunk}
    return sorted(name for name in heads if getattr(model, name) is not written)


def target_modules(model: torch.nn.Module, heads: list[str], given: list[str] | None) -> list[str]:
    """Return the names of the layers that get adapters: all linear ones outside of the heads, or those with given last names."""
    written = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    body = [name for name in linear if name.split(".")[0] not in heads and model.get_submodule(name) is not written]
    if given is None:
        return body
    if unknown := [name for name in given if not any(f".{layer}".endswith(f".{name}") for layer in body)]:
        known = list(dict.fromkeys(name.rpartition(".")[2] for name in body))
        raise UserError(
            f"--lora_target_modules {' '.join(unknown)}: the model has no linear layer of that name; name some of "
            f"{', '.join(known)}, or omit the flag"
        )
    return [layer for layer in body if any(f".{layer}".endswith(f".{name}") for name in given)]
