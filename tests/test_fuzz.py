"""Random questions through reading, features and answers, and random command lines: results are right, mistakes one line.

`make fuzz` tries many more cases. Other random cases are in the tests of the modules.
"""

import contextlib
import io
import json
import os
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from helpers import as_dicts, examples, nbest_of
from hypothesis import example, given
from hypothesis import strategies as st
from test_utils_qa import expected

import gaudi_spawn
import utils_qa
from qa.answers import AnswerRules, find_answers
from qa.arguments import STAGES, DataArguments, ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments
from qa.data import load_rows
from qa.device import training_arguments
from qa.errors import UserError
from qa.start import start


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Return the folder in which all of this happens: a random command line may name any other."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def check_problems(error: UserError) -> None:
    """Check that each problem is a line that a person can read."""
    assert error.problems and all(problem.strip() and len(problem.splitlines()) == 1 for problem in error.problems)
    assert all(problem.isprintable() and len(problem) < 3000 for problem in error.problems)


# ---------------------------------------------------------------------------------------------------------------------
# Questions


WORDS = st.text(st.sampled_from("ab Cé—京🙂\n\u00a0\u2028\u0301.,'$9\x00\ud800"), min_size=1, max_size=12)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | WORDS | st.sampled_from(["[1]", "{'text': 'a'}", "NA"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "answer_start", "a"]), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@st.composite
def questions(draw) -> dict:
    """Draw a record: most are good, with answers in their context, and in one of ten something is wrong."""
    context = draw(st.text(st.sampled_from("ab é京🙂\n.,$9"), min_size=1, max_size=60))
    begin = draw(st.integers(0, len(context) - 1))
    text = context[begin : draw(st.integers(begin, len(context)))]
    start = begin + draw(st.sampled_from([0, 0, 0, 0, 1, -1, -begin - 1]))
    answers = draw(
        st.sampled_from([{"text": [text], "answer_start": [start]}, {"text": [], "answer_start": []}, text])
    )
    record = {"id": draw(st.sampled_from("abcd")), "context": context, "question": draw(WORDS), "answers": answers}
    if draw(st.integers(0, 9)) == 0:
        record[draw(st.sampled_from([*record, "is_impossible", "answer_start", "title"]))] = draw(NESTED)
    return {name: record[name] for name in draw(st.permutations(list(record)))}


def load(path, split: str, **flags) -> tuple[list[dict], int]:
    """Return the rows of a split and the number of those that were omitted."""
    stages = {f"do_{stage}": name == split for name, stage in STAGES.items()}
    training_args = SimpleNamespace(**stages, seed=0, data_seed=None)
    flags |= {f"{split}_file": str(path)}
    rows, counts = load_rows(DataArguments(**flags), ModelArguments("model"), training_args)
    return rows[split], counts[split].get("skipped_rows", 0)


@examples(150)
@given(
    st.lists(questions(), min_size=1, max_size=6),
    st.sampled_from(["train", "validation", "test"]),
    st.booleans(),
    st.sampled_from(["first", "stop", "skip"]),
)
def test_rows_are_right_or_skipped_or_refused_in_a_line_each(folder, records, split, negatives, ambiguous):
    path = folder / "rows.json"
    path.write_text(json.dumps(records))
    flags = {"version_2_with_negative": negatives, "ambiguous_answers": ambiguous}
    try:
        rows, skipped = load(path, split, on_bad_rows="skip", **flags)
    except UserError as error:
        check_problems(error)
        return
    assert len(rows) + skipped == len(records)
    check_rows(rows, split, negatives)
    try:
        assert load(path, split, **flags)[0] == rows and (not skipped or ambiguous == "skip")
    except UserError as error:
        check_problems(error)
        assert skipped


def check_rows(rows: list[dict], split: str, negatives: bool) -> None:
    """Check what the later steps rely on."""
    assert len({(row["id"], row["context"]) for row in rows}) == len(rows)
    assert split == "train" or len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        for text in (row["context"], row["question"]):
            assert text.strip() and text.encode()
        golds = row.get("gold_answers", row["answers"])
        assert split == "test" or negatives or golds["text"]
        if split == "train" and golds["text"]:
            places = [
                start
                for text, start in zip(*row["answers"].values())
                if start >= 0 and row["context"].startswith(text, start)
            ]
            assert places or row["answers"] != golds


