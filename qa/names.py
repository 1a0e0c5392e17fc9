"""Flags whose values are names or JSON: of optimizers, trackers, backends, schedules; and the packages that they need.

The libraries find most of these mistakes when the training begins, after data and model are loaded.
"""

import dataclasses
import importlib.util
import json
import os
import re
from difflib import get_close_matches
from pathlib import Path

import torch
from transformers.trainer_pt_utils import AcceleratorConfig

from qa.errors import in_one_line, short
from qa.files import parse_json
from qa.folders import short_path
from qa.hub import can_be_on_hub
from qa.limits import LIMITS
from qa.steps import name_of
from qa.upstream import IS_RANK_0


# Optimizers of transformers 4.55 that need a package: their names, the module, what pip calls it.
OPTIMIZERS = (
    (r"galore_.*", "galore_torch", "galore-torch"),
    (r"apollo_.*", "apollo_torch", "apollo-torch"),
    (r"(ada)?lomo", "lomo_optim", "lomo-optim"),
    (r"grokadamw", "grokadamw", "grokadamw"),
    (r"adamw_torch_[48]bit", "torchao", "torchao"),
    (r"schedule_free_.*", "schedulefree", "schedulefree"),
    (r"stable_adamw", "optimi", "torch-optimi"),
    (r"adamw_anyprecision", "torchdistx", "torchdistx"),
    (r"adamw_apex_fused", "apex", "apex"),
    (r"adamw_torch_xla", "torch_xla", "torch_xla"),
    (r"adamw_torch_npu_fused", "torch_npu", "torch_npu"),
    (r".*bit|.*bnb|ademamix", "bitsandbytes", "bitsandbytes"),
)
PACKAGES = {  # flag: value (None for any), module, what pip calls it
    "use_liger_kernel": (True, "liger_kernel", "liger-kernel"),
    "deepspeed": (None, "deepspeed", "deepspeed"),
    "lora_r": (None, "peft", "peft"),
    "use_ipex": (True, "intel_extension_for_pytorch", "intel-extension-for-pytorch"),
    "half_precision_backend": ("apex", "apex", "apex"),
    "fp16_backend": ("apex", "apex", "apex"),
}
# Flags that name a folder or a repository of the hub: the advice where it is a file, None where it may be one.
SOURCES = {"model_name_or_path": "name the folder of the model", "config_name": None, "tokenizer_name": None}
SOURCES |= {"dataset_name": "name it with --train_file, --validation_file or --test_file"}
# Modes of PyTorch 2.13's inductor.
COMPILE_MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite"]
# Flags that take JSON, and whether it may also be the name of a file of it.
JSON_FLAGS = dict.fromkeys(("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "liger_kernel_config"), False)
JSON_FLAGS |= dict.fromkeys(("deepspeed", "fsdp_config", "accelerator_config"), True)
# Names that the hub takes for `license`: https://huggingface.co/docs/hub/repositories-licenses.
LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 "
    "lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense "
    "zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other"
).split()
LANGUAGE = re.compile("[a-z]{2,3}|multilingual|code")  # codes of ISO 639, and two words that the hub knows


def name_problems(values) -> list[str]:
    """Return the problems of flags that name something, one line each.

    Args:
        values: the values of all flags, as a namespace.
    """
    return [
        *source_problems(values),
        *tracker_problems(values.report_to),
        *package_problems(values),
        *card_problems(values),
        *compile_problems(values),
        *(problem for flag in JSON_FLAGS for problem in json_problems(flag, getattr(values, flag))),
        *([*optimizer_problems(values), *schedule_problems(values)] if values.do_train else []),
    ]


def source_problems(values) -> list[str]:
    """Return the problems of flags that name a model, a tokenizer or a dataset: no folder, and no name on the hub."""
    given = {flag: getattr(values, flag) for flag in SOURCES}
    return [
        f"--{flag}{' ' if name else ''}{short_path(name)}{problem}"
        for flag, name in given.items()
        if name is not None and (problem := why_no_source(flag, name)) is not None
    ]


def why_no_source(flag: str, name: str) -> str | None:
    """Return, to follow the name, why it is neither a folder nor a name on the hub, None where it can be one of them."""
    if not name.strip():
        return " is empty; name a folder, or a repository of the hub"
    if os.path.isfile(name):
        advice = SOURCES[flag]
        return advice and f" is a file; {advice}"
    if os.path.isdir(name):
        has_config = any(os.path.isfile(f"{name}/{file}") for file in ("config.json", "adapter_config.json"))
        lacking = flag == "model_name_or_path" and not has_config
        return ": it has no config.json; name the folder of a model" if lacking else None
    if can_be_on_hub(name):
        return None
    return " is neither a folder nor a name on the hub (such as owner/name); name one of them"


def is_missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def missing_package(flag: str, package: str, advice: str = "omit it") -> str:
    return f"{flag} needs the package {package}, which is not installed; run `pip install {package}`, or {advice}"


def unknown_name(flag: str, name: str, known: list[str]) -> str:
    """Return the message for a name that does not exist, with the nearest one that does, else with the first ones."""
    nearest = [other for other in known if name and other.startswith(name)] or get_close_matches(name, known, n=1)
    nearest = nearest or [", ".join(known[:6]) + " or another" * (len(known) > 6)]
    return f"--{flag} {short(name)} does not exist; use {nearest[0]}"


def tracker_problems(given: str | list[str] | None) -> list[str]:
    """Return the problems of `--report_to`: trackers that do not exist, or are not installed."""
    names = [given] if isinstance(given, str) else given or []
    if len(names) > 1 and (alone := [name for name in ("none", "all") if name in names]):
        return [f"--report_to {' '.join(names)}: {alone[0]} excludes the others; omit it, or them"]
    login = login_problems() if "wandb" in names or "all" in names else []
    names = [name for name in names if name not in ("none", "all")]
    if not names:
        return login
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known, available = ["none", "all", *INTEGRATION_TO_CALLBACK], get_available_reporting_integrations()
    return [
        missing_package(f"--report_to {name}", name, "use --report_to none")
        if name in known
        else unknown_name("report_to", name, known)
        for name in names
        if name not in available
    ] + login


def login_problems() -> list[str]:
    """Return why W&B would refuse a run, which it reports after everything is loaded; on rank 0, which alone logs."""
    if is_missing("wandb") or not IS_RANK_0 or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return []
    import wandb

    try:
        wandb.login()
    except wandb.Error as error:
        return [f"--report_to wandb: {str(error).rstrip('.')}; run `wandb login`, or set WANDB_MODE=offline"]
    return []


def package_problems(values) -> list[str]:
    """Return the packages that flags need and that are not installed."""
    return [
        missing_package(f"--{flag}" + ("" if value is True else f" {given}"), package)
        for flag, (value, module, package) in PACKAGES.items()
        if (given := getattr(values, flag, None)) and value in (None, given) and is_missing(module)
    ]


def card_problems(values) -> list[str]:
    """Return the problems of `--language` and `--license`: values that the hub would refuse in a card."""
    problems = [
        f"--language {code}: not a code of ISO 639 in small letters; write one such as en or de, or multilingual"
        for code in values.language or ()
        if not LANGUAGE.fullmatch(code)
    ]
    name = values.license
    if name is not None and name not in LICENSES:
        nearest = get_close_matches(name.lower(), LICENSES, n=1) or ["other"]
        problems.append(f"--license {name or repr(name)} is not the name of a licence on the hub; use {nearest[0]}")
    return problems


def optimizer_problems(values) -> list[str]:
    """Return the problems of `--optim` and `--optim_args`."""
    from transformers.training_args import OptimizerNames

    name, known = name_of(values.optim), [optimizer.value for optimizer in OptimizerNames]
    problems = [] if name in known else [unknown_name("optim", name, known)]
    module, package = next((needed for pattern, *needed in OPTIMIZERS if re.fullmatch(pattern, name)), ("torch", ""))
    if name in known and is_missing(module):
        problems.append(missing_package(f"--optim {name}", package, "use --optim adamw_torch"))
    if name.startswith(("galore", "apollo")) and values.optim_target_modules is None:
        problems.append(f"--optim {name} needs --optim_target_modules; add it, for example as all-linear")
    wrong = [pair for pair in (values.optim_args or "").replace(" ", "").split(",") if pair.count("=") != 1]
    if values.optim_args and wrong:
        problems.append(f"--optim_args is {short(values.optim_args)}; write it as name=value,name=value")
    return problems


def compile_problems(values) -> list[str]:
    """Return the problems of the names that `torch.compile` gets."""
    if {values.torch_compile_backend, values.torchdynamo, values.torch_compile_mode} == {None}:
        return []
    from accelerate.utils import DynamoBackend

    backends = list(dict.fromkeys(["inductor", *(backend.value.lower() for backend in DynamoBackend)]))
    known = {"torch_compile_backend": backends, "torchdynamo": backends}
    if (values.torchdynamo or values.torch_compile_backend or "inductor") == "inductor" and not values.use_habana:
        known["torch_compile_mode"] = COMPILE_MODES
    given = {flag: getattr(values, flag) for flag in known}
    return [
        unknown_name(flag, name, known[flag])
        for flag, name in given.items()
        if name is not None and name.lower() not in known[flag]
    ]


def json_problems(flag: str, given: str | dict | None) -> list[str]:
    """Return the problems of a flag that takes a JSON object, or a file of one."""
    in_base64 = flag == "deepspeed" and isinstance(given, str) and given.startswith("ey")  # `{`; transformers reads it
    if not given or isinstance(given, dict) or in_base64:
        return []
    try:
        wrong = wrong_settings(flag, object_of_flag(given, JSON_FLAGS[flag]))
    except json.JSONDecodeError as error:
        wrong = [f"it is not JSON: {in_one_line(error)}"]
    except OSError as error:
        wrong = [f"cannot be read: {error.strerror}; name another file"]
    except ValueError as error:
        wrong = [in_one_line(error)]
    return [f"--{flag} {short_path(given)}: {problem}" for problem in wrong]


def object_of_flag(given: str, may_be_file: bool) -> dict:
    """Return the JSON object that a flag holds, or the file that it names.

    Raises:
        OSError, ValueError: there is none.
    """
    if not given.lstrip().startswith("{"):
        if not may_be_file:
            raise ValueError('give a JSON object, as {"name": 1}')
        given = Path(given).read_text(encoding="utf-8")
    found = parse_json(given)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}; give a JSON object")
    return found


