"""Which trainer and training arguments serve a run: optimum-habana's on a Gaudi, transformers' own elsewhere.

The same command line parses in both cases: where optimum-habana cannot be used, its flags are declared with its defaults.
"""

import dataclasses
import logging
import os
import sys
from functools import cache
from typing import Optional

import torch

from qa.arguments import hub_place
from qa.errors import UserError
from qa.files import json_settings
from qa.gaudi_flags import compiles, flags_without_effect
from qa.meeting import meet
from qa.preflight import (
    gaudi_is_usable,
    quiet_imports,
    read_gaudi_config,
)
from qa.secret_flags import SECRETS
from qa.upstream import exchange_through_gloo, place_one_rank
from qa.upstream.gaudi import GaudiCorrections, patch_attention, patch_bart, support_albert_checkpointing
from qa.upstream.training import RankDevice, write_finite_states


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


# Those with an effect on every device: see qa.speed and qa.attention.
EVERYWHERE = ("throughput_warmup_steps", "adjust_throughput", "attn_implementation", "non_blocking_data_copy")


# Defaults of TrainingArguments that optimum-habana changes; kept on every device, so that results are the same.
GAUDI_DEFAULTS = {
    "optim": (str, "adamw_torch"),
    "adam_epsilon": (float, 1e-6),
    "logging_nan_inf_filter": (bool, False),
    "ddp_bucket_cap_mb": (Optional[int], 230),
    "ddp_find_unused_parameters": (Optional[bool], False),
    "half_precision_backend": (str, "hpu_amp"),
}


# The scripts' own flags of the training, and two of optimum-habana's with other defaults.
OWN_FLAGS = {
    "attn_implementation": (
        Optional[str],
        None,
        "How the model computes its attention. By default with the kernel for it where the model has one: sdpa, on a Gaudi "
        "Habana's for BERT and XLM-RoBERTa.",
    ),
    "non_blocking_data_copy": (
        Optional[bool],
        None,
        "Copy batches to a Gaudi or a GPU without waiting for it (default: true, with --dataloader_pin_memory).",
    ),
    "early_stopping_patience": (
        Optional[int],
        None,
        "End training after N evaluations without a better --metric_for_best_model; by default never.",
    ),
    "max_train_minutes": (
        Optional[float],
        None,
        "Minutes after the start of the command at which training stops: with a checkpoint and exit status 75, and the "
        "same command goes on. By default never.",
    ),
    "logging_steps": (Optional[float], None, "Steps between two log entries; below 1 a share of all (default: 0.01)."),
    "report_to": (Optional[list[str]], None, "Trackers to log to: tensorboard, wandb, others or all (default: none)."),
    "resume_anyway": (
        bool,
        False,
        "Resume although data, model or flags differ from those of the checkpoint's run, which is an error by default.",
    ),
    "merge_lora": (
        bool,
        False,
        "Add the adapters to the weights at the end: --output_dir then holds a whole model, which every tool loads.",
    ),
    "nan_patience": (int, 3, "End training after N steps in a row whose loss is NaN or infinite, with exit status 1."),
    "recipe_cache": (
        Optional[str],
        None,
        "Folder on a local disk where a Gaudi keeps compiled graphs for other runs, or none (default: in the user's cache).",
    ),
}
LOGGED_SHARE = 0.01  # of the steps: the default of --logging_steps
EVAL_STEPS = 500  # the libraries' default of --logging_steps, which is also that of --eval_steps
CHOICES = {"attn_implementation": ["eager", "sdpa", "gaudi_fused_sdpa"]}


@cache
@quiet_imports()
def training_arguments(seq2seq: bool, /) -> type:
    """Return the training arguments of a script: optimum-habana's on a Gaudi, transformers' plus its flags elsewhere.

    The class is the same every time, or it could not be pickled; hence no keyword, which the cache would count apart.
    """
    if gaudi_is_usable():
        from optimum.habana import GaudiSeq2SeqTrainingArguments, GaudiTrainingArguments

        base, added = GaudiSeq2SeqTrainingArguments if seq2seq else GaudiTrainingArguments, {}
    else:
        from transformers import Seq2SeqTrainingArguments, TrainingArguments

        base, added = Seq2SeqTrainingArguments if seq2seq else TrainingArguments, GAUDI_FLAGS | GAUDI_DEFAULTS
    flags = [flag_field(name, *declared) for name, declared in added.items() if name not in OWN_FLAGS]
    flags += [flag_field(name, *declared) for name, declared in OWN_FLAGS.items()]
    made = dataclasses.make_dataclass(f"Device{base.__name__}", flags, bases=(DeviceChoice, RankDevice, base))
    made.__module__ = __name__
    return made


