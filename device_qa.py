"""Where a run happens: optimum-habana's trainer on a Gaudi, transformers' own on a CPU, a GPU or Apple silicon.

Everything that depends on whether this machine has a Gaudi stands here, and so does every message about a missing one.
The same command line parses in both cases: where optimum-habana cannot be used, its flags are declared with its defaults.
"""

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path
from typing import Optional

from packaging.version import Version

from errors_qa import UserError


# PyTorch would load Habana's plugin itself: before PT_HPU_LAZY_MODE is settled, and with a traceback where it cannot.
# `why_no_gaudi` loads it. So nothing that the scripts import before this module may import PyTorch, or transformers.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# What libraries and these scripts warn of, all ranks do: rank 0 says it. Errors are told by every rank.
IS_RANK_0 = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0"
if not IS_RANK_0:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

import torch  # noqa: E402


del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]  # other processes may want it

import transformers.utils.import_utils  # noqa: E402
from transformers.hf_argparser import string_to_bool  # noqa: E402


# transformers imports scikit-learn for one function of assisted generation, which nothing here uses: 1.5 s of CPU.
transformers.utils.import_utils._sklearn_available = False

logger = logging.getLogger(__name__)

OLDEST_OPTIMUM_HABANA = "1.21.0"
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
# Those that count on every device: see speed_qa.
EVERYWHERE = ("throughput_warmup_steps", "adjust_throughput")
# Defaults of TrainingArguments that optimum-habana changes; kept everywhere, so that a command gives the same numbers.
GAUDI_DEFAULTS = {
    "optim": (str, "adamw_torch"),
    "adam_epsilon": (float, 1e-6),
    "logging_nan_inf_filter": (bool, False),
    "ddp_bucket_cap_mb": (Optional[int], 230),
    "ddp_find_unused_parameters": (Optional[bool], False),
    "half_precision_backend": (str, "hpu_amp"),
}


HPU_GRAPH_FLAGS = ("use_hpu_graphs", "use_hpu_graphs_for_inference", "use_hpu_graphs_for_training")
# What Habana's driver offers a process for each card.
CARDS = "/dev/accel/accel"


# ---------------------------------------------------------------------------------------------------------------------
# Whether there is a Gaudi, and whether a run fits it


@cache
def why_no_gaudi() -> str | None:
    """Why optimum-habana cannot run here, None where it can; loads Habana's plugin, which registers the device."""
    if importlib.util.find_spec("habana_frameworks") is None:
        return "Habana's PyTorch plugin (habana_frameworks) is not installed in this Python"
    try:
        import habana_frameworks.torch.hpu as hpu
    except (ImportError, OSError) as error:
        return (
            f"Habana's PyTorch plugin cannot be loaded into PyTorch {torch.__version__} ({one_line(error)}); if pip has "
            "replaced the PyTorch of the image, which is built for Habana, start from a fresh image"
        )
    if not hpu.is_available() or hpu.device_count() == 0:
        return "Habana's PyTorch plugin sees no card (`hl-smi` shows which are there and who uses them)"
    try:
        import optimum.habana  # noqa: F401
    except (ImportError, IndexError) as error:  # its version check takes the first line of `pip list | grep`
        return (
            f"optimum-habana cannot be imported ({one_line(error)}); `pip list` in this shell must show it and "
            "habana-torch-plugin, so `pip` and `python` have to be of the same installation"
        )
    return None


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def gaudi_is_usable() -> bool:
    """Whether optimum-habana can run here."""
    return why_no_gaudi() is None


