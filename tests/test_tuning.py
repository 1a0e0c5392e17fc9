"""`--tune_null_threshold`: which questions it holds out, what it finds on them, and when that is used."""

import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import corpus
import numpy as np
import oracle
import pytest
import scipy.optimize
from helpers import examples, golds_of, load
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import run_qa
import run_seq2seq_qa
from qa.answer_files import read_csv_columns
from qa.arguments import DataArguments, ModelArguments
from qa.command_line import read_command_line
from qa.data import load_rows
from qa.device import training_arguments
from qa.errors import UserError
from qa.metrics import squad_v2_scores_of_odds
from qa.screen import threshold_lines
from qa.settings import SETTINGS_FILE, read_settings, use_settings, write_settings
from qa.thresholds import doubt, to_paste
from qa.tuning import check_tuning, find_threshold


SHARE, SEED = 0.4, 42


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write `train.json` and `dev.json` with 160 and 40 questions; those that begin with "What" have no answer."""
    folder = tmp_path_factory.mktemp("questions")
    for part, questions in (("train", 160), ("dev", 40)):
        squad = corpus.make_part(part, questions, seed=3)
        for paragraph in squad["data"][0]["paragraphs"]:
            for qa in paragraph["qas"]:
                if qa["question"].startswith("What"):
                    qa["answers"], qa["is_impossible"] = [], True
        (folder / f"{part}.json").write_text(json.dumps(squad))
    return folder


def parts_of(files, **flags) -> dict[str, list[dict]]:
    """Return the rows of a training and an evaluation with these flags, by split."""
    flags = {"train_file": str(files / "train.json"), "version_2_with_negative": True} | flags
    validation = {} if "validation_split" in flags else {"validation_file": str(files / "dev.json")}
    stages = SimpleNamespace(do_train=True, do_eval=True, do_predict=False, seed=SEED, data_seed=None)
    return load_rows(DataArguments(**flags, **validation), None, stages)[0]


def run(script, model, folder, *flags) -> None:
    words = ["--model_name_or_path", model, "--output_dir", folder, "--report_to", "none", "--disable_tqdm", True]
    script.main(list(map(str, [*words, *flags])))


def training(files, *flags, tunes: bool = True) -> list:
    """Return the flags of a training, and of a tuning and an evaluation after it or of neither."""
    words = ["--do_train", "--train_file", files / "train.json", "--version_2_with_negative", "--save_strategy", "no"]
    words += ["--max_seq_length", 160, "--doc_stride", 32, "--per_device_train_batch_size", 16, *flags]
    return [*words, "--tune_null_threshold", SHARE, *evaluation(files)] if tunes else words


def evaluation(files, name="dev") -> list:
    return ["--do_eval", "--validation_file", files / f"{name}.json"]


SPAN = ["--num_train_epochs", 9, "--learning_rate", "8e-3"]


@pytest.fixture(scope="module")
def tuned(tiny_model, files, tmp_path_factory):
    """Return the output folder of a run that trains, tunes and evaluates."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    run(run_qa, tiny_model, folder, *training(files, *SPAN))
    return folder


# Which questions are held out


def test_the_held_out_questions_are_in_no_other_part(files):
    without, parts = parts_of(files), parts_of(files, tune_null_threshold=SHARE)
    ids = {split: [row["id"] for row in rows] for split, rows in parts.items()}
    assert list(ids) == ["train", "tuning", "validation"]
    assert sorted(ids["train"] + ids["tuning"]) == sorted(row["id"] for row in without["train"])
    contexts = [{row["context"] for row in parts[split]} for split in ids]
    assert not contexts[0] & contexts[1] and not contexts[1] & contexts[2]
    assert len(contexts[1]) == math.ceil(SHARE * len(contexts[0] | contexts[1]))
    assert parts["validation"] == without["validation"]
    fewer = parts_of(files, tune_null_threshold=SHARE, max_train_samples=20)
    assert [fewer["train"], fewer["tuning"]] == [parts["train"][:20], parts["tuning"][:20]]


def test_the_validation_part_is_the_same_with_and_without_tuning(files):
    without = parts_of(files, validation_split=0.3)
    parts = parts_of(files, validation_split=0.3, tune_null_threshold=SHARE)
    assert parts["validation"] == without["validation"]
    assert not {row["id"] for row in parts["tuning"]} & {row["id"] for row in parts["validation"]}
    both = [row["id"] for row in parts["train"] + parts["tuning"]]
    assert sorted(both) == sorted(row["id"] for row in without["train"])


