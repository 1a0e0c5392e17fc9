"""The files of `configs/` say what the README does: each is a row of its table, or one of its recipes, value by value.

Two of them are run with the other commands of the pages, by test_readme.py.
"""

import json
import re
from pathlib import Path

import pytest
from helpers import ROOT
from test_readme import RECIPES, T5_ON_EIGHT_CARDS, deepspeed_block, words_of

from qa.argument_file import expand_file, flags_of_file
from qa.arguments import DataArguments, ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments
from qa.command_line import read_command_line
from qa.device import training_arguments


FILES = {path.name: path for path in sorted((ROOT / "configs").iterdir())}
RECIPE = {
    "BERT-large on one card": "bert-large-wwm.yaml",
    "ALBERT-XXL with torch.compile": "albert-xxlarge.yaml",
    "BERT-large on eight cards": "bert-large-wwm.yaml",
    "BERT-large with DeepSpeed": "bert-large-wwm-deepspeed.yaml",
    "Llama with DeepSpeed": "llama-2-chinese-13b-8-cards.yaml",
    "inference only": "bert-large-wwm-inference.yaml",
    "T5-small on SQuAD2.0": "t5-small.yaml",
    "T5-small on eight cards": "t5-small.yaml",
}
README = (ROOT / "README.md").read_text()
ROWS = dict(re.findall(r"^\| \[([^]]+)\]\(configs/([\w.-]+)\) \|", README, re.MULTILINE))


def start_of(command: str) -> list[str]:
    """Return the words of a command up to the script; PT_HPU_LAZY_MODE follows from the flags."""
    words = [word for word in words_of(command) if not word.startswith("PT_HPU_LAZY_MODE=")]
    return words[: 1 + next(place for place, word in enumerate(words) if re.fullmatch(r"run_\w+\.py", word))]


def settings_of(command: str) -> dict:
    """Return the values of all flags of a command, as the scripts read them; that of --deepspeed is the file's content."""
    words = words_of(command)[words_of(command).index(start_of(command)[-1]) :]
    writes = words[0] == "run_seq2seq_qa.py"
    kinds = (Seq2SeqModelArguments, Seq2SeqDataArguments) if writes else (ModelArguments, DataArguments)
    flags = expand_file([word if not word.startswith("configs/") else str(ROOT / word) for word in words[1:]])
    values, problems = read_command_line(flags, (*kinds, training_arguments(writes)))
    assert not problems
    settings = vars(values)
    settings["torch_compile"] |= settings["torch_compile_backend"] is not None  # as transformers' arguments do
    if settings["deepspeed"] is not None:
        path = ROOT / settings["deepspeed"]
        settings["deepspeed"] = json.loads(path.read_text() if path.is_file() else deepspeed_block())
    del settings["output_dir"], settings["given"]
    return settings


def commands_in(path: Path) -> list[str]:
    """Return the commands in the comment at the head of a file."""
    head = path.read_text().partition("\nmodel_name_or_path:")[0]
    return re.findall(r"(?:.*\\\n)*.+ --output_dir out", re.sub(r"^# *", "", head, flags=re.MULTILINE))


@pytest.mark.parametrize("recipe", RECIPE)
def test_each_recipe_is_a_file(recipe):
    command = (RECIPES | {"T5-small on eight cards": T5_ON_EIGHT_CARDS})[recipe]
    in_file = [given for given in commands_in(FILES[RECIPE[recipe]]) if start_of(given) == start_of(command)]
    assert len(in_file) == 1
    model = re.sub(r" --model_name_or_path my_model", "", in_file[0])
    assert settings_of(model) == settings_of(command)


def test_each_row_of_the_table_is_a_file():
    columns = "learning_rate num_train_epochs per_device_train_batch_size per_device_eval_batch_size".split()
    assert len(ROWS) == 11 and f"| | {' | '.join(columns)} |" in README
    for row, name in ROWS.items():
        (command,) = commands_in(FILES[name])
        (cells,) = re.findall(rf"^\| \[{re.escape(row)}\]\S+ \|(.*)\|$", README, re.MULTILINE)
        expected = dict(zip(columns, (float(cell) for cell in cells.split("|"))))
        settings = settings_of(command)
        assert {column: settings[column] for column in columns} == expected, name
        assert ("--world_size" in command) == ("multi-card" in row) == ("8-cards" in name)
        assert settings["bf16"] or settings["deepspeed"]["bf16"]["enabled"]  # the table is of mixed precision
        assert settings["do_train"] and settings["do_eval"] and settings["use_habana"]


def test_there_is_no_other_file():
    assert {*ROWS.values(), *RECIPE.values()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_each_value_has_its_reason(name):
    """And each file begins with what it is for, and with a command that names it."""
    title, _, *lines = FILES[name].read_text().splitlines()
    assert re.fullmatch(r"# .+, on .+:", title)
    values = [line for line in lines if not line.startswith("#")]
    assert len(values) == len(flags_of_file(FILES[name]))
    assert all(re.fullmatch(r"\w+: \S+  # \S.+", line) for line in values)
    assert all(f" configs/{name} " in command for command in commands_in(FILES[name]))