def settle_lazy_mode(argv: list[str]) -> list[str]:
    """Sets PT_HPU_LAZY_MODE as a command line asks, before the plugin reads it, or --use_lazy_mode as the variable asks.

    The variable's default was 1 up to SynapseAI 1.18 and is 0 since; optimum-habana 1.21.2 takes it for 1, and lazy mode
    for the flag's default. Here, where one of both is given the other follows, and without either a run is lazy unless
    it compiles. `lazy_problems` tells when they contradict each other.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for flag in ("use_habana", "use_lazy_mode", "torch_compile"):
        parser.add_argument(f"--{flag}", type=string_to_bool, nargs="?", const=True)
    for flag in ("torch_compile_backend", "torch_compile_mode"):
        parser.add_argument(f"--{flag}")
    try:
        given, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        return argv  # the script's own parser will tell
    if not given.use_habana:
        return argv
    compiles = given.torch_compile or given.torch_compile_backend is not None or given.torch_compile_mode is not None
    lazy = not compiles if given.use_lazy_mode is None else given.use_lazy_mode
    variable = os.environ.setdefault("PT_HPU_LAZY_MODE", str(int(lazy)))
    return argv if given.use_lazy_mode is not None else [*argv, f"--use_lazy_mode={variable != '0'}"]


def lazy_problems(args) -> list[str]:
    """Where PT_HPU_LAZY_MODE, --use_lazy_mode and --torch_compile contradict each other."""
    variable = os.environ.get("PT_HPU_LAZY_MODE")
    if args.torch_compile or args.torch_compile_backend is not None or args.torch_compile_mode is not None:
        if args.use_lazy_mode or variable != "0":
            return ["--torch_compile does not go with lazy mode: set PT_HPU_LAZY_MODE=0 and --use_lazy_mode false"]
    elif args.use_lazy_mode != (variable != "0"):
        return [
            f"PT_HPU_LAZY_MODE={variable} contradicts --use_lazy_mode {args.use_lazy_mode}: set it to "
            f"{int(args.use_lazy_mode)}, or unset it, and it follows the flags"
        ]
    elif not args.use_lazy_mode and any(getattr(args, flag) for flag in HPU_GRAPH_FLAGS):
        return [f"PT_HPU_LAZY_MODE={variable}: HPU graphs need lazy mode (1, with --use_lazy_mode) or --torch_compile"]
    return []


def gaudi_problems(args) -> list[str]:
    """What stands in the way of a run with `--use_habana`, as far as it can be known at once."""
    problems = lazy_problems(args)
    missing = why_no_gaudi()
    if missing is not None:
        advice = "Run inside Habana's PyTorch image on a Gaudi node, or leave --use_habana away"
        return [f"--use_habana: {missing}. {advice} to run on this machine's GPU or CPU.", *problems]
    problems += version_problems()
    busy = why_busy()
    if busy is not None:
        problems.append(busy)
    elif args.bf16 and not bf16_is_supported():
        problems.append("--bf16: this card does not support it; leave it away")
    if args.gaudi_config_name is not None:
        try:
            read_gaudi_config(args.gaudi_config_name)
        except UserError as error:
            problems += error.problems
    return problems


def version_problems() -> list[str]:
    """Versions that do not belong together; those that probably do are told in the log."""
    from packaging.requirements import Requirement

    habana = version("optimum-habana")
    problems = [
        f"transformers {version('transformers')} is installed, but optimum-habana {habana} needs {needed.specifier}: "
        "pip install -r requirements.txt"
        for needed in map(Requirement, requires("optimum-habana"))
        if needed.name == "transformers" and not needed.specifier.contains(version("transformers"))
    ]
    if Version(habana) < Version(OLDEST_OPTIMUM_HABANA):
        problems.append(
            f"optimum-habana {habana} is installed, but these scripts need {OLDEST_OPTIMUM_HABANA} or newer: "
            "pip install -r requirements.txt"
        )
    driver, plugin = driver_version(), Version(version("habana-torch-plugin"))
    if driver is not None and driver.release[:2] != plugin.release[:2]:
        logger.warning(
            f"Habana's driver is {driver}, its PyTorch plugin {plugin}: they should be of one release. "
            "Update the driver of the node, or use the image of its release"
        )
    return problems


def driver_version() -> Version | None:
    """The version of Habana's driver on this node, as `hl-smi` tells it."""
    try:
        told = subprocess.run(["hl-smi"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"Driver Version:\s*(\d+(?:\.\d+)+)", told)
    return Version(found[1]) if found else None


def why_busy() -> str | None:
    """Tries to take a card, which fails where others hold all of them. Ranks of a launched run take theirs later."""
    if any(int(os.environ.get(name, 1)) > 1 for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")):
        return None
    try:
        torch.zeros(1, device="hpu")
    except RuntimeError as error:
        holders = ", ".join(processes_at(CARDS)) or "`hl-smi` shows by whom"
        return f"--use_habana: no card can be taken ({one_line(error)}); held by: {holders}"
    return None


def processes_at(devices: str) -> list[str]:
    """The other processes that have a device open whose path begins with `devices`, as far as this user may know."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parts[2]
        try:
            if process != str(os.getpid()) and os.readlink(link).startswith(devices):
                words = (Path("/proc") / process / "cmdline").read_bytes().split(b"\0")
                found[process] = f"process {process} ({b' '.join(words[:2]).decode(errors='replace')})"
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return list(found.values())


def bf16_is_supported() -> bool:
    import habana_frameworks.torch.hpu as hpu

    return not hasattr(hpu, "is_bf16_supported") or hpu.is_bf16_supported()


# ---------------------------------------------------------------------------------------------------------------------
# The classes that serve a run


@contextmanager
def printed_once():
    """Lets rank 0 alone print: optimum-habana says on stdout what it finds while it is imported."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if IS_RANK_0 else nowhere):
        yield


@cache
@printed_once()
def training_arguments(seq2seq: bool, /) -> type:
    """The training arguments of a script: optimum-habana's on a Gaudi, transformers' plus its flags elsewhere.

    The same class every time (hence no keyword, which the cache would tell apart), or it could not be pickled.
    """
    if gaudi_is_usable():
        from optimum.habana import GaudiSeq2SeqTrainingArguments, GaudiTrainingArguments

        base, added = GaudiSeq2SeqTrainingArguments if seq2seq else GaudiTrainingArguments, {}
    else:
        from transformers import Seq2SeqTrainingArguments, TrainingArguments

        base, added = Seq2SeqTrainingArguments if seq2seq else TrainingArguments, GAUDI_FLAGS | GAUDI_DEFAULTS
    flags = [(name, kind, dataclasses.field(default=default)) for name, (kind, default) in added.items()]
    for name, _, flag in flags[: len(GAUDI_FLAGS)]:
        where = "every device" if name in EVERYWHERE else "a Gaudi, with --use_habana, and is ignored elsewhere"
        flag.metadata = {"help": f"Of optimum-habana: counts on {where}."}
    patience = dataclasses.field(
        default=None,
        metadata={
            "help": "End training when so many evaluations in a row bring no better --metric_for_best_model; by default never."
        },
    )
    flags.append(("early_stopping_patience", Optional[int], patience))
    made = dataclasses.make_dataclass(f"Device{base.__name__}", flags, bases=(DeviceChoice, base))
    made.__module__ = __name__
    return made


def __getattr__(name: str) -> type:
    """Lets `training_args.bin` be unpickled: its class is made by `training_arguments` when it is first asked for."""
    if name.startswith("Device") and name.endswith("TrainingArguments"):
        return training_arguments("Seq2Seq" in name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class DeviceChoice:
    """What the training arguments do before they check themselves: decide between a Gaudi and the rest."""

    @printed_once()
    def __post_init__(self):
        if self.log_level_replica == "warning":  # the default, but what one rank warns of, all do
            self.log_level_replica = "error"
        if not self.use_habana:
            self.leave_gaudi_flags()
            # optimum-habana takes the word of DeepSpeed's configuration; transformers wants --bf16 to say the same.
            self.bf16 = self.bf16 or deepspeed_settings(self.deepspeed).get("bf16", {}).get("enabled") is True
            # Without this transformers refuses --bf16 on a machine that has nothing but a CPU, or but unused Gaudis.
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            self.use_cpu = self.use_cpu or accelerator is None or accelerator.type == "hpu"
        elif problems := gaudi_problems(self):
            raise UserError(*problems)
        if self.use_cpu or self.use_habana:  # DeepSpeed would look for itself, and warn where it finds nothing
            os.environ["DS_ACCELERATOR"] = "hpu" if self.use_habana else "cpu"
        if problems := self.problems_of_flags():
            raise UserError(*problems)
        super().__post_init__()
        if problems := self.deepspeed_mismatches():
            raise UserError(*problems)
        if self.use_habana:
            mend_bart()
        if self.use_habana and self.device.type != "hpu":
            raise UserError(f"--use_habana: accelerate chose the device {self.device}; how were the ranks started?")

    def problems_of_flags(self) -> list[str]:
        """Flags that want others beside them, or another device; the libraries tell later, and in a traceback."""
        problems = []
        if self.deepspeed and not self.do_train and zero_stage(self.deepspeed) < 3:
            problems.append(
                f"--deepspeed {self.deepspeed}: without --do_train only ZeRO stage 3 has something to distribute; leave "
                "--deepspeed away, and the ranks share the questions"
            )
        if self.fsdp and self.use_cpu:
            problems.append("--fsdp: accelerate shards a model over Gaudis or GPUs, not over CPUs; leave it away here")
        if self.early_stopping_patience is not None and (self.eval_strategy == "no" or not self.metric_for_best_model):
            problems.append(
                "--early_stopping_patience counts evaluations without a better score: add --eval_strategy epoch (or steps) "
                "and --metric_for_best_model f1"
            )
        return problems

    def deepspeed_mismatches(self) -> list[str]:
        """What DeepSpeed's file and the flags say differently; transformers notes it, and tells it in a traceback later."""
        config = getattr(self, "hf_deepspeed_config", None)
        pairs = [line.removeprefix("- ds ").split(" vs hf ") for line in config.mismatches] if config else []
        return [
            f'--deepspeed {self.deepspeed}: {there} in the file, but {here} of the flags; give one value, or "auto" in the file'
            for there, here in pairs
        ]

    @property
    def device(self) -> torch.device:
        """As the base's, but a CPU has no number: ranks resume onto their device, and torch.load knows no `cpu:0`, which
        accelerate 1.10 calls a rank's CPU."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def leave_gaudi_flags(self) -> None:
        """Without `--use_habana`, sets every flag that only a Gaudi knows back to its default and names those."""
        own = type(self)  # optimum-habana's own default of --use_lazy_mode is another
        given = [
            name
            for name, (_, default) in GAUDI_FLAGS.items()
            if name not in EVERYWHERE and getattr(self, name) != getattr(own, name, default)
        ]
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
@printed_once()
def trainer_class(seq2seq: bool, /) -> type:
    """The trainer that the scripts' trainers extend: GaudiTrainer where that is usable, transformers' Trainer elsewhere."""
    if gaudi_is_usable():
        from optimum.habana import GaudiSeq2SeqTrainer, GaudiTrainer

        base = GaudiSeq2SeqTrainer if seq2seq else GaudiTrainer
        return type(f"Mended{base.__name__}", (GaudiCorrections, base), {})
    from transformers import Seq2SeqTrainer, Trainer

    return Seq2SeqTrainer if seq2seq else Trainer


def deepspeed_settings(given: str | dict | None) -> dict:
    """A DeepSpeed configuration, or the one in a file; empty where there is none: transformers tells what is wrong with it."""
    try:
        if isinstance(given, str):
            given = json.loads(given if given.lstrip().startswith("{") else Path(given).read_text())
    except (OSError, ValueError):
        return {}
    return given if isinstance(given, dict) else {}


def zero_stage(given: str | dict) -> int:
    return deepspeed_settings(given).get("zero_optimization", {}).get("stage", 0)


class GaudiCorrections:
    """What GaudiTrainer of optimum-habana 1.21.2 gets wrong, put right; tests/test_gaudi_trainer.py tells what can go."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """In training, the loss divided by the accumulated steps, as transformers' `training_step` divides it.

        GaudiTrainer's does so only in lazy mode with --pipelining_fwd_bwd, so that gradients grow with the steps.
        """
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        divided = self.args.use_lazy_mode and self.args.pipelining_fwd_bwd
        by_tokens = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        if not model.training or divided or by_tokens or self.compute_loss_func is not None:
            return computed
        steps = self.current_gradient_accumulation_steps
        return (computed[0] / steps, computed[1]) if return_outputs else computed / steps

    def get_batch_samples_transformers(self, epoch_iterator, num_batches, device):
        """transformers' own: GaudiTrainer's cannot count the labels of batches of different widths, and does not say so."""
        return self.get_batch_samples(epoch_iterator, num_batches, device)


def trainer_extras(args, model_args) -> dict:
    """What GaudiTrainer wants beyond Trainer's own parameters: the Gaudi configuration that the flags name."""
    if not gaudi_is_usable():
        return {}
    if args.gaudi_config_name is None:
        from optimum.habana import GaudiConfig

        return {"gaudi_config": GaudiConfig()}
    hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}
    return {"gaudi_config": read_gaudi_config(args.gaudi_config_name, **hub)}


def read_gaudi_config(name: str, **hub):
    """The Gaudi configuration of that name; a UserError where there is none, since optimum-habana gives a traceback."""
    from optimum.habana import GaudiConfig

    try:
        return GaudiConfig.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise UserError(f"--gaudi_config_name {name}: no gaudi_config.json can be read ({one_line(error)})") from error


# ---------------------------------------------------------------------------------------------------------------------
# BART on a Gaudi


def mend_bart() -> None:
    """Lets BART run on a Gaudi: optimum-habana 1.21.2's forwards expect an older BART than transformers 4.55.4 has.

    They serve for static shapes in generation, which transformers' own cannot, so they get back what has gone: splitting
    states into heads, attention over states that lie flat and are scaled already, a flag, and the reordering of cached
    states between beams. Every new object of training arguments puts optimum-habana's forwards into transformers again.
    tests/test_gaudi_models.py tells when this can go.
    """
    from optimum.habana.transformers.models.bart import modeling_bart as habana
    from transformers.models.bart import modeling_bart as bart

    bart.BartAttention._shape = split_heads
    habana.eager_attention_forward = attention_of_flat_heads
    bart.BartDecoder._use_sdpa = False
    bart.BartModel.forward = bart_forward
    bart.BartForConditionalGeneration._reorder_cache = staticmethod(reorder_beams)


def split_heads(attention, states: torch.Tensor, length: int, batch: int) -> torch.Tensor:
    """(batch, length, heads * size) -> (batch, heads, length, size)"""
    return states.view(batch, length, attention.num_heads, attention.head_dim).transpose(1, 2).contiguous()


def attention_of_flat_heads(attention, query, key, value, attention_mask, scaling=None, **settings):
    """transformers' attention of BART for states of (batch * heads, length, size); `scaling` is in the query already."""
    from transformers.models.bart.modeling_bart import eager_attention_forward

    states = [flat.unflatten(0, (-1, attention.num_heads)) for flat in (query, key, value)]
    return eager_attention_forward(attention, *states, attention_mask, scaling=1.0, **settings)


def bart_forward(model, *args, use_cache: bool | None = None, token_idx: torch.Tensor | None = None, **kwargs):
    """optimum-habana's forward of BartModel, which takes a cache's use for generation: there alone is a token_idx."""
    from optimum.habana.transformers.models.bart.modeling_bart import gaudi_BartModel_forward

    use_cache = use_cache if token_idx is not None else False
    return gaudi_BartModel_forward(model, *args, use_cache=use_cache, token_idx=token_idx, **kwargs)


def reorder_beams(past_key_values: tuple, beams: torch.Tensor) -> tuple:
    """The decoder's own states of the beams that go on; those of the encoder are the same for all beams of a text."""
    return tuple((*(states.index_select(0, beams) for states in layer[:2]), *layer[2:]) for layer in past_key_values)