def test_a_training_sees_none_of_them(tuned, tiny_model, files, tmp_path):
    """A training on a file without them, and without the flag, ends with the same weights."""
    parts = parts_of(files, tune_null_threshold=SHARE)
    write_questions(files / "train.json", tmp_path / "train.json", parts["train"])
    run(run_qa, tiny_model, tmp_path / "out", *training(tmp_path, *SPAN, tunes=False))
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", tuned))
    assert all(found[name].equal(expected[name]) for name in expected)
    settings = read_settings(tuned)
    expected = replace(settings, null_score_diff_threshold=0.0, temperature=1.0, tuned_on=0)
    assert settings.tuned_on == len(parts["tuning"]) and read_settings(tmp_path / "out") == expected


def write_questions(source, path, rows: list[dict]) -> None:
    """Write a file of SQuAD with the questions of some rows alone."""
    squad, ids = load(source), {row["id"] for row in rows}
    for paragraph in squad["data"][0]["paragraphs"]:
        paragraph["qas"] = [qa for qa in paragraph["qas"] if qa["id"] in ids]
    path.write_text(json.dumps(squad))


def test_too_few_questions_or_all_alike_end_the_run():
    answered, without = ({"context": "x", "answers": {"text": [text] * n}} for text, n in (("x", 1), ("", 0)))
    check_tuning([answered] * 49 + [without], 0.1)
    for rows, reason in (
        ([answered] * 48 + [without], "49 questions of 1 contexts, fewer than 50"),
        ([answered] * 50, "50 questions of 1 contexts, and all of them have an answer"),
        ([without] * 50, "50 questions of 1 contexts, and none of them has an answer"),
    ):
        with pytest.raises(UserError, match=f"--tune_null_threshold 0.1 holds out {reason}; raise it, or omit it"):
            check_tuning(rows, 0.1)


def test_a_check_shows_how_many_are_held_out(tiny_model, files, tmp_path, capsys, caplog):
    run(run_qa, tiny_model, tmp_path / "out", *training(files, "--max_steps", 1), "--check", "--check_steps", 1)
    held, shown = parts_of(files, tune_null_threshold=SHARE)["tuning"], capsys.readouterr().out
    contexts = len({row["context"] for row in held})
    assert f"Held out to tune the threshold: {len(held)} questions of {contexts} contexts, " in caplog.text
    assert "\ntuning batches  " in shown and " tuning features, " in shown
    assert re.search(r"\ntime  .*: training .*, tuning .*, evaluation ", shown)


# Thresholds and temperatures that are found on them


@examples(60)
@given(st.lists(st.tuples(st.sampled_from(["b c", "a b", "c", ""]), st.booleans(), st.integers(-3, 3) | st.integers(36, 40)), min_size=1))  # fmt: skip
def test_the_suggested_threshold_is_that_of_the_highest_f1_closest_to_0(cases):
    """As a loop finds it over 0, the odds of all questions and numbers just below; also where two odds are one probability."""
    texts = {str(number): text for number, (text, _, _) in enumerate(cases)}
    golds = {str(number): ["a b"] * answered for number, (_, answered, _) in enumerate(cases)}
    odds = {str(number): float(value) for number, (_, _, value) in enumerate(cases)}
    tried = sorted([0.0, *odds.values(), *(math.nextafter(value, -math.inf) for value in odds.values())], key=abs)
    f1 = [oracle.score_with_threshold(texts, golds, odds, value, oracle.f1_v2) for value in tried]
    best = next(value for value, score in zip(tried, f1) if score == pytest.approx(max(f1)))
    assert abs(suggested(texts, golds, odds)) == abs(best)


def suggested(texts: dict[str, str], golds: dict[str, list[str]], odds: dict[str, float]) -> float:
    return squad_v2_scores_of_odds(texts, golds, texts, odds)["suggested_null_score_diff_threshold"]


