"""The identity of a training: `run.json` in the output folder and in each checkpoint.

It holds everything that decides which weights a training ends with. A resumed run compares it with its own, and stops if
it is another training.
"""

import hashlib
import json
import logging
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson

from qa.arguments import SPLITS
from qa.device import deepspeed_settings
from qa.errors import UserError, on_rank_0, short
from qa.files import parse_json, to_json, write_json
from qa.secret_flags import SECRETS, without_secrets


logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
PACKAGES = "torch transformers accelerate tokenizers safetensors datasets numpy optimum-habana deepspeed peft".split()

# Flags that decide how a training goes. Those that decide which questions, tokenizer and model it starts with are not
# among them: the questions, the tokenizer and the model themselves are compared.
TRAINING_FLAGS = frozenset(
    "max_seq_length doc_stride pad_to_max_length length_buckets pack version_2_with_negative language_code "
    "tune_null_threshold "
    "ignore_pad_token_for_loss per_device_train_batch_size per_gpu_train_batch_size auto_find_batch_size "
    "gradient_accumulation_steps dataloader_drop_last group_by_length length_column_name sortish_sampler num_train_epochs "
    "max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps optim optim_args "
    "optim_target_modules adafactor weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor "
    "neftune_noise_alpha average_tokens_across_devices seed data_seed bf16 fp16 fp16_opt_level fp8 flash_attention_fp8 "
    "sdp_on_bf16 tf32 deepspeed fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap accelerator_config "
    "gaudi_config_name context_parallel_size lora_r lora_alpha lora_dropout lora_target_modules".split()
)
# Flags of evaluations, which count where evaluations choose the model, or the learning rate.
EVALUATION_FLAGS = frozenset(
    "metric_for_best_model greater_is_better prediction_loss_only n_best_size null_score_diff_threshold "
    "predict_with_generate generation_max_length generation_num_beams bf16_full_eval fp16_full_eval".split()
)
SHAPE_FLAGS = ("--lora_r", "--lora_target_modules")  # with other values, a checkpoint does not fit the model
WHOLE_FILE = 2**26  # bytes: of a larger file a fingerprint reads samples
SAMPLES, SAMPLE_SIZE = 64, 2**16
LENGTH = 16  # characters of a fingerprint
PASSING = ("_name_or_path", "transformers_version")  # parts of a configuration that decide nothing


def identify(
    argv: list[str] | None, checkpoint: str | None, model_args, data_args, training_args, rows: dict, config, tokenizer
) -> dict | None:
    """Return the record of a training, on rank 0; check that a run that resumes from a checkpoint is the same training.

    Args:
        argv: the script's arguments, None for those of the process.
        rows: by split, those that the run uses.

    Raises:
        UserError: with a line for each difference, unless `--resume_anyway` is given.
    """
    if not training_args.do_train:
        return None
    new = partial(
        make_record, argv, model_args, data_args, training_args, rows=rows, config=config, tokenizer=tokenizer
    )
    return on_rank_0(training_args, lambda: record_of_resumed(new(), checkpoint, training_args.resume_anyway))


def record_of_resumed(record: dict, checkpoint: str | None, anyway: bool) -> dict:
    """Return a record with the checkpoints from which its training resumed.

    Raises:
        UserError: a checkpoint is of another training, and the user does not want to go on `anyway`.
    """
    old = None if checkpoint is None else read_record(Path(checkpoint))
    lines = [] if old is None else differences(old, record)
    fixed = [line for line in lines if line.partition(":")[0] in SHAPE_FLAGS]
    if lines and (fixed or not anyway):
        choices = "restore these values, go on with --resume_anyway, or start again with --overwrite_output_dir"
        choices = "restore these values, or start again with --overwrite_output_dir" if fixed else choices
        raise UserError(*lines, f"{checkpoint} is of a run that differs from this one in these points; {choices}")
    for line in lines:
        logger.warning(f"Resuming {checkpoint} anyway, which is of another run: {line}")
    resumes = [] if checkpoint is None else [{"checkpoint": checkpoint, "differences": lines}]
    return record | {"resumed": (old or {}).get("resumed", []) + resumes}


