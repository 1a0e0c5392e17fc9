"""Whether the files of a checkpoint are all there and whole: by their structure, and by their fingerprints if it has any."""

import json
import re
import shlex
import zipfile
from pathlib import Path

from transformers import TrainerState

from qa.device import zero_stage
from qa.errors import in_one_line
from qa.files import read_object
from qa.identity import RUN_FILE
from qa.lora import ADAPTER_CONFIG
from qa.numbers import count_of
from qa.written import changed_file


# The parts of a checkpoint that a run resumes from, by the engine that wrote it, each with the files that may hold it.
PARTS = {
    "plain": {
        "weights": ("model.safetensors", "pytorch_model.bin", "*.index.json", "adapter_model.*"),
        "optimizer": ("optimizer.pt", "optimizer.bin"),
        "scheduler": ("scheduler.pt",),
        "random state": ("rng_state*.pth",),
    },
    "FSDP": {
        "weights": ("pytorch_model_fsdp*",),
        "optimizer": ("optimizer.bin", "optimizer_*"),
        "scheduler": ("scheduler.pt",),
        "random state": ("rng_state*.pth",),
    },
    "DeepSpeed": {
        "weights": ("{latest}/*model_states.pt",),
        "optimizer": ("{latest}/*optim_states.pt",),
        "random state": ("rng_state*.pth",),
    },
}
UNIVERSAL = "latest_universal"  # names the form of a ZeRO checkpoint that any number of ranks can load
FLAGS = {"DeepSpeed": "--deepspeed", "FSDP": "--fsdp"}
RANK = re.compile(r"(.*(?:rng_state_|zero_pp_rank_))(\d+)(.*)")  # in the name of a file that each rank writes


def refusal(checkpoint: Path, training_args) -> str | None:
    """Return why a checkpoint is not one that this run can resume from, although its files may be whole."""
    if isinstance(read_state(checkpoint), str):
        return None  # remains of a kill, of whatever
    written, wanted = engine_of(checkpoint), engine_of_run(training_args)
    if written == "plain" and not any(
        has_part(checkpoint, part) for part in ("optimizer", "scheduler", "random state")
    ):
        return (
            "it holds a model alone (--save_only_model), from which no run can resume; "
            "start again with --overwrite_output_dir or in another folder"
        )
    if written == wanted:
        return other_ranks(checkpoint, training_args) if written == "DeepSpeed" else None
    if written == "plain":
        return f"it was written without {FLAGS[wanted]}; omit that, or name another checkpoint"
    return f"it was written by {written}; add {FLAGS[written]}, or name another checkpoint"


def other_ranks(checkpoint: Path, training_args) -> str | None:
    """Return why ZeRO's parts of a checkpoint are not those of this run's ranks; None also where they have been converted.

    DeepSpeed 0.19.8 loads the parts of another number of ranks from its universal form alone.
    """
    ranks = ranks_of_zero(checkpoint)
    if ranks in (None, training_args.world_size) or (checkpoint / UNIVERSAL).is_file():
        return None
    folder = shlex.quote(str(checkpoint / name_in(checkpoint / "latest")))
    command = "python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state"
    return (
        f"ZeRO wrote it on {count_of(ranks, 'rank')}, and this run has {count_of(training_args.world_size, 'rank')}; "
        f"run `{command} --input_folder {folder} --output_folder {folder}_universal`, then this command with --resume_anyway"
    )


def ranks_of_zero(checkpoint: Path) -> int | None:
    """Return the number of ranks that wrote a checkpoint of ZeRO, of which some files may be lost; None for another one."""
    files = checkpoint.glob(f"{name_in(checkpoint / 'latest')}/*zero_pp_rank_*optim_states.pt")
    ranks = [int(re.search(r"zero_pp_rank_(\d+)", file.name)[1]) for file in files]
    return max(ranks_of_run(checkpoint), max(ranks) + 1) if ranks else None


def ranks_of_run(checkpoint: Path) -> int:
    """Return the number of ranks in `run.json`, 1 where it has none."""
    ranks = read_object(checkpoint / RUN_FILE).get("ranks")
    return ranks if isinstance(ranks, int) else 1


def engine_of(checkpoint: Path) -> str:
    if (checkpoint / "latest").exists() or any(checkpoint.glob("global_step*")):
        return "DeepSpeed"
    return "FSDP" if any(checkpoint.glob("pytorch_model_fsdp*")) else "plain"


