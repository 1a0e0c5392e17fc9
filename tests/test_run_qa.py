"""The script itself, in process, on a tiny model: files, scores, resuming, and defects of the reference."""

import json
import re
import shlex
import shutil

import corpus
import numpy as np
import oracle
import pytest
import torch
import transformers.trainer_pt_utils
from helpers import (
    CAUSAL_KINDS,
    check_results,
    golds_of,
    history_of,
    learning_flags,
    load,
    read_rows,
    rows_of,
    undescribed_files,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
from transformers.trainer_utils import EvalPrediction

import qa.ask
import run_qa
import utils_qa
from qa.answer_files import read_csv_columns
from qa.device import training_arguments
from qa.errors import TRACEBACKS, UserError
from qa.metrics import load_metric
from qa.reading import flatten_squad
from trainer_qa import QuestionAnsweringTrainer


TRAINED_FILES = {
    "README.md", "all_results.json", "config.json", "eval_answers.csv", "eval_nbest_predictions.json", "eval_predictions.json",
    "eval_report.html", "eval_report.json", "eval_results.json", "model.safetensors", "predict_answers.csv",
    "predict_nbest_predictions.json", "predict_predictions.json", "predict_results.json", "qa_settings.json", "run.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "train_results.json",
    "trainer_state.json", "training_args.bin", "vocab.txt",
}  # fmt: skip


def run(model, output_dir, *flags) -> None:
    settings = ["--max_seq_length", "96", "--doc_stride", "32", "--report_to", "none", "--disable_tqdm", "True"]
    run_qa.main(["--model_name_or_path", str(model), "--output_dir", str(output_dir), *settings, *map(str, flags)])


@pytest.fixture(scope="module")
def trained(tiny_model, squad_files, tmp_path_factory):
    """Return the output of a run that trains 3 epochs with a checkpoint each, evaluates and predicts."""
    folder = tmp_path_factory.mktemp("trained")
    run(tiny_model, folder, *training_flags(squad_files), "--do_eval", "--do_predict", "--validation_file",
        squad_files / "dev.json", "--test_file", squad_files / "dev.json")  # fmt: skip
    return folder


def training_flags(squad_files) -> list:
    return ["--do_train", "--train_file", squad_files / "train.json", "--num_train_epochs", "3", "--save_strategy", "epoch",
            "--learning_rate", "1e-3", "--per_device_train_batch_size", "8", "--logging_steps", "5"]  # fmt: skip


def test_the_files_of_a_run(trained, tmp_path):
    """And the manual describes each; a file that it describes elsewhere alone would be noticed."""
    names = {path.name for path in trained.iterdir()}
    checkpoints = {name for name in names if name.startswith("checkpoint-")}
    assert names - checkpoints == TRAINED_FILES
    assert len(checkpoints) == 3
    assert not undescribed_files(trained)
    (tmp_path / "checkpoint-7").mkdir()
    for name in ("optimizer.pt", "eval_results.json"):
        (tmp_path / name).touch()
        (tmp_path / "checkpoint-7" / name).touch()
    assert sorted(undescribed_files(tmp_path)) == ["checkpoint-7/eval_results.json", "optimizer.pt"]


def test_the_results_of_a_run(trained, squad_files):
    """Defect 2, in part: the reference never reports eval_loss."""
    check_results(trained, golds_of(squad_files / "dev.json"))
    results = load(trained / "predict_results.json")
    train_results = load(trained / "train_results.json")
    assert {"train_loss", "train_runtime", "train_samples", "train_samples_per_second"} <= train_results.keys()
    assert load(trained / "all_results.json").keys() >= results.keys() | train_results.keys()


def test_the_tables_and_the_report_of_a_run(trained, squad_files):
    golds = golds_of(squad_files / "dev.json")
    for stage, prefix in (("eval", "eval"), ("predict", "test")):
        columns, results = read_csv_columns(trained / f"{stage}_answers.csv"), load(trained / f"{stage}_results.json")
        assert dict(zip(columns["id"], columns["predicted"])) == load(trained / f"{stage}_predictions.json")
        assert columns["gold"] == [" | ".join(dict.fromkeys(texts)) for texts in golds.values()]
        for name in ("exact_match", "f1"):
            assert np.mean(columns[name]) == pytest.approx(results[f"{prefix}_{name}"])
        assert columns["row"] == list(range(1, len(golds) + 1)) and max(columns["windows"]) > 1
        for place in range(len(golds)):
            start, end, first = (columns[name][place] for name in ("start", "end", "context_start"))
            assert columns["context"][place][start - first : end - first] == columns["predicted"][place]
    report, state = load(trained / "eval_report.json"), load(trained / "trainer_state.json")
    assert [part["value"] for part in report["scores"]] == pytest.approx(
        [load(trained / "eval_results.json")[f"eval_{name}"] for name in ("exact_match", "f1")]
    )
    assert report["training"]["loss"] == [
        [entry["step"], entry["loss"]] for entry in state["log_history"] if "loss" in entry
    ]
    measured = {part["name"]: part["measured"] for part in report["speed"]}
    assert 0 < measured["eval_padding_share"] < 1 and 0.1 < measured["host_memory"] < 100
    assert measured["train_padding_share"] == load(trained / "train_results.json")["train_padding_share"]
    assert report["run"]["questions"] == "dev.json" and len(report["worst"]) == min(50, len(golds))


def test_the_card_of_a_run(trained, tmp_path, monkeypatch, capsys):
    """Its scores are those of the run, and its two ways to ask the model work."""
    text, results = (trained / "README.md").read_text(), load(trained / "eval_results.json")
    scores = {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}
    assert scores == pytest.approx({name: results[f"eval_{name}"] for name in ("exact_match", "f1")}, abs=1e-4)
    assert str(trained.parent) not in text and "| hardware | `1 x " in text
    (block,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    (tmp_path / trained.name).symlink_to(trained)
    (tmp_path / "text.txt").write_text("The Nile passes Cairo.")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    (command,) = re.findall(r"python -m qa\.ask (.*)", text)
    qa.ask.main(shlex.split(command))
    assert "Your question?" in capsys.readouterr().out


def test_training_learns_something(trained):
    losses = [entry["loss"] for entry in load(trained / "trainer_state.json")["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3


def test_training_arguments_can_be_loaded_again(trained):
    arguments = torch.load(trained / "training_args.bin", weights_only=False)
    assert arguments.num_train_epochs == 3


def test_a_stopped_run_resumes_to_the_same_weights(tiny_model, squad_files, trained, tmp_path):
    """Also defect 14: the newest checkpoint was being written when the run died, and must not be taken."""
    steps = sorted(int(path.name.split("-")[1]) for path in trained.glob("checkpoint-*"))
    shutil.copytree(trained / f"checkpoint-{steps[0]}", tmp_path / f"checkpoint-{steps[0]}")
    shutil.copytree(trained / f"checkpoint-{steps[1]}", tmp_path / f"checkpoint-{steps[1]}")
    (tmp_path / f"checkpoint-{steps[1]}" / "trainer_state.json").unlink()
    run(tiny_model, tmp_path, *training_flags(squad_files))
    expected, found = load_file(trained / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_folder_with_other_files_is_left_alone(tiny_model, squad_files, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files but no complete checkpoint.*--overwrite_output_dir"):
        run(tiny_model, tmp_path, *training_flags(squad_files))
    with pytest.raises(UserError, match="--resume_from_checkpoint .* not a complete checkpoint"):
        run(tiny_model, tmp_path, *training_flags(squad_files), "--resume_from_checkpoint", tmp_path / "gone")


def test_the_best_checkpoint_by_f1_is_kept(tiny_model, squad_files, tmp_path):
    run(tiny_model, tmp_path, *training_flags(squad_files), "--validation_file", squad_files / "dev.json", "--do_eval",
        "--eval_strategy", "epoch", "--load_best_model_at_end", "--metric_for_best_model", "f1")  # fmt: skip
    history = [
        entry["eval_f1"] for entry in load(tmp_path / "trainer_state.json")["log_history"] if "eval_f1" in entry
    ]
    assert load(tmp_path / "eval_results.json")["eval_f1"] == pytest.approx(max(history[:3]))


def test_save_strategy_best(trained, squad_files, tmp_path):
    """transformers 4.55.4 alone saves the last model as the best one. Here the learning rate rises until all is lost."""
    flags = ["--do_train", "--train_file", squad_files / "train.json", "--do_eval", "--validation_file", squad_files / "dev.json",
             "--eval_strategy", "steps", "--eval_steps", "1", "--max_steps", "3", "--learning_rate", "20", "--warmup_steps", "3",
             "--save_strategy", "best", "--metric_for_best_model", "loss", "--load_best_model_at_end"]  # fmt: skip
    run(trained, tmp_path, *flags)
    state, losses = load(tmp_path / "trainer_state.json"), history_of(tmp_path, "eval_loss")
    assert losses[0] < losses[2] and losses[0] == state["best_metric"]
    assert load(tmp_path / "eval_results.json")["eval_loss"] == pytest.approx(losses[0])
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")


def test_capped_samples_keep_all_their_windows(tiny_model, squad_files, tmp_path):
    """Defect 3: the reference caps the examples and then the windows again; here contexts have several windows."""
    flags = ["--validation_file", squad_files / "dev.json", "--test_file", squad_files / "dev.json", "--max_seq_length", "40",
             "--doc_stride", "8"]  # fmt: skip
    run(tiny_model, tmp_path / "all", "--do_eval", "--eval_report", "False", *flags)
    assert not list((tmp_path / "all").glob("eval_report*")) and (tmp_path / "all" / "eval_answers.csv").exists()
    run(
        tiny_model,
        tmp_path / "some",
        "--do_eval",
        "--do_predict",
        "--max_eval_samples",
        7,
        "--max_predict_samples",
        10**6,
        *flags,
    )
    every, some = (load(tmp_path / name / "eval_predictions.json") for name in ("all", "some"))
    assert some == dict(list(every.items())[:7])
    assert load(tmp_path / "some" / "predict_predictions.json") == every
    dev = golds_of(squad_files / "dev.json")
    assert load(tmp_path / "some" / "eval_results.json")["eval_exact_match"] == pytest.approx(
        oracle.squad_v1(some, {name: dev[name] for name in some})["exact_match"]
    )


def test_questions_without_an_answer(trained, negatives, tmp_path, monkeypatch, caplog):
    """Defect 6: the reference's no-answer probabilities are all 0, so the best thresholds mean nothing."""
    flags = ["--version_2_with_negative", "--do_eval", "--validation_file", negatives]
    run(trained, tmp_path, *flags)
    assert not undescribed_files(tmp_path)
    odds, texts = load(tmp_path / "eval_null_odds.json"), load(tmp_path / "eval_predictions.json")
    assert all((text == "") == (odds[name] > 0) for name, text in texts.items())
    golds, results = golds_of(negatives), load(tmp_path / "eval_results.json")
    probabilities = {name: 1 / (1 + np.exp(-value)) for name, value in odds.items()}
    scores = oracle.squad_v2(texts, golds, dict.fromkeys(texts, 0.0))
    thresholded = {name: value for name, value in scores.items() if "best" not in name}
    assert {name: results[f"eval_{name}"] for name in thresholded} == pytest.approx(thresholded)
    nbest = load(tmp_path / "eval_nbest_predictions.json")
    best_texts = {name: next(row["text"] for row in rows if row["text"]) for name, rows in nbest.items()}
    best = oracle.squad_v2(best_texts, golds, probabilities)
    assert {name: results[f"eval_{name}"] for name in best if "best" in name} == pytest.approx(
        {name: value for name, value in best.items() if "best" in name}
    )
    # The promise of the best threshold is kept when a run uses it. A defect of the report costs it no scores.
    monkeypatch.setattr("qa.report.with_intervals", lambda parts: 1 / 0)
    monkeypatch.setitem(TRACEBACKS, "shown", True)
    threshold = results["eval_best_f1_null_score_diff_threshold"]
    run(trained, tmp_path / "best", *flags, f"--null_score_diff_threshold={threshold}")
    assert load(tmp_path / "best" / "eval_results.json")["eval_f1"] == pytest.approx(results["eval_best_f1"])
    assert "There is no report: ZeroDivisionError" in caplog.text and "Traceback" in caplog.text
    assert not list((tmp_path / "best").glob("eval_report.*"))


def write_lines(path, rows: list[dict]):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_questions_that_have_no_answer_alone(tiny_model, tmp_path):
    """They train the no-answer position and are scored; the row without a question is counted in all results."""
    rows = [{"id": str(n), "context": "The Nile flows north.", "question": f"Who swims {'far ' * n}?", "answers": None}
            | {"is_impossible": True} for n in range(4)]  # fmt: skip
    path = write_lines(tmp_path / "rows.jsonl", [*rows, rows[0] | {"question": ""}])
    flags = ["--version_2_with_negative", "--on_bad_rows", "skip", "--train_file", path, "--validation_file", path]
    flags += ["--do_train", "--do_eval", "--num_train_epochs", "30", "--learning_rate", "1e-2"]
    run(tiny_model, tmp_path / "out", *flags)
    results = load(tmp_path / "out" / "all_results.json")
    texts = load(tmp_path / "out" / "eval_predictions.json")
    scores = oracle.squad_v2(texts, {row["id"]: [] for row in rows}, dict.fromkeys(texts, 0.0))
    assert scores["NoAns_total"] == 4 and scores["exact"] > 0
    scores = {f"eval_{name}": value for name, value in scores.items() if "best" not in name}
    assert {name: results.get(name) for name in scores} == pytest.approx(scores)
    assert not any("HasAns" in name for name in results)
    assert results["train_skipped_rows"] == results["eval_skipped_rows"] == 1
    assert results["train_samples"] == results["eval_samples"] == 4 and results["eval_loss"] < 1


def test_every_question_is_scored_and_those_with_a_known_place_count_in_the_loss(trained, squad_files, tmp_path):
    """Paraphrases among the rows, whole batches of them: the same loss as without them, and scores of all."""
    placed = flatten_squad(load(squad_files / "dev.json")["data"])[:6]
    unplaced = [row | {"id": f"p{n}", "answers": "no words of it"} for n, row in enumerate(placed * 3)]
    mixed = unplaced[:2] + placed[:3] + unplaced[2:15] + placed[3:] + unplaced[15:]
    flags = ["--do_eval", "--per_device_eval_batch_size", "4", "--validation_file"]
    run(trained, tmp_path / "placed", *flags, write_lines(tmp_path / "placed.jsonl", placed))
    run(trained, tmp_path / "mixed", *flags, write_lines(tmp_path / "mixed.jsonl", mixed))
    alone, together = (load(tmp_path / name / "eval_results.json") for name in ("placed", "mixed"))
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    golds = {row["id"]: [answer["text"] for answer in row["answers"]] for row in placed}
    golds |= {row["id"]: [row["answers"]] for row in unplaced}
    scores = oracle.squad_v1(load(tmp_path / "mixed" / "eval_predictions.json"), golds)
    assert {name: together[f"eval_{name}"] for name in scores} == pytest.approx(scores)


def test_impossible_questions_are_scored_by_their_answers(trained, squad_files, tmp_path):
    """As the official evaluator does; they are trained, and count in the loss, as questions without an answer."""
    rows = flatten_squad(load(squad_files / "dev.json")["data"])[:8]
    impossible = [row | {"is_impossible": True} for row in rows]
    flags = ["--do_eval", "--version_2_with_negative", "--validation_file"]
    run(trained, tmp_path / "marked", *flags, write_lines(tmp_path / "marked.jsonl", impossible))
    run(trained, tmp_path / "empty", *flags,
        write_lines(tmp_path / "empty.jsonl", [row | {"answers": []} for row in rows]))  # fmt: skip
    run(trained, tmp_path / "answered", *flags, write_lines(tmp_path / "answered.jsonl", rows))
    marked, empty, answered = (load(tmp_path / name / "eval_results.json") for name in ("marked", "empty", "answered"))
    assert marked["eval_HasAns_total"] == 8 and marked["eval_f1"] == answered["eval_f1"]
    assert marked["eval_loss"] == pytest.approx(empty["eval_loss"]) and marked["eval_loss"] != answered["eval_loss"]


def test_a_held_out_part_is_evaluated_after_a_run_as_during_it(tiny_model, squad_files, tmp_path):
    flags = ["--train_file", squad_files / "train.json", "--validation_split", "0.25", "--do_eval"]
    run(tiny_model, tmp_path / "out", *flags, "--do_train", "--num_train_epochs", "1")
    run(tmp_path / "out", tmp_path / "later", *flags)
    during, later = (load(tmp_path / name / "eval_predictions.json") for name in ("out", "later"))
    assert during == later and 0 < len(during) < 32


def test_a_threshold_beyond_the_sigmoid_counts_alike_in_files_and_scores(trained, negatives, tmp_path):
    """The sigmoids of 37 logits and of all above are 1.0: the metric scored texts that the files left empty."""
    weights = load_file(trained / "model.safetensors")
    weights = {name: value * 40 if name.startswith("qa_outputs") else value for name, value in weights.items()}
    shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    flags = ["--version_2_with_negative", "--do_eval", "--validation_file", negatives]
    run(tmp_path / "model", tmp_path / "out", *flags, "--null_score_diff_threshold=40")
    odds, texts = (load(tmp_path / "out" / f"eval_{name}.json") for name in ("null_odds", "predictions"))
    assert min(odds.values()) < 37 and sum(value > 40 for value in odds.values()) > 3
    scores = oracle.squad_v2(texts, golds_of(negatives), dict.fromkeys(texts, 0.0))
    results = load(tmp_path / "out" / "eval_results.json")
    assert results["eval_exact"] == pytest.approx(scores["exact"])
    assert results["eval_NoAns_f1"] == pytest.approx(scores["NoAns_f1"])


def test_scores_of_a_language(trained, squad_files, tmp_path, caplog):
    """They come on top, and a language that cannot be found ends the run before anything slow."""
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json"]
    run(trained, tmp_path / "out", *flags, "--answer_language", "auto")
    assert "--answer_language auto: the contexts are in en" in caplog.text
    results, texts = (load(tmp_path / "out" / f"eval_{name}.json") for name in ("results", "predictions"))
    for name, value in oracle.mlqa(texts, golds_of(squad_files / "dev.json"), "en").items():
        assert results[f"eval_{name}"] == pytest.approx(value)
    assert results["eval_f1"] == load(trained / "eval_results.json")["eval_f1"]
    row = {"context": "Nil", "question": "?", "answers": {"text": ["Nil"], "answer_start": [0]}}
    (tmp_path / "nil.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match="--answer_language auto: the contexts are in none of en, es, hi"):
        run(
            "no-such-model",
            tmp_path,
            "--do_eval",
            "--validation_file",
            tmp_path / "nil.json",
            "--answer_language",
            "auto",
        )


def test_the_best_score_of_questions_that_are_not_there(squad_files, tmp_path):
    """A KeyError at the first evaluation during training."""
    flags = ["--version_2_with_negative", "--do_train", "--train_file", squad_files / "train.json", "--eval_strategy", "epoch",
             "--validation_file", squad_files / "dev.json", "--metric_for_best_model", "NoAns_f1"]  # fmt: skip
    with pytest.raises(UserError, match="NoAns_f1: every validation question has an answer; use exact or f1"):
        run("no-such-model", tmp_path, *flags)


def test_functions_of_the_references_script_are_called_as_there(trained, squad_files, tmp_path, monkeypatch):
    """Users build the trainer with their own `post_process_function` and `compute_metrics`."""
    rows = read_rows(squad_files / "dev.json")
    tokenizer = AutoTokenizer.from_pretrained(trained)
    metric = load_metric()

    def post_processing(examples, features, predictions, stage="eval"):
        texts = utils_qa.postprocess_qa_predictions(
            examples, features, predictions, n_best_size=20, max_answer_length=30, output_dir=tmp_path, prefix=stage
        )
        predictions = [{"id": name, "prediction_text": text} for name, text in texts.items()]
        references = [{"id": example["id"], "answers": example["answers"]} for example in examples]
        return EvalPrediction(predictions=predictions, label_ids=references)

    arguments = {"report_to": "none", "disable_tqdm": True, "include_for_metrics": ["inputs", "loss"]}
    trainer = QuestionAnsweringTrainer(
        model=AutoModelForQuestionAnswering.from_pretrained(trained),
        args=training_arguments(False)(output_dir=str(tmp_path), **arguments),
        eval_dataset=utils_qa.prepare_features(rows, tokenizer, 96, 32),
        eval_examples=rows,
        processing_class=tokenizer,
        data_collator=utils_qa.PaddingCollator(tokenizer, 96),
        post_process_function=post_processing,
        compute_metrics=lambda p: metric.compute(predictions=p.predictions, references=p.label_ids),
    )
    expected = load(trained / "eval_results.json")
    # The libraries' loops put the outputs of a step together with those of all steps before, and gather them each time.
    monkeypatch.setattr(transformers.trainer_pt_utils, "nested_concat", None)
    monkeypatch.setattr(trainer, "gather_function", None)
    assert trainer.evaluate()["eval_f1"] == pytest.approx(expected["eval_f1"])
    assert load(tmp_path / "eval_predictions.json") == load(trained / "eval_predictions.json")
    predicted = trainer.predict(trainer.eval_dataset, rows)
    assert predicted.metrics["test_f1"] == pytest.approx(expected["eval_f1"])
    assert {row["id"]: row["prediction_text"] for row in predicted.predictions} == load(
        tmp_path / "predict_predictions.json"
    )


def test_predicting_questions_whose_answers_nobody_knows(trained, unknown_answers, tmp_path):
    """Also defect 11: the reference loads its metric from a hub. Here there is none, and none is asked."""
    run(trained, tmp_path / "out", "--do_predict", "--test_file", unknown_answers)
    assert load(tmp_path / "out" / "predict_predictions.json") == load(trained / "predict_predictions.json")
    results = load(tmp_path / "out" / "predict_results.json")
    assert "test_f1" not in results and results["predict_samples"] > 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--pad_to_max_length", "False"],
        ["--group_by_length"],
        ["--use_legacy_prediction_loop"],
        ["--eval_accumulation_steps", "1"],
    ],
)
def test_batching_does_not_change_the_answers(trained, squad_files, tmp_path, flags):
    run(trained, tmp_path, "--do_eval", "--validation_file", squad_files / "dev.json", *flags)
    assert load(tmp_path / "eval_predictions.json") == load(trained / "eval_predictions.json")


@pytest.fixture(scope="module")
def unpadded(tiny_model, squad_files, tmp_path_factory):
    """Return the answers of the model before any training, one window at a time."""
    folder = tmp_path_factory.mktemp("unpadded")
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json", "--max_seq_length", "192"]
    run(tiny_model, folder, *flags, "--pad_to_max_length", "False", "--per_device_eval_batch_size", "1")
    return load(folder / "eval_nbest_predictions.json")


@pytest.mark.parametrize("flags", [["--pad_to_max_length", "True"], ["--length_buckets", "128", "192"]])
def test_answers_do_not_depend_on_padding(tiny_model, unpadded, squad_files, tmp_path, flags):
    """Defect 20: with a model that was not trained, padded positions were among the best starts and ends."""
    flags = [*flags, "--do_eval", "--validation_file", squad_files / "dev.json", "--max_seq_length", "192"]
    run(tiny_model, tmp_path, *flags)
    nbest = load(tmp_path / "eval_nbest_predictions.json")
    texts, expected = (
        {name: [row["text"] for row in rows] for name, rows in part.items()} for part in (nbest, unpadded)
    )
    assert texts == expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_a_causal_model_learns_both_questions_about_a_context(causal_models, two_questions, tmp_path, kind, side):
    """Defect 16: with the context first its tokens never see the question, and both get the same answer."""
    run(causal_models / f"{kind}_{side}", tmp_path, *learning_flags(two_questions / "plain.jsonl"))
    assert load(tmp_path / "eval_results.json")["eval_exact_match"] >= 90


def test_a_causal_model_learns_that_there_is_no_answer(causal_models, two_questions, tmp_path):
    """With a tokenizer that has no special token at the beginning, "no answer" was also the first word's label."""
    flags = [*learning_flags(two_questions / "negatives.jsonl"), "--version_2_with_negative"]
    run(causal_models / "qwen3_left", tmp_path, *flags)
    results = load(tmp_path / "eval_results.json")
    assert (results["eval_HasAns_exact"], results["eval_NoAns_exact"]) == (100, 100)


@pytest.mark.parametrize("kind", ["bert_left", "llama"])
@pytest.mark.parametrize("pad", ["True", "False"])
def test_left_padding_answers_like_no_padding(tokenizers, tmp_path, kind, pad):
    """Logits move with the padding; answers must not. One feature at a time is never padded."""
    from transformers import LlamaConfig, LlamaForQuestionAnswering, set_seed

    tokenizer = tokenizers[kind]
    set_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=64, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    model = LlamaForQuestionAnswering(config).eval()  # rotary positions: padding on the left changes nothing
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    squad = corpus.make_part("dev", 12, seed=3)
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    flags = ["--validation_file", tmp_path / "dev.json", "--max_seq_length", "384", "--pad_to_max_length", pad]
    run(tmp_path / "model", tmp_path / "out", "--do_eval", *flags)
    paragraphs = squad["data"][0]["paragraphs"]
    examples = [(qa["question"], p["context"], None, qa["id"]) for p in paragraphs for qa in p["qas"]]
    rows = rows_of(*([example[part] for example in examples] for part in range(3)))
    rows = [
        row | {"id": example[3], "answers": {"text": [], "answer_start": []}} for row, example in zip(rows, examples)
    ]
    features = utils_qa.prepare_features(rows, tokenizer, 384, 32, causal=True)
    logits = np.zeros((2, len(features), 384), dtype=np.float32)
    for index in range(len(features)):
        ids = torch.from_numpy(features[index]["input_ids"])[None]
        with torch.no_grad():
            output = model(input_ids=ids)
        logits[0, index, : ids.shape[1]], logits[1, index, : ids.shape[1]] = (
            output.start_logits[0].numpy(),
            output.end_logits[0].numpy(),
        )
    logits[:, np.arange(384) >= features.lengths()[:, None]] = -1e4  # lower than any logit of the padding
    alone = oracle.answers(rows, [features.as_dict(index) for index in range(len(features))], tuple(logits))[1]
    together = load(tmp_path / "out" / "eval_nbest_predictions.json")
    for name, best in together.items():
        assert best[0]["text"] == alone[name][0]["text"]
        assert best[0]["start_logit"] == pytest.approx(alone[name][0]["start_logit"], abs=1e-4)


def test_limits_of_the_model_are_reported(tiny_model, squad_files, tmp_path, caplog):
    """Defect 9: windows without room, and windows longer than the model's position table."""
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json"]
    run(tiny_model, tmp_path, *flags, "--max_seq_length", "600", "--max_eval_samples", "2")
    assert "--max_seq_length 600 is more than the model's 512 tokens; using 512" in caplog.text
    with pytest.raises(
        UserError, match="--doc_stride 45 leaves no room in a window of 48 tokens, special tokens included"
    ):
        run(tiny_model, tmp_path, *flags, "--max_seq_length", "48", "--doc_stride", "45")


def test_models_that_cannot_be_loaded_are_reported_in_one_line(squad_files, tmp_path):
    """Also a folder whose name has a model type in it, of which transformers would take the defaults."""
    (tmp_path / "bert").mkdir()
    messages = {
        "no-such-model": "it is neither a folder nor in the cache (",
        tmp_path / "bert": "it has no config.json",
    }
    for name, message in messages.items():
        with pytest.raises(UserError) as caught:
            run(name, tmp_path, "--do_eval", "--validation_file", squad_files / "dev.json")
        (problem,) = caught.value.problems
        assert problem.startswith(f"--model_name_or_path {name}: ") and message in problem and "\n" not in problem


def test_a_tokenizer_of_another_model_is_refused(tiny_model, squad_files, tmp_path):
    """Ids past the end of the embedding matrix would end training in an IndexError, or in garbage on a card."""
    config = load(tiny_model / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 1}))
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json", "--config_name", tmp_path]
    with pytest.raises(UserError, match="tokens, but the model embeds only"):
        run(tiny_model, tmp_path / "out", *flags)