@examples(60)
@given(st.lists(st.tuples(st.sampled_from(["b c", "a b", "c", ""]), st.booleans(), st.integers(1, 9)), min_size=1, max_size=40))  # fmt: skip
def test_at_the_tuned_threshold_answering_is_worth_as_much_as_refusing(cases):
    """As SciPy fits it; 0 where F1 is not higher with it, as a loop over the questions counts it."""
    texts = {str(number): text for number, (text, _, _) in enumerate(cases)}
    golds = {str(number): ["a b"] * answered for number, (_, answered, _) in enumerate(cases)}
    odds = {str(number): float(value) for number, (_, _, value) in enumerate(cases)}
    found, expected = find_threshold(texts, golds, odds), fitted_threshold(texts, golds, odds)

    def f1(threshold: float) -> float:
        return oracle.score_with_threshold(texts, golds, odds, threshold, oracle.f1_v2)

    if found:
        assert f1(found) > f1(0) and (expected is None or found == pytest.approx(expected, abs=1e-2))
    elif expected is not None and min(abs(value - expected) for value in odds.values()) > 1e-2:
        assert f1(expected) <= f1(0) + 1e-9


def fitted_threshold(texts: dict[str, str], golds: dict[str, list[str]], odds: dict[str, float]) -> float | None:
    """Return the odds at which a penalized logistic regression changes its sign, 0 if it rises; None for a flat one."""
    answered = oracle.raw_scores(texts, golds, oracle.f1_v2)
    gains = {name: answered[name] - (not golds[name]) for name in golds}
    counted = [name for name, gain in gains.items() if gain]
    values = np.array([odds[name] for name in counted])
    if len(set(values)) < 2:
        return None
    middle, scale = values.mean(), values.std()

    def loss(line) -> float:
        losses = [
            abs(gains[name]) * math.log1p(math.exp(-math.copysign(1, gains[name]) * (line[0] * value + line[1])))
            for name, value in zip(counted, (values - middle) / scale)
        ]
        return sum(losses) + (line @ line) / 2

    slope, start = scipy.optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    if abs(slope) < 1e-3:  # as good as none
        return None
    return np.clip(middle - scale * start / slope, min(values) - 1e-9, max(values)) if slope < 0 else 0.0


def test_a_threshold_of_few_questions_refuses_no_answer_that_0_has():
    """The lowest one with the highest F1 is -30 here, and refuses an answer with the odds -29."""
    texts, golds, odds = {"a": "x", "b": "y"}, {"a": ["x"], "b": []}, {"a": -30.0, "b": 20.0}
    assert suggested(texts, golds, odds) == find_threshold(texts, golds, odds) == 0
    scores = squad_v2_scores_of_odds(texts, golds, texts, odds)
    shown = dict(threshold_lines({f"eval_{name}": value for name, value in scores.items()}, "eval"))
    assert scores["best_f1_null_score_diff_threshold"] == -30
    assert shown["best threshold"].startswith("--null_score_diff_threshold 0.0000 (F1 100.00 on these questions, ")
    scores |= {"suggested_null_score_diff_threshold": math.nextafter(-1.23451, -math.inf)}  # refuses -1.23451
    ((_, line),) = threshold_lines({f"eval_{name}": value for name, value in scores.items()}, "eval")
    assert line.startswith("--null_score_diff_threshold -1.2346 (")


def test_odds_that_are_no_number_do_not_become_the_threshold():
    texts, golds = {"a": "x", "b": "y", "c": "z"}, {"a": ["x"], "b": ["y"], "c": []}
    odds = {"a": math.nan, "b": 1.5, "c": 4.5}
    assert suggested(texts, golds, odds) == 1.5
    assert find_threshold(texts, golds, odds) == pytest.approx(3)
    assert find_threshold(texts, golds, odds | {"c": math.inf}) == 0


def test_the_values_are_those_of_the_trained_model_on_the_held_out_questions(tuned, files, tmp_path):
    """As another evaluation of those questions, SciPy, and a loop over many temperatures find them."""
    settings, held = read_settings(tuned), parts_of(files, tune_null_threshold=SHARE)["tuning"]
    write_questions(files / "train.json", tmp_path / "held.json", held)
    run(run_qa, tuned, tmp_path / "scores", *evaluation(tmp_path, "held"))
    golds, odds = golds_of(tmp_path / "held.json"), load(tmp_path / "scores" / "eval_null_odds.json")
    table = read_csv_columns(tmp_path / "scores" / "eval_answers.csv")
    texts = dict(zip(table["id"], table["best_text"]))
    threshold = settings.null_score_diff_threshold
    f1 = [oracle.score_with_threshold(texts, golds, odds, value, oracle.f1_v2) for value in (threshold, 0)]
    assert len(held) == settings.tuned_on and f1[0] > f1[1]
    assert threshold == pytest.approx(fitted_threshold(texts, golds, odds), abs=1e-3)
    loss = temperature_losses(tmp_path / "scores", golds)
    assert loss(settings.temperature) == pytest.approx(min(map(loss, np.geomspace(0.05, 20, 300))), abs=1e-4)


