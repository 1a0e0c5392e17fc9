"""How a model computes its attention: as `--attn_implementation` says, and never with code that a configuration names."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from qa.arguments import ModelArguments
from qa.errors import UserError, in_one_line, short
from qa.upstream.models import changed_configurations
from qa.weightless import build_weightless, forward


logger = logging.getLogger(__name__)

# Settings of a configuration that choose the attention, see `PretrainedConfig._attn_implementation` of transformers 4.55.
CHOICES = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


@contextmanager
def kernels_dropped(model_args: ModelArguments) -> Iterator[None]:
    """Remove from configurations that are read within the repositories of the hub that they name, and report those.

    transformers 4.55.4 downloads and runs their code without asking (CVE-2026-4372). With --trust_remote_code it may.
    """
    found = []
    with changed_configurations(lambda settings: found.extend(drop_repositories(settings))):
        yield
    for name in dict.fromkeys(found):
        logger.warning(
            f"{model_args.config_name or model_args.model_name_or_path}: its configuration names code for the attention, "
            f"{short(name)}, which is not run; add --trust_remote_code if you trust its authors"
        )


def drop_repositories(settings: dict | list) -> list[str]:
    """Remove the repositories that a configuration names for the attention, at any depth, in place; return them.

    A repository is the only name with a slash: "owner/name", "owner/name:function", "wrapper|owner/name". Settings that
    would be stored under another name, where this does not see them, are removed too.
    """
    found = []
    if isinstance(settings, dict):
        settings.pop("attribute_map", None)
    for name, value in list(settings.items() if isinstance(settings, dict) else enumerate(settings)):
        if name in CHOICES and "/" in str(value):
            settings[name] = None
            found.extend(each for each in (value.values() if isinstance(value, dict) else [value]) if "/" in str(each))
        elif isinstance(value, (dict, list)):
            found += drop_repositories(value)
    return found


def set_attention(auto_class: type, config: PretrainedConfig, model_args: ModelArguments, name: str | None) -> None:
    """Let the model of a configuration compute its attention as `--attn_implementation` says, if it says so.

    Raises:
        UserError: the model cannot, or it would compute its attention in another way all the same.
    """
    if name is None:
        return
    config._attn_implementation = name
    if name == "eager":  # which every model has
        return
    reason = ""
    try:
        model = build_weightless(auto_class, config, model_args.trust_remote_code)
    except (ValueError, ImportError) as error:  # transformers' own check
        model, reason = None, f" ({in_one_line(error, 120)})"
    except KeyError:  # a table of the model's classes without that name
        model = None
    if model is None or not calls_kernel(model):
        raise UserError(
            f"--attn_implementation {name}: models of the type {config.model_type} do not compute their attention that way "
            f"on this device{reason}; use eager, or omit the flag"
        )


class KernelReached(BaseException):
    """A model called a kernel of attention."""


class KernelWatch(TorchFunctionMode):
    """Raise `KernelReached` where PyTorch's own kernel of attention is called."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            raise KernelReached
        return function(*args, **(kwargs or {}))


def calls_kernel(model: torch.nn.Module) -> bool:
    """Return whether a forward pass of a weightless model calls a kernel of attention; True where it cannot be tried.

    Habana's kernel is PyTorch's there.
    """
    try:
        with KernelWatch():
            forward(model, {name: torch.ones(1, 8, dtype=torch.long) for name in ("input_ids", "attention_mask")})
    except KernelReached:
        return True
    except KeyError:  # a table of attentions without that name
        return False
    except Exception:  # `check_batches` reports what is wrong with the model
        return True
    return False
