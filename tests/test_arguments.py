"""The command line: the reference's flags and defaults, files of arguments, and mistakes told in one line."""

import ast
import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from qa.arguments import DataArguments, ModelArguments, parse_command_line
from qa.checks import check_arguments
from qa.device import GAUDI_DEFAULTS, GAUDI_FLAGS, settle_lazy_mode, training_arguments
from qa.errors import UserError


# reference.md, "Command line to keep"
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
    argv = settle_lazy_mode(["--model_name_or_path", "m", *argv])
    return parse_command_line(argv, ModelArguments, DataArguments, training_arguments(False))


def problems_of(*argv: str) -> list[str]:
    """What a command line is refused for, by parsing or by the checks."""
    with pytest.raises(UserError) as caught:
        _, data, training = parse(*argv)
        check_arguments(data, training)
    assert not any("\n" in problem for problem in caught.value.problems)
    return list(caught.value.problems)


def test_flags_and_defaults_are_the_references():
    model, data, _ = parse()
    found = {name: getattr(data, name, getattr(model, name, "missing")) for name in DEFAULTS}
    assert found == DEFAULTS


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
        "3", "--adjust_throughput", "--torch_compile_backend", "hpu_backend", "--bf16", "--do_eval",
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


def test_use_habana_without_a_gaudi_ends_at_once():
    """Defect 10: in the reference nothing runs without a Gaudi, and it does not say what is missing."""
    (problem,) = problems_of("--use_habana", "--do_train")
    assert "habana_frameworks" in problem and "leave --use_habana away" in problem


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_file_of_arguments_and_flags_that_override_it(tmp_path, suffix):
    settings = {
        "model_name_or_path": "m",
        "do_train": True,
        "max_seq_length": 128,
        "learning_rate": 1e-4,
        "pad_to_max_length": False,
    }
    settings |= {"label_names": ["a b", "c"], "lr_scheduler_kwargs": {"num_cycles": 2}, "seed": None}
    path = tmp_path / f"arguments.{suffix}"
    path.write_text(json.dumps(settings))  # JSON is YAML
    types = (ModelArguments, DataArguments, training_arguments(False))
    model, data, training = parse_command_line([str(path), "--max_seq_length", "64", "--seed", "7"], *types)
    assert (model.model_name_or_path, data.max_seq_length, data.pad_to_max_length) == ("m", 64, False)
    assert (training.do_train, training.learning_rate, training.seed) == (True, 1e-4, 7)
    assert (training.label_names, training.lr_scheduler_kwargs) == (["a b", "c"], {"num_cycles": 2})


@pytest.mark.parametrize("content", ["[1]", "{", "a: [", "a: b: c"])
def test_a_broken_file_of_arguments(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="a.yaml: ") as caught:
        parse_command_line([str(path)], ModelArguments)
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


def test_mistakes_are_told_together_and_name_their_flag(tmp_path):
    (tmp_path / "a.txt").touch()
    problems = problems_of("--do_train", "--do_predict", "--train_file", str(tmp_path / "a.txt"), "--validation_file",
                           "nowhere.json", "--doc_stride", "400", "--n_best_size", "0", "--max_eval_samples", "0")  # fmt: skip
    starts = ["--train_file", "--validation_file nowhere.json: there is no such file", "no data for the test part",
              "--n_best_size is 0", "--max_eval_samples is 0", "--doc_stride 400 leaves no room"]  # fmt: skip
    assert len(problems) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(problems, starts))


def test_nothing_to_do_is_an_error():
    """Defect 4: the reference falls through to the test split."""
    assert problems_of("--dataset_name", "squad") == ["nothing to do: add --do_train, --do_eval or --do_predict"]


def test_misspelt_flags_and_values():
    assert problems_of("--do_trian") == ["unknown argument --do_trian (did you mean --do_train?)"]
    assert problems_of("--learnin_rate", "1") == ["unknown argument --learnin_rate (did you mean --learning_rate?)"]
    assert problems_of("stray") == ["unknown argument stray (see --help)"]
    assert problems_of("--max_seq_length", "many") == [
        "argument --max_seq_length/--max-seq-length: invalid int value: 'many' (see --help)"
    ]
    (problem,) = problems_of("--load_best_model_at_end", "--eval_strategy", "epoch")
    assert problem.startswith("--load_best_model_at_end requires the save and eval strategy to match")
    with pytest.raises(UserError, match="required: --model_name_or_path"):
        parse_command_line([], ModelArguments)


def test_the_script_ends_with_status_2_and_no_traceback():
    command = [sys.executable, str(ROOT / "run_qa.py"), "--model_name_or_path", "m", "--dataset_name", "d"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: nothing to do: add --do_train, --do_eval or --do_predict\n")
