"""`--tune_null_threshold`: the questions that are held out, the values found on them, and when they are used."""

import json
import math

import corpus
import numpy as np
import oracle
import pytest
from helpers import golds_of, load

import run_qa
import run_seq2seq_qa
from qa.calibration import TEMPERATURES
from qa.errors import UserError
from qa.settings import SETTINGS_FILE, read_settings
from qa.tuning import threshold_of_best_f1


SHARE = 0.5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write `train.json` and `dev.json` with 140 and 40 questions, every other one of a paragraph without an answer."""
    folder = tmp_path_factory.mktemp("tuning")
    for part, questions in (("train", 140), ("dev", 40)):
        squad = corpus.make_part(part, questions, seed=3)
        for paragraph in squad["data"][0]["paragraphs"]:
            for qa in paragraph["qas"][::2]:
                qa["answers"], qa["is_impossible"] = [], True
        (folder / f"{part}.json").write_text(json.dumps(squad))
    return folder


def run(script, model, folder, *flags) -> None:
    words = ["--model_name_or_path", model, "--output_dir", folder, "--report_to", "none", "--disable_tqdm", True]
    script.main(list(map(str, [*words, "--save_strategy", "no", *flags])))


def training(files) -> list:
    flags = ["--do_train", "--train_file", files / "train.json", "--version_2_with_negative", "--max_steps", 12]
    flags += ["--max_seq_length", 96, "--doc_stride", 32, "--learning_rate", "3e-3", "--per_device_train_batch_size", 8]
    return [*flags, "--tune_null_threshold", SHARE]


def evaluation(files) -> list:
    return ["--do_eval", "--validation_file", files / "dev.json"]


@pytest.fixture(scope="module")
def tuned(tiny_model, files, tmp_path_factory):
    """Return the output of a run that trains, tunes and evaluates, and what it has asked its model."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    run(run_qa, tiny_model, folder, *training(files), *evaluation(files))
    return folder


def test_smoke(tuned):
    print((tuned / SETTINGS_FILE).read_text())
    print(sorted(p.name for p in tuned.iterdir()))