def temperature_losses(folder, golds):
    """Return the function of a temperature that is the log loss of whether the answers of an evaluation are right."""
    texts, nbest = load(folder / "eval_predictions.json"), load(folder / "eval_nbest_predictions.json")

    def loss(temperature: float) -> float:
        logs = []
        for name, rows in nbest.items():
            scores = np.array([row["start_logit"] + row["end_logit"] for row in rows]) / temperature
            shares = np.exp(scores - scores.max())
            place = [row["text"] for row in rows].index(texts[name])
            right = oracle.raw_scores({name: texts[name]}, {name: golds[name]}, oracle.exact_match)[name]
            share = min(max(shares[place] / shares.sum(), 1e-7), 1 - 1e-7)
            logs.append(math.log(share if right else 1 - share))
        return -sum(logs) / len(logs)

    return loss


# When it is used


def answers_of(folder) -> dict:
    return {name: load(folder / f"eval_{name}.json") for name in ("predictions", "nbest_predictions", "null_odds")}


def check_answers(folder, threshold: float, temperature: float) -> None:
    """Check that the answers of an evaluation are chosen by a threshold, and their probabilities by a temperature."""
    found, texts = answers_of(folder), read_csv_columns(folder / "eval_answers.csv")["best_text"]
    for text, (name, odds) in zip(texts, found["null_odds"].items()):
        assert found["predictions"][name] == ("" if odds > threshold else text)
        rows = found["nbest_predictions"][name]
        shares = np.exp([(row["start_logit"] + row["end_logit"]) / temperature for row in rows])
        assert [row["probability"] for row in rows] == pytest.approx(list(shares / shares.sum()), rel=1e-3, abs=1e-6)


def test_the_evaluation_of_the_run_and_later_ones_use_it(tuned, files, tmp_path, caplog, capsys):
    """And the summary shows the best threshold as the flag to paste."""
    settings = read_settings(tuned)
    assert settings.temperature != 1
    check_answers(tuned, settings.null_score_diff_threshold, settings.temperature)
    run(run_qa, tuned, tmp_path, *evaluation(files))
    assert answers_of(tmp_path) == answers_of(tuned)
    results = load(tmp_path / "eval_results.json")
    best, suggested = results["eval_best_f1"], results["eval_suggested_null_score_diff_threshold"]
    shown = re.search(r"\nbest threshold  --null_score_diff_threshold (\S+) \(F1 (\S+) on", capsys.readouterr().out)
    assert float(shown[1]) == pytest.approx(suggested, abs=1.1e-4) and shown[2] == f"{best:.2f}"
    golds, odds = golds_of(files / "dev.json"), answers_of(tmp_path)["null_odds"]
    table = read_csv_columns(tmp_path / "eval_answers.csv")
    tried = sorted([0.0, *odds.values(), *(math.nextafter(value, -math.inf) for value in odds.values())], key=abs)
    texts = dict(zip(table["id"], table["best_text"]))
    f1 = [oracle.score_with_threshold(texts, golds, odds, value, oracle.f1_v2) for value in tried]
    assert suggested == tried[np.argmax(np.array(f1) > max(f1) - 1e-9)]
    (line,) = [line for line in caplog.messages if f"{tuned / SETTINGS_FILE}, tuned on" in line]
    for flag in ("max_seq_length 160", "doc_stride 32", "version_2_with_negative True", "null_score_diff_threshold "):
        assert f"--{flag}" in line


def test_a_flag_comes_before_the_settings(tuned, files, tmp_path, caplog):
    """And a threshold that looks like a probability is questioned."""
    flags = ["--null_score_diff_threshold", 0.5, "--temperature", 1]
    run(run_qa, tuned, tmp_path, *evaluation(files), *flags)
    check_answers(tmp_path, 0.5, 1)
    (line,) = [line for line in caplog.messages if f"{tuned / SETTINGS_FILE}, tuned on" in line]
    assert "--max_seq_length 160" in line and "null_score" not in line and "temperature" not in line
    assert "--null_score_diff_threshold 0.5 is in logits; if it is a probability" in caplog.text