def flag_field(name: str, kind: type, default, text: str | None = None) -> tuple:
    """Return a field of a dataclass for `make_dataclass`."""
    if text is None and name in GAUDI_FLAGS:
        where = "every device" if name in EVERYWHERE else "a Gaudi (--use_habana), ignored elsewhere"
        text = f"Flag of optimum-habana for {where}."
    metadata = {"help": text} if text else {}
    metadata |= {"choices": CHOICES[name]} if name in CHOICES else {}
    return name, kind, dataclasses.field(default=default, metadata=metadata)


def __getattr__(name: str) -> type:
    """Let `training_args.bin` be unpickled: `training_arguments` makes its class on first use."""
    if name.startswith("Device") and name.endswith("TrainingArguments"):
        return training_arguments("Seq2Seq" in name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class DeviceChoice:
    """Mixin for training arguments: decide between a Gaudi and other devices before they check themselves."""

    @quiet_imports()
    def __post_init__(self):
        self.choose_defaults()
        if self.use_habana and self.use_hpu_graphs:  # optimum-habana checks it, and does nothing else with it
            self.use_hpu_graphs_for_inference = True
        if not self.use_habana:
            self.reset_gaudi_flags()
            # optimum-habana takes the word of DeepSpeed's configuration; transformers wants --bf16 to say the same.
            self.bf16 = self.bf16 or deepspeed_settings(self.deepspeed).get("bf16", {}).get("enabled") is True
            # Without this transformers refuses --bf16 on a machine that has only a CPU, or a CPU and unused Gaudis.
            self.use_cpu = runs_on_cpu(self)
        if self.use_cpu or self.use_habana:  # DeepSpeed would look for a device, and warn where it finds none
            os.environ["DS_ACCELERATOR"] = "hpu" if self.use_habana else "cpu"
        meet(self.output_dir, self.ddp_timeout, on_cards=self.use_habana)
        if self.deepspeed and os.environ.get("WORLD_SIZE", "1") == "1":
            place_one_rank()
        super().__post_init__()
        if self.deepspeed and self.use_cpu:
            exchange_through_gloo()
        if problems := self.deepspeed_mismatches() + self.checkpointing_problems():
            raise UserError(*problems)
        if self.gradient_checkpointing:
            support_albert_checkpointing()
        if self.use_habana:
            patch_bart()
            patch_attention()
            self.report_flags_without_effect()
        if self.use_habana and self.device.type != "hpu":
            raise UserError(f"--use_habana: accelerate chose the device {self.device}; how were the ranks started?")

    @property
    def checkpoints_layers(self) -> bool:
        """Whether layers run again in the backward pass of a training, and keep no activations."""
        return self.do_train and self.gradient_checkpointing

    def __getstate__(self) -> dict:
        """Return what pickles hold, `training_args.bin` among them: everything except secrets."""
        return vars(self) | {name: None for name in SECRETS if name in vars(self)}

    def choose_defaults(self) -> None:
        """Set defaults of the libraries that suit nobody: every tracker, bars in files, one warning from each rank."""
        self.choose_intervals()
        if self.non_blocking_data_copy is None:
            self.non_blocking_data_copy = json_settings(self.accelerator_config).get("non_blocking")
        if self.compile_dynamic is None and self.use_habana and compiles(self):
            self.compile_dynamic = False  # PyTorch would make one symbolic graph for all shapes except the first
        if self.report_to is None:  # all that are installed: W&B without a login ends the run
            self.report_to = "none"
        if self.disable_tqdm is None and not sys.stderr.isatty():
            self.disable_tqdm = True
        if self.log_level_replica == "warning":
            self.log_level_replica = "error"

    def choose_intervals(self) -> None:
        """Set the interval of the log where none is given; evaluations keep the one that they have without it."""
        if self.logging_steps is None:
            self.logging_steps = LOGGED_SHARE
            if self.eval_strategy == "steps":
                self.eval_steps = self.eval_steps or EVAL_STEPS

    def deepspeed_mismatches(self) -> list[str]:
        """Return what DeepSpeed's file and the flags say differently; transformers reports it late, in a traceback."""
        config = getattr(self, "hf_deepspeed_config", None)
        pairs = [line.removeprefix("- ds ").split(" vs hf ") for line in config.mismatches] if config else []
        return [
            f'--deepspeed {self.deepspeed}: {there} in the file, but {here} of the flags; make them equal, or write "auto"'
            for there, here in pairs
        ]

    def report_flags_without_effect(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        defaults |= {name: default for name, (_, default) in GAUDI_FLAGS.items()}
        if flags := flags_without_effect(self, defaults):
            logger.warning(f"Without effect in this run: {', '.join(flags)}")

    def checkpointing_problems(self) -> list[str]:
        """Return the problem with settings of --gradient_checkpointing that a Gaudi's layers would repeat without end."""
        if not self.use_habana or not (self.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            return []
        return ["--gradient_checkpointing_kwargs: use_reentrant is true, but on a Gaudi it is always false; omit it"]

    def reset_gaudi_flags(self) -> None:
        """Set every flag that only a Gaudi knows back to its default, and warn of those that were given."""
        own = type(self)  # optimum-habana's own default of --use_lazy_mode is another
        given = [
            name
            for name, (_, default) in GAUDI_FLAGS.items()
            if name not in EVERYWHERE and getattr(self, name) != getattr(own, name, default)
        ]
        for name in given:
            setattr(self, name, GAUDI_FLAGS[name][1])
        if self.attn_implementation == "gaudi_fused_sdpa":
            given.append("attn_implementation")
            self.attn_implementation = None
        given += ["recipe_cache"] * (self.recipe_cache is not None)
        self.use_lazy_mode = False  # GaudiTrainingArguments refuses its own default without use_habana
        if self.half_precision_backend == "hpu_amp":
            self.half_precision_backend = "cpu_amp" if gaudi_is_usable() else "auto"
        if self.torch_compile_backend == "hpu_backend":
            given.append("torch_compile_backend")
            self.torch_compile_backend = None
        if given:
            logger.warning(f"Without --use_habana these are ignored: {', '.join('--' + name for name in given)}")


@cache
@quiet_imports()
def trainer_class(seq2seq: bool, /) -> type:
    """Return the trainer that the scripts' trainers extend: GaudiTrainer where it is usable, else transformers' Trainer."""
    write_finite_states()
    if gaudi_is_usable():
        from optimum.habana import GaudiSeq2SeqTrainer, GaudiTrainer

        base = GaudiSeq2SeqTrainer if seq2seq else GaudiTrainer
        return type(f"Corrected{base.__name__}", (GaudiCorrections, base), {})
    from transformers import Seq2SeqTrainer, Trainer

    return Seq2SeqTrainer if seq2seq else Trainer


def deepspeed_settings(given: str | dict | None) -> dict:
    """Return a DeepSpeed configuration, or that in a file; empty where it cannot be read, which transformers reports."""
    settings = json_settings(given)
    return settings | {
        name: {} for name in ("bf16", "zero_optimization") if not isinstance(settings.get(name, {}), dict)
    }


def runs_on_cpu(training_args) -> bool:
    """Return whether a run with these flags computes on the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return not training_args.use_habana and (training_args.use_cpu or accelerator is None or accelerator.type == "hpu")


def zero_stage(given: str | dict) -> int:
    return deepspeed_settings(given).get("zero_optimization", {}).get("stage", 0)


def trainer_extras(training_args, model_args) -> dict:
    """Return GaudiTrainer's parameters beyond those of Trainer: the Gaudi configuration that the flags name."""
    if not gaudi_is_usable():
        return {}
    if training_args.gaudi_config_name is None:
        from optimum.habana import GaudiConfig

        return {"gaudi_config": GaudiConfig()}
    return {"gaudi_config": read_gaudi_config(training_args.gaudi_config_name, **hub_place(model_args))}


# `training_args.bin` of earlier versions names the module that this one was.
sys.modules.setdefault("device_qa", sys.modules[__name__])
