"""The command line: the reference's flags and defaults, files of arguments, --help, and problems reported together."""

import ast
import dataclasses
import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Union

import pytest
from helpers import ROOT, split_import_times
from transformers.integrations.integration_utils import get_available_reporting_integrations

from qa.argument_file import expand_file
from qa.arguments import DataArguments, ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments, SpanDataArguments
from qa.command_line import HELP, LIBRARY_HELP, CommandLine
from qa.device import GAUDI_DEFAULTS, GAUDI_FLAGS, OWN_FLAGS, DeviceChoice, training_arguments
from qa.errors import UserError
from qa.start import start


DO = ("--do_eval", "--dataset_name", "squad")
# The reference's command line.
DEFAULTS = {
    "config_name": None, "tokenizer_name": None, "cache_dir": None, "model_revision": "main", "token": None,
    "trust_remote_code": False, "dataset_name": None, "dataset_config_name": None, "train_file": None,
    "validation_file": None, "test_file": None, "overwrite_cache": False, "preprocessing_num_workers": None,
    "max_seq_length": 384, "pad_to_max_length": True, "max_train_samples": None, "max_eval_samples": None,
    "max_predict_samples": None, "version_2_with_negative": False, "null_score_diff_threshold": 0.0, "doc_stride": 128,
    "n_best_size": 20, "max_answer_length": 30, "question_column": "question", "context_column": "context",
    "answer_column": "answers",
}  # fmt: skip


def parse(*argv: str) -> tuple:
    return start(["--model_name_or_path", "m", *argv], ModelArguments, DataArguments)


def problems_of(*argv: str) -> list[str]:
    """Return the problems that a command line is refused for."""
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert not any("\n" in problem for problem in caught.value.problems)
    return list(caught.value.problems)


def test_flags_and_defaults_are_the_references():
    model, data, _ = parse(*DO)
    found = {name: getattr(data, name, getattr(model, name, "missing")) for name in DEFAULTS}
    assert found == DEFAULTS | {"dataset_name": "squad"}


def test_gaudi_flags_are_those_of_optimum_habana():
    """Read from its source, since the package cannot be imported without a Gaudi."""
    folder = importlib.util.find_spec("optimum").submodule_search_locations[0]
    tree = ast.parse(open(f"{folder}/habana/transformers/training_args.py", encoding="utf-8").read())
    (body,) = (
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GaudiTrainingArguments"
    )
    fields = {node.target.id: node.value for node in body if isinstance(node, ast.AnnAssign)}
    defaults = {
        name: ast.literal_eval(next(keyword.value for keyword in value.keywords if keyword.arg == "default"))
        for name, value in fields.items()
    }
    ours = {name: default for name, (_, default) in (GAUDI_FLAGS | GAUDI_DEFAULTS).items()}
    assert ours | {"use_lazy_mode": True} == defaults


def test_without_a_gaudi_its_flags_are_named_once_and_ignored(caplog):
    _, _, training = parse(
        "--use_lazy_mode", "--use_hpu_graphs_for_inference", "--gaudi_config_name", "Habana/bert", "--throughput_warmup_steps",
        "3", "--adjust_throughput", "--torch_compile_backend", "hpu_backend", "--bf16", "--do_eval", "--dataset_name", "squad",
    )  # fmt: skip
    (record,) = (record for record in caplog.records if record.name == "qa.device")
    for name in (
        "use_lazy_mode",
        "use_hpu_graphs_for_inference",
        "gaudi_config_name",
        "torch_compile_backend",
    ):
        assert f"--{name}" in record.message
        assert not getattr(training, name)
    assert training.do_eval and "do_eval" not in record.message
    assert training.throughput_warmup_steps == 3 and training.adjust_throughput  # these count everywhere
    assert "throughput" not in record.message