# ---------------------------------------------------------------------------------------------------------------------
# Making and comparing records


def make_record(
    argv: list[str] | None, model_args, data_args, training_args, rows: dict, config, tokenizer
) -> dict[str, object]:
    """Return everything that decides which weights a training ends with, as JSON has it, and no secret."""
    arguments = asdict(model_args) | asdict(data_args) | training_args.to_dict()
    arguments |= {"deepspeed": deepspeed_settings(training_args.deepspeed) or None}
    record = {
        "command": [Path(sys.argv[0]).name, *without_secrets(sys.argv[1:] if argv is None else argv)],
        "arguments": {name: value for name, value in sorted(arguments.items()) if name not in SECRETS},
        "versions": versions(),
        "data": {split: data_record(split, part, data_args) for split, part in rows.items()},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "model": model_record(model_args, config),
        "hardware": hardware(training_args),
        "ranks": training_args.world_size,
        "devices_per_rank": max(1, training_args.n_gpu),
    }
    return json.loads(to_json(record))


def differences(old: dict, new: dict) -> list[str]:
    """Return a line for each difference that makes two records those of two trainings, with both values.

    A trait that one of them lacks is not compared: it may be of an earlier version.
    """
    was, now = traits(old), traits(new)
    return [
        f"{name}: now {text}, was {was[name][1]}"
        for name, (value, text) in now.items()
        if name in was and value != was[name][0]
    ]


def traits(record: dict) -> dict[str, tuple[object, str]]:
    """Return by name what decides how a training goes: a value to compare, and the text to show."""
    arguments, data, model = record["arguments"], record["data"], record["model"]
    flags = compared_flags(arguments)
    found = {f"--{name}": (value, value_text(value)) for name, value in arguments.items() if name in flags}
    for split in ("train", "validation") if chooses(arguments) else ("train",):
        if split in data:
            found[f"the {split} questions"] = (data[split]["fingerprint"], shown(data[split]))
    found["the starting weights"] = (model["weights"], f"{model['name']} ({short(model['weights'])})")
    found["the model's configuration"] = (model["config"], model["config"])
    for name in ("tokenizer", "ranks", "devices_per_rank"):
        found[f"the {name}" if name == "tokenizer" else name] = (record[name], short(record[name]))
    return found


def value_text(value) -> str:
    """Return a flag's value; with a fingerprint where only the beginning of a long one is shown."""
    return f"{short(value)} ({fingerprint_of(value)})" if isinstance(value, dict) else short(value)


def compared_flags(arguments: dict) -> frozenset[str]:
    """Return the names of the flags that decide how a training with these arguments goes."""
    names = TRAINING_FLAGS | EVALUATION_FLAGS if chooses(arguments) else TRAINING_FLAGS
    writes = "predict_with_generate" in arguments  # a model that writes learns answers of at most this length
    return names | {"max_answer_length"} if writes or chooses(arguments) else names


def chooses(arguments: dict) -> bool:
    """Return whether evaluations choose the model, end the training, or set the learning rate."""
    by_flag = arguments["load_best_model_at_end"] or arguments["early_stopping_patience"] is not None
    return by_flag or arguments["save_strategy"] == "best" or arguments["lr_scheduler_type"] == "reduce_lr_on_plateau"


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints


def versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware(training_args) -> str:
    """Return the number and the name of the devices of a training."""
    import torch

    kind = training_args.device.type
    name_of = getattr(getattr(torch, kind, None), "get_device_name", None)
    cores = f"{kind.upper()} ({platform.machine()}, {os.cpu_count()} cores)"
    return f"{training_args.world_size * max(1, training_args.n_gpu)} x {name_of() if name_of else cores}"


