"""Where a run happens: optimum-habana's trainer on a Gaudi, transformers' own on a CPU, a GPU or Apple silicon.

Everything that depends on whether this machine has a Gaudi stands here, and so does every message about a missing one.
The same command line parses in both cases: where optimum-habana cannot be used, its flags are declared with its defaults.
"""

import dataclasses
import importlib.util
import logging
from functools import cache
from typing import Optional

import torch
import transformers.utils.import_utils

from errors_qa import UserError


# transformers imports scikit-learn for one function of assisted generation, which nothing here uses: 1.5 s of CPU.
transformers.utils.import_utils._sklearn_available = False

logger = logging.getLogger(__name__)

# The flags that GaudiTrainingArguments (optimum-habana 1.21.2) adds to TrainingArguments, with type and default.
GAUDI_FLAGS = {
    "use_habana": (bool, False),
    "gaudi_config_name": (Optional[str], None),
    "use_lazy_mode": (bool, False),  # True on a Gaudi; here, so that a --use_lazy_mode is named among what is ignored
    "use_hpu_graphs": (bool, False),
    "use_hpu_graphs_for_inference": (bool, False),
    "use_hpu_graphs_for_training": (bool, False),
    "use_compiled_autograd": (bool, False),
    "compile_from_sec_iteration": (bool, False),
    "compile_dynamic": (Optional[bool], None),
    "use_zero3_leaf_promotion": (bool, False),
    "cache_size_limit": (Optional[int], None),
    "use_regional_compilation": (bool, False),
    "inline_inbuilt_nn_modules": (Optional[bool], None),
    "allow_unspec_int_on_nn_module": (Optional[bool], None),
    "disable_tensor_cache_hpu_graphs": (bool, False),
    "max_hpu_graphs": (Optional[int], None),
    "distribution_strategy": (str, "ddp"),
    "context_parallel_size": (int, 1),
    "minimize_memory": (bool, False),
    "throughput_warmup_steps": (int, 0),
    "adjust_throughput": (bool, False),
    "pipelining_fwd_bwd": (bool, False),
    "ignore_eos": (bool, True),
    "non_blocking_data_copy": (bool, False),
    "profiling_warmup_steps": (int, 0),
    "profiling_steps": (int, 0),
    "profiling_warmup_steps_eval": (int, 0),
    "profiling_steps_eval": (int, 0),
    "profiling_record_shapes": (bool, True),
    "profiling_with_stack": (bool, False),
    "attn_implementation": (str, "eager"),
    "flash_attention_recompute": (bool, False),
    "flash_attention_fast_softmax": (bool, False),
    "flash_attention_causal_mask": (bool, False),
    "flash_attention_fp8": (bool, False),
    "sdp_on_bf16": (bool, False),
    "fp8": (bool, False),
}
# Defaults of TrainingArguments that optimum-habana changes; kept everywhere, so that a command gives the same numbers.
GAUDI_DEFAULTS = {
    "optim": (str, "adamw_torch"),
    "adam_epsilon": (float, 1e-6),
    "logging_nan_inf_filter": (bool, False),
    "ddp_bucket_cap_mb": (Optional[int], 230),
    "ddp_find_unused_parameters": (Optional[bool], False),
    "half_precision_backend": (str, "hpu_amp"),
}


@cache
def gaudi_is_usable() -> bool:
    """Whether optimum-habana can run here: it needs Habana's PyTorch plugin and a card that the plugin sees."""
    if importlib.util.find_spec("habana_frameworks") is None:
        return False
    import habana_frameworks.torch.hpu as hpu  # registers the device with PyTorch

    return hpu.is_available()


