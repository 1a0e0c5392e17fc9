"""The start of a run: its command line and device are checked, its output folder is locked, its log begins."""

import logging
import os
import sys
import warnings
from pathlib import Path

import transformers

from qa.argument_file import expand_file
from qa.buckets import with_number
from qa.checks import find_problems
from qa.command_line import build, read_command_line
from qa.device import training_arguments
from qa.errors import UserError, on_rank_0, reason_of, show_tracebacks
from qa.gaudi_variables import set_gaudi_variables
from qa.hub import report_shadowing
from qa.locks import lock
from qa.push import check_account
from qa.ranks import place_process
from qa.saving import is_being_overwritten, remove_remains
from qa.secret_flags import take_words
from qa.settings import use_settings
from qa.thresholds import doubt


logger = logging.getLogger(__name__)


def start(
    argv: list[str] | None, model_type: type, data_type: type, seq2seq: bool = False, description: str | None = None
) -> tuple:
    """Read and check a script's command line and the device, start the log, and seed.

    Returns:
        The model's, the data's and the training's arguments.

    Raises:
        UserError: with every problem that shows without reading data or a model.
    """
    place_process()  # again, for those who call a script's `main` themselves
    argv, graphs = set_gaudi_variables(expand_file(take_words() if argv is None else argv))
    training_type = training_arguments(seq2seq)
    values, problems = read_command_line(argv, (model_type, data_type, training_type), description)
    line = None
    try:
        line = use_settings(values)
    except UserError as error:
        problems += error.problems
    model_args, data_args = build(model_type, values), build(data_type, values)
    if data_args.debug_traceback:
        show_tracebacks()
    problems += find_problems(data_args, values)
    # Building the training arguments takes the device, which may be the problem, and waits for the other ranks.
    if problems and (values.use_habana or "WORLD_SIZE" in os.environ):
        raise UserError(*problems)
    try:
        training_args = build(training_type, values, problems)
    except UserError as error:
        problems += error.problems
    except Exception as error:  # the libraries' own checks, of many kinds
        problems.append(reason_of(error))
    if problems:
        raise UserError(*problems)
    if data_args.length_buckets is not None:  # the record of the run has the number, which depends on the device
        data_args.length_buckets = with_number(data_args.length_buckets, training_args.use_habana)
    start_logging(training_args)
    if graphs is not None:
        logger.log(*graphs)
    if line is not None:
        logger.info(line)
    if (line := doubt_of_threshold(values)) is not None:
        logger.warning(line)
    report_shadowing(model_args, data_args, training_args)
    if training_args.push_to_hub:
        on_rank_0(training_args, check_account, training_args)
    if not data_args.check:
        on_rank_0(training_args, take, Path(training_args.output_dir))
    complete_overwriting(training_args)
    transformers.set_seed(training_args.seed)
    return model_args, data_args, training_args


def doubt_of_threshold(values) -> str | None:
    """Return a line about a threshold on the command line that looks like a probability."""
    if "null_score_diff_threshold" not in values.given or not values.version_2_with_negative:
        return None
    return doubt(values.null_score_diff_threshold, [values.model_name_or_path, values.output_dir])


def take(folder: Path) -> None:
    """Lock an output folder, and remove what a killed run left half written, of whichever stage."""
    lock(folder)
    remove_remains(folder)


def complete_overwriting(training_args) -> None:
    """Set --overwrite_output_dir for a training whose folder holds the remains of a run that it was to remove."""
    if training_args.do_train and is_being_overwritten(Path(training_args.output_dir)):
        logger.warning(f"Starting again: a kill interrupted --overwrite_output_dir in {training_args.output_dir}")
        training_args.overwrite_output_dir = True


def start_logging(training_args) -> None:
    """Log the scripts and the libraries in one format, at the level that `--log_level` asks of this rank.

    With the default level the libraries print warnings only; the scripts print a line for each stage.
    """
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", datefmt="%m/%d/%Y %H:%M:%S", stream=sys.stdout
    )
    logging.getLogger("huggingface_hub").handlers.clear()  # its own handler would print everything twice
    level, libraries = training_args.get_process_log_level(), training_args.get_process_log_level()
    if training_args.should_log and training_args.log_level == "passive":
        level, libraries = logging.INFO, logging.WARNING
        warnings.filterwarnings("ignore", category=FutureWarning)  # for developers of the libraries
    logging.getLogger().setLevel(level)
    transformers.utils.logging.set_verbosity(libraries)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
    bars, silent = transformers.utils.logging, training_args.disable_tqdm or not training_args.should_log
    bars.disable_progress_bar() if silent else bars.enable_progress_bar()