def test_reentrant_checkpointing_is_refused_on_a_gaudi():
    settings = SimpleNamespace(use_habana=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    (problem,) = DeviceChoice.checkpointing_problems(settings)
    assert problem.startswith("--gradient_checkpointing_kwargs: use_reentrant is true")
    assert not DeviceChoice.checkpointing_problems(SimpleNamespace(**vars(settings) | {"use_habana": False}))


def test_use_habana_without_a_gaudi_ends_at_once():
    """Defect 10: in the reference nothing runs without a Gaudi, and it does not say what is missing."""
    (problem,) = problems_of("--use_habana", "--do_train", "--dataset_name", "squad")
    assert "habana_frameworks" in problem and "omit --use_habana" in problem


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_file_of_arguments_and_flags_that_override_it(tmp_path, suffix):
    settings = {
        "model_name_or_path": "m",
        "dataset_name": "squad",
        "do_train": True,
        "max_seq_length": 128,
        "seed": None,
    }
    settings |= {"learning_rate": 1e-4, "pad_to_max_length": False, "doc_stride": 8}
    settings |= {"lr_scheduler_type": "cosine", "label_names": ["a b", "c"], "lr_scheduler_kwargs": {"num_cycles": 2}}
    path = tmp_path / f"arguments.{suffix}"
    path.write_text(json.dumps(settings))  # JSON is YAML
    model, data, training = start([str(path), "--max_seq_length", "64", "--seed", "7"], ModelArguments, DataArguments)
    assert (model.model_name_or_path, data.max_seq_length, data.pad_to_max_length) == ("m", 64, False)
    assert (training.do_train, training.learning_rate, training.seed) == (True, 1e-4, 7)
    assert (training.label_names, training.lr_scheduler_kwargs) == (["a b", "c"], {"num_cycles": 2})


YAML = """
save_strategy: no
answer_language: off
seed: 010
do_train: on
do_eval: No
learning_rate: 1_0e-5
run_name: 2026-01-01
max_steps: ~
lr_scheduler_kwargs: {num_cycles: 2, decay: 0.5}
lr_scheduler_type: "cosine"
"""


def test_values_of_a_file_of_arguments_travel_as_they_are_written(tmp_path):
    """YAML 1.1 would make False of no and off, 8 of 010, and a date of the name."""
    path = tmp_path / "my.yaml"
    path.write_text(YAML)
    assert expand_file([str(path), "--seed", "7"]) == [
        *("--save_strategy=no", "--answer_language=off", "--seed=010", "--do_train=on", "--do_eval=No"),
        *("--learning_rate=1_0e-5", "--run_name=2026-01-01", '--lr_scheduler_kwargs={"num_cycles": 2, "decay": 0.5}'),
        *("--lr_scheduler_type=cosine", "--seed", "7"),
    ]
    words = [str(path), "--model_name_or_path", "m", "--dataset_name", "squad"]
    path.write_text(YAML.replace(", decay: 0.5", ""))
    _, data, training = start(words, ModelArguments, DataArguments)
    assert (training.save_strategy, data.answer_language, training.seed) == ("no", "off", 10)
    assert (training.do_train, training.do_eval, training.learning_rate) == (True, False, 10e-5)


def test_merged_keys_of_yaml_and_those_that_override_them(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("<<: {label_names: [a b, 010], seed: 7}\nseed: 1\nrun_name: &n x\noutput_dir: *n\n")
    assert expand_file([str(path)]) == ["--label_names", "a b", "010", "--seed=1", "--run_name=x", "--output_dir=x"]


@pytest.mark.parametrize("content", ["[1]", "{", "a: [", "a: b: c"])
def test_a_broken_file_of_arguments(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="a.yaml: ") as caught:
        start([str(path)], ModelArguments, DataArguments)
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


def test_only_the_first_argument_can_be_a_file(tmp_path):
    """Even after an empty one, in whose place the second was once read."""
    for name, content in (("first.yaml", "{}"), ("second.yaml", "do_train: true")):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        start([str(tmp_path / name) for name in ("first.yaml", "second.yaml")], ModelArguments, DataArguments)
    place = "a file of arguments has to be the first word after the script; move it there"
    assert f"{tmp_path}/second.yaml: {place}" in caught.value.problems
    for words in (["--seed", "7", "second.yaml"], ["--seed=7", "second.yaml"], ["--do_train", "second.yaml"]):
        assert f"second.yaml: {place}" in problems_of(*words)


def test_problems_are_reported_together(tmp_path):
    """Those of parsing, of flags, of files, of the device and of the libraries."""
    (tmp_path / "a.txt").touch()
    problems = problems_of("--do_train", "--do_predict", "--train_file", str(tmp_path / "a.txt"), "--validation_file",
                           "nowhere.json", "--doc_stride", "400", "--n_best_size", "0", "--max_eval_samples", "0",
                           "--seed", "x", "--do_trian", "--early_stopping_patience", "2", "--use_habana")  # fmt: skip
    starts = ["--seed is x; give a whole number, 0 or more", "unknown argument --do_trian (did you mean --do_train?)",
              "--train_file", "--validation_file nowhere.json: there is no such file", "no data for the test part",
              "--n_best_size is 0", "--max_eval_samples is 0", "--doc_stride 400 leaves no room",
              "--early_stopping_patience", "--use_habana: "]  # fmt: skip
    assert len(problems) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(problems, starts))
    problems = problems_of("--doc_stride", "400", "--load_best_model_at_end", "--eval_strategy", "epoch", *DO)
    assert len(problems) == 2 and problems[1].startswith(
        "--load_best_model_at_end requires the save and eval strategy"
    )


def test_files_are_of_a_kind_that_is_read(tmp_path):
    """A folder is not a file; endings count in upper case and before .gz."""
    for name in ("a.TSV.gz", "b.xlsx", "c.txt.gz"):
        (tmp_path / name).touch()
    folder, tsv, xlsx, txt = (str(tmp_path / name) for name in (".", "a.TSV.gz", "b.xlsx", "c.txt.gz"))
    flags = ("--do_train", "--do_eval", "--do_predict", "--train_file")
    assert problems_of(*flags, tsv, "--validation_file", xlsx, "--test_file", folder) == [
        f"--test_file {tmp_path} is a folder; name a file in it, or give the folder as --dataset_name"
    ]
    assert problems_of(*flags, tsv, "--validation_file", xlsx, "--test_file", txt) == [
        f"--test_file {txt}: not one of .json, .jsonl, .csv, .tsv, .parquet, .xlsx (each may end in .gz); rename or convert it"
    ]


def test_the_held_out_part_comes_from_the_training_data(tmp_path):
    train, dev = (str(tmp_path / name) for name in ("train.json", "dev.json"))
    for path in (train, dev):
        open(path, "w").close()
    assert problems_of("--do_eval", "--validation_split", "0.1") == [
        "no data for the validation part: give --train_file or --dataset_name"
    ]
    for share in ("0", "1", "nan", "-0.1"):
        (problem,) = problems_of("--do_train", "--train_file", train, f"--validation_split={share}")
        assert problem.startswith(f"--validation_split is {float(share)}; give more than 0, less than 1")
    (problem,) = problems_of("--do_eval", "--train_file", train, "--validation_file", dev, "--validation_split", "0.1")
    assert problem == "--validation_split and --validation_file both name the validation part; omit one of them"


def test_nothing_to_do_is_an_error():
    """Defect 4: the reference falls through to the test split."""
    assert problems_of("--dataset_name", "squad") == ["nothing to do: add --do_train, --do_eval or --do_predict"]


def test_a_text_is_a_value_wherever_a_dict_is_one():
    union = Union[str, dict, None]  # those of the libraries are `Optional[Union[dict, str]]`, which is equal
    flags = dataclasses.make_dataclass("Flags", [("file", union, dataclasses.field(default=None))])
    assert CommandLine([flags]).parse_args(["--file", "zero_2.json"]).file == "zero_2.json"


def test_misspelt_flags_and_values():
    assert problems_of("--learnin_rate", "1", *DO) == [
        "unknown argument --learnin_rate (did you mean --learning_rate?)"
    ]
    assert problems_of("--seed=7", "stray", *DO) == ["unknown argument stray (see --help)"]
    (problem,) = problems_of("stray", *DO)
    assert problem == (
        "--model_name_or_path takes one value, 2 are given: m stray; give one, and quote a value that contains blanks"
    )
    assert problems_of("--max_seq_length", "many", *DO) == [
        "--max_seq_length is many; give a whole number, 8 or more, 1048576 at most"
    ]
    assert problems_of("--save_strategy", "sometimes", *DO) == [
        "--save_strategy is sometimes; give one of no, steps, epoch, best"
    ]
    with pytest.raises(UserError) as caught:
        start([*DO], ModelArguments, DataArguments)
    assert caught.value.problems == ("--model_name_or_path is missing; add it",)


def test_the_script_ends_with_status_2_and_no_traceback():
    """Before models and the trainer are imported, which takes as long again as all before."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "run_qa.py"), "--model_name_or_path", "m"]
    done = subprocess.run([*command, "--dataset_name", "d"], capture_output=True, text=True)
    imported, errors = split_import_times(done.stderr)
    assert (done.returncode, errors) == (2, ["error: nothing to do: add --do_train, --do_eval or --do_predict"])
    assert "transformers.training_args" in imported
    assert not imported & {"transformers.trainer", "transformers.modeling_utils", "trainer_qa"}


def flags_listed(text: str) -> list[str]:
    return [line.split()[0].removeprefix("--") for line in text.splitlines() if line.startswith("  --")]


@pytest.mark.parametrize("seq2seq", [False, True])
def test_help_lists_every_flag_of_the_scripts_once_and_the_libraries_on_demand(seq2seq):
    own = (Seq2SeqModelArguments, Seq2SeqDataArguments) if seq2seq else (ModelArguments, SpanDataArguments)
    parser = CommandLine((*own, training_arguments(seq2seq)), description="    python run_qa.py --an_example")
    listed, all_flags = flags_listed(parser.format_help()), flags_listed(parser.format_help(everything=True))
    names = {field.name for kind in own for field in dataclasses.fields(kind)}
    assert names <= set(listed) and len(listed) == len(set(listed)) < 96
    training = {field.name for field in dataclasses.fields(training_arguments(seq2seq)) if field.init}
    assert set(all_flags) >= names | training and len(all_flags) == len(set(all_flags))
    assert parser.format_help().startswith("    python run_qa.py --an_example\n")
    assert "(default: 384)" in parser.format_help()


def test_help_explains_flags_that_exist():
    known = {field.name for seq2seq in (False, True) for field in dataclasses.fields(training_arguments(seq2seq))}
    kinds = (SpanDataArguments, Seq2SeqModelArguments, Seq2SeqDataArguments)
    own = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    listed = [name for names in HELP.values() for name in names.split()]
    assert len(listed) == len(set(listed)) and set(listed) <= known | own
    assert set(LIBRARY_HELP) == set(listed) - own - set(OWN_FLAGS)


def test_a_run_reports_to_no_tracker_and_draws_no_bar_into_a_file_unless_asked():
    _, _, training = parse(*DO)
    assert training.report_to == [] and training.disable_tqdm
    _, _, training = parse(*DO, "--report_to", "all", "--disable_tqdm", "false")
    assert training.report_to == get_available_reporting_integrations() and not training.disable_tqdm


def test_settings_of_the_accelerator_say_whether_copies_wait(tmp_path):
    """Where the flag for it is not given; its default depends on the device."""
    made, given = training_arguments(False), (None, {}, '{"non_blocking": false}', {"non_blocking": True})
    asked = [made(str(tmp_path), use_cpu=True, accelerator_config=settings) for settings in given]
    asked.append(made(str(tmp_path), use_cpu=True, accelerator_config=given[2], non_blocking_data_copy=True))
    assert [args.non_blocking_data_copy for args in asked] == [None, None, False, True, True]