def what_is_missing() -> str:
    """Why `--use_habana` cannot be served here, and what to do."""
    if importlib.util.find_spec("habana_frameworks") is None:
        missing = "Habana's PyTorch plugin (habana_frameworks) is not installed in this Python"
    else:
        missing = (
            "Habana's PyTorch plugin is installed but sees no card (`hl-smi` shows which are there and who uses them)"
        )
    return (
        f"--use_habana: {missing}. Run inside Habana's PyTorch image on a Gaudi node, "
        "or leave --use_habana away to run on this machine's GPU or CPU."
    )


@cache
def training_arguments(seq2seq: bool = False) -> type:
    """The training arguments of a script: optimum-habana's on a Gaudi, transformers' plus its flags elsewhere."""
    if gaudi_is_usable():
        from optimum.habana import GaudiSeq2SeqTrainingArguments, GaudiTrainingArguments

        base, added = GaudiSeq2SeqTrainingArguments if seq2seq else GaudiTrainingArguments, {}
    else:
        from transformers import Seq2SeqTrainingArguments, TrainingArguments

        base, added = Seq2SeqTrainingArguments if seq2seq else TrainingArguments, GAUDI_FLAGS | GAUDI_DEFAULTS
    flags = [(name, kind, dataclasses.field(default=default)) for name, (kind, default) in added.items()]
    for name, _, flag in flags[: len(GAUDI_FLAGS)]:
        flag.metadata = {"help": "Of optimum-habana: counts on a Gaudi, with --use_habana, and is ignored elsewhere."}
    made = dataclasses.make_dataclass(f"Device{base.__name__}", flags, bases=(DeviceChoice, base))
    made.__module__ = __name__
    return made


def __getattr__(name: str) -> type:
    """Lets `training_args.bin` be unpickled: its class is made by `training_arguments` when it is first asked for."""
    if name.startswith("Device") and name.endswith("TrainingArguments"):
        return training_arguments(True) if "Seq2Seq" in name else training_arguments()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class DeviceChoice:
    """What the training arguments do before they check themselves: decide between a Gaudi and the rest."""

    def __post_init__(self):
        if not self.use_habana:
            self.leave_gaudi_flags()
            # Without this transformers refuses --bf16 on a machine that has nothing but a CPU.
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        elif not gaudi_is_usable():
            raise UserError(what_is_missing())
        super().__post_init__()

    def leave_gaudi_flags(self) -> None:
        """Without `--use_habana`, sets every flag that only a Gaudi knows back to its default and names those."""
        given = [name for name, (_, default) in GAUDI_FLAGS.items() if getattr(self, name) != default]
        for name in given:
            setattr(self, name, GAUDI_FLAGS[name][1])
        self.use_lazy_mode = False  # GaudiTrainingArguments refuses its own default without use_habana
        if self.half_precision_backend == "hpu_amp":
            self.half_precision_backend = "cpu_amp" if gaudi_is_usable() else "auto"
        if self.torch_compile_backend == "hpu_backend":
            given.append("torch_compile_backend")
            self.torch_compile_backend = None
        if given:
            logger.warning(f"Without --use_habana these are ignored: {', '.join('--' + name for name in given)}")


@cache
def trainer_class(seq2seq: bool = False) -> type:
    """The trainer that the scripts' trainers extend: GaudiTrainer where that is usable, transformers' Trainer elsewhere."""
    if gaudi_is_usable():
        from optimum.habana import GaudiSeq2SeqTrainer, GaudiTrainer

        return GaudiSeq2SeqTrainer if seq2seq else GaudiTrainer
    from transformers import Seq2SeqTrainer, Trainer

    return Seq2SeqTrainer if seq2seq else Trainer


def trainer_extras(args, model_args) -> dict:
    """What GaudiTrainer wants beyond Trainer's own parameters: the Gaudi configuration that the flags name."""
    if not gaudi_is_usable():
        return {}
    from optimum.habana import GaudiConfig

    if args.gaudi_config_name is None:
        return {"gaudi_config": GaudiConfig()}
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}
    return {"gaudi_config": GaudiConfig.from_pretrained(args.gaudi_config_name, **hub)}