def test_settings_without_tuning_are_not_used_and_damaged_ones_are_reported(tuned, files, tmp_path):
    write_settings(tmp_path, replace(read_settings(tuned), tuned_on=0))
    flags = [
        "--model_name_or_path",
        str(tmp_path),
        "--output_dir",
        "out",
        "--do_eval",
        "--validation_file",
        files / "dev.json",
    ]
    values, problems = read_flags(flags)
    assert use_settings(values) is None and (values.max_seq_length, problems) == (384, [])
    (tmp_path / SETTINGS_FILE).write_text("{")
    with pytest.raises(UserError, match=f"{SETTINGS_FILE} cannot be read .*; restore it, or remove it"):
        run_qa.main(list(map(str, [*flags, "--n_best_size", 20])))


def read_flags(flags: list) -> tuple:
    return read_command_line(list(map(str, flags)), (ModelArguments, DataArguments, training_arguments(False)))


def test_a_run_that_was_killed_before_the_tuning_goes_on_with_it(tuned, tiny_model, files, tmp_path, caplog):
    """Without training again, and with the same values; and a run that has tuned keeps them."""
    settings, folder = read_settings(tuned), tmp_path / "out"
    shutil.copytree(tuned, folder)
    write_settings(folder, replace(settings, null_score_diff_threshold=0.0, temperature=1.0, tuned_on=0))
    (folder / "eval_results.json").write_text("{}")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    for left in ("left to do: tuning, eval;", "left to do: nothing;"):
        caplog.clear()
        run(run_qa, tiny_model, folder, *training(files, *SPAN))
        assert left in caplog.text and read_settings(folder) == settings
        assert answers_of(folder) == answers_of(tuned)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "eval_results.json").unlink()
    caplog.clear()
    run(run_qa, tiny_model, folder, *training(files, *SPAN))
    assert "left to do: eval;" in caplog.text and answers_of(folder) == answers_of(tuned)


def test_a_model_that_writes_is_tuned_too(tiny_writers, files, tmp_path):
    flags = ["--predict_with_generate", "--max_steps", 2, "--max_answer_length", 8, "--max_eval_samples", 8]
    run(run_seq2seq_qa, tiny_writers["t5"], tmp_path / "out", *training(files, *flags))
    settings, odds = read_settings(tmp_path / "out"), load(tmp_path / "out" / "eval_null_odds.json")
    assert (settings.kind, settings.temperature, settings.generation_max_length) == ("written", 1.0, 8)
    texts = load(tmp_path / "out" / "eval_predictions.json")
    assert {name for name, text in texts.items() if not text} >= {
        name for name, value in odds.items() if value > settings.null_score_diff_threshold
    }
    run(
        run_seq2seq_qa,
        tmp_path / "out",
        tmp_path / "scores",
        *evaluation(files),
        "--predict_with_generate",
        "--max_eval_samples",
        8,
    )
    assert answers_of(tmp_path / "scores") == answers_of(tmp_path / "out")


# Thresholds for people


def test_a_threshold_to_paste_has_the_answers_of_the_exact_one():
    for odds in (-1.23456, 0.99999, 12.0, -0.00001):
        pasted = [float(to_paste(odds, up).split()[1]) for up in (True, False)]
        assert pasted[1] <= odds <= pasted[0] and pasted[0] - pasted[1] < 1.1e-4


def test_a_threshold_that_may_be_a_probability_is_questioned(tmp_path):
    results = {"eval_best_f1": 70.0, "eval_best_f1_thresh": 0.6064, "eval_best_f1_null_score_diff_threshold": 0.4321}
    results["eval_suggested_null_score_diff_threshold"] = 0.25
    (tmp_path / "eval_results.json").write_text(json.dumps(results))
    folders = ["bert-base-uncased", str(tmp_path)]
    assert all(doubt(value, folders) is None for value in (0.0, -0.5, 1.01, 3.0, math.inf, math.nan, 0.4321, 0.25))
    assert doubt(0.97, folders).endswith("give its log odds: --null_score_diff_threshold 3.4761")
    assert doubt(1.0, folders).endswith("give suggested_null_score_diff_threshold of the same results")
    line = doubt(0.6064, folders)
    assert f"is the probability eval_best_f1_thresh of {tmp_path / 'eval_results.json'}" in line
    assert line.endswith("in logits give --null_score_diff_threshold 0.4321")