def engine_of_run(training_args) -> str:
    return "DeepSpeed" if training_args.deepspeed else "FSDP" if training_args.fsdp else "plain"


def damage(checkpoint: Path, training_args) -> str | None:
    """Return which part of a checkpoint is missing or cut off; None if it is whole.

    State, weights, optimizer, scheduler and random state together decide that, and with `--load_best_model_at_end` the
    weights of the best checkpoint so far.
    """
    if not checkpoint.is_dir():
        return "it is not a folder"
    state = read_state(checkpoint)
    if isinstance(state, str):
        return state
    missing = [part for part in PARTS[engine_of(checkpoint)] if not has_part(checkpoint, part)]
    if any(checkpoint.glob("adapter_model.*")) and not (checkpoint / ADAPTER_CONFIG).is_file():
        missing.append(ADAPTER_CONFIG)
    if missing == ["optimizer"] and zero_stage(training_args.deepspeed) == 0 and training_args.deepspeed:
        missing = []  # DeepSpeed without ZeRO writes it with the weights
    if missing:
        return f"there is no {missing[0]}"
    found = cut_off(checkpoint) or missing_rank(checkpoint)
    return found or (best_damage(checkpoint, state) if training_args.load_best_model_at_end else None)


def read_state(checkpoint: Path) -> TrainerState | str:
    """Return the trainer's state, or why there is none."""
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except FileNotFoundError:
        return "there is no trainer_state.json"
    except (OSError, ValueError, TypeError) as error:
        return f"trainer_state.json is damaged ({in_one_line(error, 80)})"
    if type(state.global_step) is not int or state.global_step < 1:
        return "trainer_state.json has no step"
    return state


def has_part(checkpoint: Path, part: str) -> bool:
    """Return whether there is any file of a part."""
    latest = name_in(checkpoint / "latest")
    patterns = PARTS[engine_of(checkpoint)].get(part, ())
    return any(any(checkpoint.glob(pattern.format(latest=latest))) for pattern in patterns)


def name_in(file: Path) -> str:
    """Return the name in DeepSpeed's file `latest`, or one that no folder has."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    return text if re.fullmatch(r"\w+", text) else "none"


def cut_off(folder: Path) -> str | None:
    """Return the first file that is incomplete, unreadable or changed, with the reason; also a shard that is not there."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            check_file(file)
        except Exception as error:  # of any kind: the bytes may be anything
            return f"{file.relative_to(folder)} is damaged ({in_one_line(error, 80)})"
    return changed_file(folder)


def check_file(file: Path) -> None:
    """Raise an exception of any kind if a file has not the structure that its name promises."""
    if file.name.endswith(".index.json"):
        for shard in sorted(set(json.loads(file.read_bytes())["weight_map"].values())):
            if not (file.parent / shard).is_file():
                raise FileNotFoundError(f"there is no {shard}")
    elif file.suffix == ".safetensors":
        from qa.checkpoints import safetensors_head  # only now: the module takes seconds to import

        safetensors_head(file)
    elif file.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(file) as content:  # its list of contents is at the end
            if not any(name.endswith("data.pkl") for name in content.namelist()):
                raise ValueError("it holds no tensors")


def missing_rank(checkpoint: Path) -> str | None:
    """Return a file that a rank should have written: of the ranks in `run.json`, and of each below one that wrote its file."""
    found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*_[0-9]*.p*t*")}
    ranks = ranks_of_run(checkpoint)
    needed = [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else []
    for match in filter(None, map(RANK.fullmatch, sorted(found))):
        before, rank, after = match.groups()
        needed += [f"{before}{lower}{after}" for lower in range(int(rank))]
    return next((f"there is no {name}" for name in needed if name not in found), None)


def best_damage(checkpoint: Path, state: TrainerState) -> str | None:
    """Return why the weights of the best checkpoint so far, to which the run returns at its end, cannot be read."""
    if state.best_model_checkpoint is None:
        return None
    best = Path(state.best_model_checkpoint)
    best = best if best.exists() else checkpoint.parent / best.name  # the output folder was moved
    if not best.is_dir():
        return f"its best checkpoint, {best.name}, is gone"
    found = cut_off(best)
    if found is None and not any(any(best.glob(pattern)) for pattern in PARTS[engine_of(best)]["weights"]):
        found = "there are no weights"
    return found and f"its best checkpoint, {best.name}: {found}"