def data_record(split: str, rows: list[dict], data_args) -> dict:
    """Return where questions are from, their number, and a fingerprint of what they say."""
    held_out = split == "tuning" or split == "validation" and data_args.validation_split is not None
    path = getattr(data_args, SPLITS["train" if held_out else split])
    source = {"file": path} if path else {"name": data_args.dataset_name, "config": data_args.dataset_config_name}
    if path:
        source["sha256"] = file_sha256(Path(path))
    return source | {"questions": len(rows), "fingerprint": questions_fingerprint(rows)}


def shown(part: dict) -> str:
    """Return in a few words which questions a record means."""
    return f"{part['questions']} of {part.get('file') or part.get('name')} ({part['fingerprint']})"


def questions_fingerprint(rows: list[dict]) -> str:
    """Return a fingerprint of contexts, questions and answers in their order; ids and titles decide nothing."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(to_json([row["context"], row["question"], row["answers"], row.get("gold_answers")]))
    return digest.hexdigest()[:LENGTH]


def tokenizer_fingerprint(tokenizer) -> str:
    """Return a fingerprint of a fast tokenizer: how it cuts texts, and the special tokens and inputs that it adds.

    Padding and truncation are left out: they are of its last use.
    """
    rules = orjson.loads(tokenizer.backend_tokenizer.to_str())
    rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    settings = [tokenizer.special_tokens_map, tokenizer.padding_side, sorted(tokenizer.model_input_names)]
    return fingerprint_of([rules, settings])


def model_record(model_args, config) -> dict:
    """Return the name of the starting model, fingerprints of its configuration and of its weights.

    The weights of the hub are identified by their commit, those of a folder by their files.
    """
    own = {name: value for name, value in config.to_diff_dict().items() if name not in PASSING}
    name, commit = model_args.model_name_or_path, model_args.config_name is None and config._commit_hash
    weights = f"{name} at {commit or model_args.model_revision}"
    if Path(name).is_dir():
        from qa.checkpoints import weight_files  # it imports all of transformers' models
        from qa.lora import adapter_files, base_arguments

        files = [*(weight_files(base_arguments(model_args)) or ()), *adapter_files(Path(name))]
        weights = fingerprint_of([file_fingerprint(file) for file in files])
    return {"name": name, "config": fingerprint_of(own), "weights": weights}


def fingerprint_of(value) -> str:
    """Return a fingerprint of JSON data; the order of names in a mapping does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


def file_fingerprint(path: Path) -> str:
    """Return a fingerprint of a file: of all of it, or of its size and samples where it is large.

    Training changes every tensor. So samples find another model, in less than a second.
    """
    size = path.stat().st_size
    if size <= WHOLE_FILE:
        return file_sha256(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_SIZE) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_SIZE))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing records


def read_record(checkpoint: Path) -> dict | None:
    """Return the record of a checkpoint; warn and return None where it has none, as one of an earlier version."""
    try:
        record = parse_json((checkpoint / RUN_FILE).read_bytes())
        traits(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        logger.warning(
            f"{checkpoint} has no readable {RUN_FILE}, so nothing was compared with its run; check that data and flags "
            "are the same"
        )
        return None
    return record


def write_record(folder: Path, record: dict) -> None:
    """Write `run.json`."""
    write_json(folder / RUN_FILE, [record])


class RunRecord:
    """Mixin for a trainer: each checkpoint has the record of its training.

    Attributes:
        run_record: what `identify` returned; None where nothing is written, as on other ranks.
    """

    run_record: dict | None = None

    def save_model(self, output_dir: str | None = None, *args, **kwargs) -> None:
        super().save_model(output_dir, *args, **kwargs)
        has_it = output_dir in (None, self.args.output_dir)  # from the start
        if self.run_record is not None and not has_it:
            write_record(Path(output_dir), self.run_record)
