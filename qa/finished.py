"""The same command again after its end: what is finished stays as it is, and only what is missing is done."""

import logging
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerState

from qa.arguments import STAGES
from qa.card import write_card
from qa.earlier import REPLACED, forget, has_results, replaced_stages
from qa.files import read_object
from qa.identity import RUN_FILE, write_record
from qa.locks import unlock
from qa.lora import ADAPTER_CONFIG
from qa.saving import WEIGHTS, end
from qa.screen import print_summary, report_stage
from qa.settings import SETTINGS_FILE, take_tuned
from qa.upstream.training import has_ended


logger = logging.getLogger(__name__)

# Flags that change no answer and no score, or do so by the questions of a stage, which are compared themselves.
WITHOUT_EFFECT = frozenset(
    "output_dir overwrite_output_dir resume_from_checkpoint resume_anyway logging_dir logging_steps logging_strategy "
    "logging_first_step log_level log_level_replica log_on_each_node disable_tqdm report_to run_name local_rank "
    "max_train_minutes nan_patience recipe_cache debug_traceback check check_steps language license push_to_hub hub_model_id "
    "hub_private_repo hub_strategy hub_always_push hub_revision do_train do_eval do_predict train_file "
    "validation_file test_file max_train_samples max_eval_samples max_predict_samples".split()
)
# The part of the data of each later stage.
LATER = {stage: split for split, stage in STAGES.items() if stage != "train"}


def finished_training(training_args) -> str | None:
    """Return `output_dir` if it holds the model of the training that the flags ask for, at its end; else None."""
    starts_again = training_args.overwrite_output_dir or str(training_args.resume_from_checkpoint).lower() == "false"
    folder = Path(training_args.output_dir)
    weights = [path for path in folder.glob("*model*") if WEIGHTS.fullmatch(path.name)]
    is_to_be_merged = training_args.merge_lora and (folder / ADAPTER_CONFIG).exists()
    if not training_args.do_train or starts_again or not weights or is_to_be_merged:
        return None
    state = read_object(folder / "trainer_state.json")
    try:
        totals = state["stateful_callbacks"]["RunTotals"]["attributes"]
        asked = all(totals[name] == getattr(training_args, name) for name in ("max_steps", "num_train_epochs"))
        ended = has_ended(state, steps=state["max_steps"], patience=training_args.early_stopping_patience)
    except (LookupError, TypeError, AttributeError):
        return None
    return training_args.output_dir if asked and ended else None


def keep_only_missing(model_args, data_args, training_args, rows: dict, record: dict | None, config) -> bool:
    """Change what a run does whose training is finished to what is missing; if nothing is, show the results.

    The run then evaluates and predicts with the model in `output_dir`. If its threshold was tuned, it uses that; a tuning
    that is missing is done, and with it all that depends on it. With `--check` no file changes.

    Args:
        rows: by split; those without use are removed.
        record: of the command, on rank 0, see `qa.identity.identify`.
        config: the model's.

    Returns:
        Whether anything is missing; a push to the hub always is.

    Raises:
        UserError: the model's settings cannot be read.
    """
    folder = Path(training_args.output_dir)
    stale = stale_stages(folder, record)
    if training_args.world_size > 1:
        broadcast_object_list(stale)
    asked = [stage for stage in LATER if getattr(training_args, f"do_{stage}")]
    tunes = "tuning" in rows and not take_tuned(data_args, folder)
    missing = ["tuning"] * tunes + [
        stage for stage in asked if tunes or stage in stale or not has_results(folder, stage)
    ]
    pushes = ["push to the hub"] * training_args.push_to_hub
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    logger.warning(
        f"{folder} holds the finished training (step {state.global_step:,} of {state.max_steps:,}); "
        f"left to do: {', '.join(missing + pushes) or 'nothing'}; to train again, add --overwrite_output_dir"
    )
    if not missing + pushes:
        show_results(training_args, state, ["train", *asked])
        if record is not None and not data_args.check:
            write_card(folder, folder.resolve().name, config)  # a kill may have left it without the scores
            end(folder)
        unlock(folder)
        return False
    if record is not None and not data_args.check:
        forget(folder, filter(None, stale))
        write_record(folder, record | {REPLACED: [stage for stage in replaced_stages(folder) if stage not in missing]})
    model_args.model_name_or_path, model_args.lora_r = training_args.output_dir, None
    training_args.do_train, training_args.eval_strategy = False, "no"
    training_args.do_eval, training_args.do_predict = "eval" in missing, "predict" in missing
    for split in [split for split in rows if STAGES.get(split, split) not in missing]:
        del rows[split]
    return True


def stale_stages(folder: Path, record: dict | None) -> list[str | None]:
    """Return the later stages whose results, if there are any, are not of the command with a record; None for the others."""
    old = read_object(folder / RUN_FILE)
    now, replaced = {} if record is None else record["data"], replaced_stages(folder)
    return [
        stage if split in now and (stage in replaced or not answers_alike(old, record, split)) else None
        for stage, split in LATER.items()
    ]


def answers_alike(old: dict, new: dict, split: str) -> bool:
    """Return whether the commands of two records answer the same questions of a split in the same way."""
    flags = [record.get("arguments", {}).items() for record in (old, new)]
    before, now = ({name: value for name, value in part if name not in WITHOUT_EFFECT} for part in flags)
    return before == now and old.get("data", {}).get(split) == new["data"][split]


def mark_unfinished(folder: Path) -> None:
    """Remove the trainer's state, the settings and all results in an output folder: its model is trained further."""
    for name in ("trainer_state.json", SETTINGS_FILE):
        (folder / name).unlink(missing_ok=True)
    forget(folder, STAGES.values())


def note_replaced(training_args) -> None:
    """Note in `run.json`, if there is one, which stages now get results that are not of its command."""
    folder = Path(training_args.output_dir)
    record = read_object(folder / RUN_FILE)
    stages = {stage for stage in LATER if getattr(training_args, f"do_{stage}")}
    if record:
        write_record(folder, record | {REPLACED: sorted(stages.union(replaced_stages(folder)))})


def show_results(training_args, state: TrainerState, stages: list[str]) -> None:
    """Print the results of finished stages as the run itself has printed them."""
    metrics = {}
    for stage in stages:
        if results := read_object(Path(training_args.output_dir) / f"{stage}_results.json"):
            report_stage(stage, results)
            metrics |= results
    print_summary(training_args, state, metrics)
