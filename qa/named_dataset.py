"""The records of `--dataset_name`: a name on the hub, or a folder."""

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

from qa.arguments import SPLITS, DataArguments, ModelArguments
from qa.errors import UserError, reason_of
from qa.hub import loading_problem
from qa.reading import TEXT_READERS, kind_of, read_file


KEEP_TEXTS = {"keep_default_na": False, "na_values": ""}  # for CSV: only an empty cell is nothing, not NA or None


def load_named_dataset(data_args: DataArguments, model_args: ModelArguments, training_args) -> dict[str, Callable]:
    """Return what reads the records of each split of `--dataset_name`.

    That is a folder of `save_to_disk`, a folder of data files, or a hub name. Text files of a folder are read as
    `--train_file` reads them; the library datasets chooses those of each split.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError  # which does not say why

    if training_args.disable_tqdm or not training_args.should_log:
        datasets.disable_progress_bars()
    name = data_args.dataset_name
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return {split: part.to_list for split, part in datasets.load_from_disk(name).items()}
        builder = dataset_builder(data_args, model_args)
        if files := text_files(builder):
            return {split: partial(read_files, paths) for split, paths in files.items()}
        builder.download_and_prepare()
        return {split: part.to_list for split, part in builder.as_dataset().items()}
    except Exception as error:  # datasets raises a dozen kinds, and all of them mean: this cannot be loaded
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        failure = f"cannot be loaded: {reason_of(reason)}"
        raise UserError(loading_problem(error, "dataset_name", name, model_args, failure)) from error


def dataset_builder(data_args: DataArguments, model_args: ModelArguments):
    """Return the library's object for `--dataset_name`; it never asks on stdin whether to run code of the repository.

    CSV of the hub keeps texts such as `NA` and `None`, which pandas would take for empty cells.
    """
    import datasets

    load = partial(
        datasets.load_dataset_builder,
        data_args.dataset_name,
        data_args.dataset_config_name,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        trust_remote_code=model_args.trust_remote_code,
    )
    try:
        builder = load()
    except ValueError:
        with suppress(ValueError):  # the cache has CSV of the hub together with its settings
            return load(**KEEP_TEXTS)
        raise
    is_hub_csv = hasattr(builder.config, "keep_default_na") and not text_files(builder)
    return load(**KEEP_TEXTS) if is_hub_csv else builder


def text_files(builder) -> dict[str, list[Path]]:
    """Return the files of each split where they are CSV or JSON on this disk, with no settings in the folder's README.md."""
    files = {str(split): [Path(file) for file in named] for split, named in (builder.config.data_files or {}).items()}
    paths = list(itertools.chain(*files.values()))
    readable = paths and all(path.is_file() and kind_of(path) in TEXT_READERS for path in paths)
    return files if readable and not has_settings(builder.config) else {}


def has_settings(config) -> bool:
    """Return whether a builder's configuration says how to read its files, such as with a delimiter."""
    naming, defaults = {"name", "version", "description", "data_dir", "data_files"}, type(config)()
    return any(
        getattr(config, field.name) != getattr(defaults, field.name)
        for field in fields(config)
        if field.name not in naming
    )


def read_files(paths: list[Path]) -> list[dict]:
    return [record for path in paths for record in read_file(path)]


def rows_of_split(dataset: dict[str, Callable], split: str, name: str) -> list[dict]:
    if split not in dataset:
        flag = SPLITS[split]
        raise UserError(f"--dataset_name {name} has no {split} part, only {', '.join(dataset)}; give it with --{flag}")
    return dataset[split]()
