"""Limits of numbers: every numeric flag has its own, and the parser with the checks keeps to them."""

import pytest
import torch

from qa.arguments import DataArguments, ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments, SpanDataArguments
from qa.command_line import FLAGS_OF_ONE_SCRIPT, CommandLine
from qa.device import training_arguments
from qa.errors import UserError
from qa.limits import ANY_VALUE, LIMITS
from qa.start import start


def numeric_flags() -> tuple[dict[str, type], dict[str, str]]:
    """Return the type of each numeric flag of both scripts, and the script of each flag that one of them alone has."""
    kinds, names = {}, []
    for seq2seq, model, data in (
        (False, ModelArguments, SpanDataArguments),
        (True, Seq2SeqModelArguments, Seq2SeqDataArguments),
    ):
        actions = CommandLine((model, data, training_arguments(seq2seq)))._actions
        kinds |= {action.dest: action.type for action in actions if action.type in (int, float)}
        names.append({f"--{action.dest}" for action in actions})
    alone = {"run_qa.py": names[0] - names[1], "run_seq2seq_qa.py": names[1] - names[0]}
    return kinds, {name: script for script, flags in alone.items() for name in flags}


def test_every_numeric_flag_has_limits():
    """A new flag needs a row of the table, or a reason to need none."""
    kinds, _ = numeric_flags()
    assert kinds.keys() == LIMITS.keys() | ANY_VALUE.keys()
    assert not LIMITS.keys() & ANY_VALUE.keys() and all(ANY_VALUE.values())


def test_the_flags_of_one_script_are_known_to_the_other():
    _, of_one_script = numeric_flags()
    assert of_one_script == FLAGS_OF_ONE_SCRIPT


def test_the_defaults_are_within_the_limits():
    for seq2seq, data in ((False, DataArguments), (True, Seq2SeqDataArguments)):
        for kind in (data, training_arguments(seq2seq)):
            for name, field in kind.__dataclass_fields__.items():
                assert name not in LIMITS or field.default is None or LIMITS[name].allows(field.default), name


@pytest.mark.parametrize(
    "value", ["0", "-1", "1", "0.5", "2", "1e30", "1" + "0" * 30, "nan", "inf", "-inf", "many", ""]
)
def test_numbers_outside_the_limits_are_problems_and_no_others(value):
    """All flags at once; those that the table allows have no problem, each other one has a line with value and limits."""
    kinds, _ = numeric_flags()
    words = [f"--{name}={value}" for name in kinds]
    with pytest.raises(UserError) as caught:
        start(
            ["--model_name_or_path", "m", "--do_train", "--dataset_name", "squad", *words, "--doc_strode"],
            Seq2SeqModelArguments,
            Seq2SeqDataArguments,
            seq2seq=True,
        )
    found = {problem.split()[0].removeprefix("--") for problem in caught.value.problems if "; give " in problem}
    assert found == {name for name in kinds if not is_good(name, kinds[name], value)}


@pytest.mark.parametrize("beta", [0.0, 0.9, 1 - 2**-53])
def test_an_optimizer_takes_the_largest_numbers_together(beta):
    """Without an overflow of 32 bits, which is an error in the first step."""
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    most = LIMITS["learning_rate"].most
    assert most >= 1e10
    assert {LIMITS[name].most for name in ("weight_decay", "adam_epsilon", "max_grad_norm")} == {most}
    optimizer = torch.optim.AdamW([weight], lr=most, betas=(beta, beta), eps=most, weight_decay=most, foreach=False)
    torch.nn.utils.clip_grad_norm_([weight], most)
    optimizer.step()
    torch.zeros(2).uniform_(-LIMITS["neftune_noise_alpha"].most, LIMITS["neftune_noise_alpha"].most)


def is_good(name: str, kind: type, value: str) -> bool:
    """Return whether a flag takes a value, by the table: the number of epochs has no effect where there are steps."""
    try:
        number = kind(value)
    except ValueError:
        return False
    unused = name == "num_train_epochs" and value.isdigit() and int(value) > 0
    return name in ANY_VALUE or unused or LIMITS[name].allows(number)