def wrong_settings(flag: str, settings: dict) -> list[str]:
    """Return the problems of settings that the libraries would end in a traceback for."""
    if flag == "accelerator_config":
        unknown = settings.keys() - {field.name for field in dataclasses.fields(AcceleratorConfig)}
        problems = [f"there is no setting {short(name)}; omit it" for name in sorted(unknown)]
        if settings.get("split_batches"):
            problems.append("split_batches would divide the batch of one rank among all; omit it")
        return problems
    parts = ("bf16", "zero_optimization") if flag == "deepspeed" else ()
    return [
        f"its {name} is {short(settings[name])}; make it a JSON object"
        for name in parts
        if not isinstance(settings.get(name, {}), dict)
    ]


def schedule_problems(values) -> list[str]:
    """Return why the schedule of the learning rate cannot be made: settings that it lacks or does not know."""
    by_default = values.lr_scheduler_type == "linear" and not values.lr_scheduler_kwargs
    given = values.lr_scheduler_kwargs or {}
    reported = json_problems("lr_scheduler_kwargs", given) or not LIMITS["learning_rate"].allows(values.learning_rate)
    if by_default or reported:
        return []
    from transformers import get_scheduler

    settings = json.loads(given) if isinstance(given, str) else given
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=values.learning_rate)
    try:
        get_scheduler(values.lr_scheduler_type, optimizer, 0, 2, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError, AttributeError) as error:
        reason = in_one_line(error).replace("get_", "").replace("_schedule", "")
        return [
            f"--lr_scheduler_type {values.lr_scheduler_type} with --lr_scheduler_kwargs {json.dumps(settings)}: {reason}"
        ]
    return []