@examples(100)
@given(
    st.lists(questions(), min_size=1, max_size=4),
    st.sampled_from(["bert", "bert_left", "roberta", "albert", "xlnet", "llama", "qwen2"]),
    st.booleans(),
    st.integers(0, 8),
    st.integers(0, 2**32 - 1),
)
def test_features_and_answers_of_rows_are_the_oracles(folder, tokenizers, records, kind, negatives, doc_stride, seed):
    path = folder / "answered.json"
    path.write_text(json.dumps(records))
    try:
        rows, _ = load(path, "validation", on_bad_rows="skip", version_2_with_negative=negatives)
    except UserError as error:
        check_problems(error)
        return
    rows = [row for row in rows if -1 not in row["answers"]["answer_start"]]  # those have labels of their own
    if not rows:
        return
    tokenizer, rng = tokenizers[kind], np.random.default_rng(seed)
    features = utils_qa.prepare_features(rows, tokenizer, max_seq_length=48, doc_stride=doc_stride)
    listed = as_dicts(features)
    assert listed == expected(tokenizer, rows, 48, doc_stride)
    logits = tuple(rng.normal(scale=3, size=(len(listed), 48)).astype(np.float32) for _ in range(2))
    rules = (negatives, *map(int, rng.integers(1, 25, 2)))
    found = find_answers(rows, features, logits, AnswerRules(*rules))
    assert (found.texts, nbest_of(found), found.null_odds) == oracle.answers(rows, listed, logits, *rules)


# ---------------------------------------------------------------------------------------------------------------------
# Command lines

TYPES = {False: (ModelArguments, DataArguments), True: (Seq2SeqModelArguments, Seq2SeqDataArguments)}
FLAGS = {
    seq2seq: sorted(
        {name for kind in (*TYPES[seq2seq], training_arguments(seq2seq)) for name in kind.__dataclass_fields__}
        - {"deepspeed", "fsdp", "fsdp_config", "accelerator_config", "tpu_num_cores", "use_habana", "ddp_backend"}
    )
    for seq2seq in (False, True)
}
VALUES = st.sampled_from(
    ["", "0", "1", "-1", "2.5", "1e400", "nan", "inf", "9" * 30, "true", "no", "None", "null", "{}", "[1]", '{"a": 1}', "x",
     "a b", "--", "-", "--seed", "é🙂", "\udce9", "\x00", "\n", "%s", "%(default)s", "{x}", "/", "steps", "epoch", "cosine", "f1"]
) | st.text(max_size=4) | st.integers().map(str) | st.floats().map(str)  # fmt: skip


@st.composite
def command_lines(draw) -> tuple[bool, list[str]]:
    seq2seq = draw(st.booleans())
    words = draw(
        st.sampled_from(
            [[], ["--model_name_or_path", "m"], ["--model_name_or_path", "m", "--do_eval", "--dataset_name", "d"]]
        )
    )
    for _ in range(draw(st.integers(0, 5))):
        flag = f"--{draw(st.sampled_from(FLAGS[seq2seq]))}"
        form = draw(st.sampled_from(["two", "two", "one", "alone", "value", "cut"]))
        value = draw(VALUES)
        words = words + {
            "two": [flag, value], "one": [f"{flag}={value}"], "alone": [flag], "value": [value], "cut": [flag[:-2], value]
        }[form]  # fmt: skip
    return seq2seq, words


def outcome(action) -> None:
    """Check that an action ends well, in lines for a person, or as --help does."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            action()
    except UserError as error:
        check_problems(error)
    except SystemExit as end:
        assert end.code in (0, None, 2)


@examples(300)
@given(command_lines())
@example((False, ["--seed=--"]))
@example((True, ["--push_to_hub_model_id", ""]))
@example((False, ["\n\udce9"]))
def test_any_command_line_is_read_or_refused_in_a_line_each(folder, command_line):
    seq2seq, words = command_line
    outcome(lambda: start(["--output_dir", str(folder / "out"), *words], *TYPES[seq2seq], seq2seq=seq2seq))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | VALUES
SETTINGS = st.dictionaries(
    st.sampled_from(FLAGS[False]) | VALUES,
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(VALUES, SCALARS, max_size=2),
    max_size=4,
)


@examples(100)
@given(SETTINGS, st.binary(max_size=30), st.integers(0, 60), st.sampled_from(["json", "yaml"]))
def test_any_file_of_arguments_is_read_or_refused_in_a_line_each(folder, values, inserted, place, ending):
    path = folder / f"settings.{ending}"
    content = json.dumps(values | {"model_name_or_path": "m", "output_dir": str(folder / "out")}).encode()
    for written in (content, content[:place] + inserted + content[place:]):
        path.write_bytes(written)
        outcome(lambda: start([str(path)], *TYPES[False]))


@examples(200)
@given(
    st.lists(
        st.sampled_from([*gaudi_spawn.FLAGS, "--nodes", "-h", "--", "run_qa.py", "-x"]) | VALUES | st.builds(
            "{}={}".format, st.sampled_from(list(gaudi_spawn.FLAGS)), VALUES
        ),
        max_size=6,
    )
)  # fmt: skip
@example(["--hostfile", "/"])
def test_any_command_line_of_the_launcher_is_read_or_refused_in_a_line_each(words):
    outcome(lambda: gaudi_spawn.make_job(*gaudi_spawn.read_flags(words)))
