"""The script of encoder-decoders, in process, on tiny models: files, answers compared with plain `generate`, scores, resuming."""

import json
import shutil

import numpy as np
import oracle
import pytest
import torch
from helpers import ROOT, check_results, golds_of, load, read_rows, undescribed_files
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq
from transformers.models.bart.modeling_bart import BartEncoder
from transformers.models.t5.modeling_t5 import T5Stack
from transformers.trainer_utils import EvalPrediction

import qa.reading
import run_seq2seq_qa
from qa.answer_files import read_csv_columns
from qa.device import training_arguments
from qa.errors import UserError
from qa.seq2seq import prepare_seq2seq_features
from trainer_seq2seq_qa import QuestionAnsweringSeq2SeqTrainer


FILES = {
    "README.md", "all_results.json", "config.json", "eval_answers.csv", "eval_nbest_predictions.json", "eval_predictions.json",
    "eval_report.html", "eval_report.json", "eval_results.json", "generation_config.json", "model.safetensors",
    "predict_answers.csv", "predict_nbest_predictions.json", "predict_predictions.json", "predict_results.json", "run.json", "special_tokens_map.json", "tokenizer.json",
    "qa_settings.json", "tokenizer_config.json", "train_results.json", "trainer_state.json", "training_args.bin",
}  # fmt: skip


def run(model, output_dir, *flags, generate=True) -> None:
    settings = ["--max_seq_length", "256", "--doc_stride", "32", "--report_to", "none", "--disable_tqdm", "True"]
    settings += ["--predict_with_generate"] * generate
    run_seq2seq_qa.main(
        ["--model_name_or_path", str(model), "--output_dir", str(output_dir), *settings, *map(str, flags)]
    )


@pytest.fixture(scope="module")
def writing_models(tiny_writers, squad_files, tmp_path_factory):
    """Output folders of a run of each kind of model: training with two checkpoints, evaluation, prediction."""
    folders = {}
    for kind, model in tiny_writers.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        run(model, folders[kind], *training_flags(squad_files), "--do_eval", "--do_predict", "--validation_file",
            squad_files / "dev.json", "--test_file", squad_files / "dev.json")  # fmt: skip
    return folders


def training_flags(squad_files) -> list:
    return ["--do_train", "--train_file", squad_files / "train.json", "--num_train_epochs", "2", "--save_strategy", "epoch",
            "--learning_rate", "1e-2", "--per_device_train_batch_size", "8", "--logging_steps", "5"]  # fmt: skip


def read_by_itself(model, tokenizer, row: dict) -> dict[str, torch.Tensor]:
    text = f"question: {row['question'].lstrip()} context: {row['context'].lstrip()}"
    return tokenizer(text, return_tensors="pt")


def slow_log_probability(model, encoding: dict, tokens: list[int]) -> float:
    """Token by token: each one's log-probability after those before it."""
    total, before = 0.0, [model.config.decoder_start_token_id]
    for token in tokens:
        with torch.no_grad():
            logits = model(**encoding, decoder_input_ids=torch.tensor([before])).logits[0, -1]
        total += logits.log_softmax(-1)[token].item()
        before.append(token)
    return total


def rows_of_file(path) -> list[dict]:
    return qa.reading.flatten_squad(load(path)["data"])


def test_the_files_of_a_run(writing_models):
    for kind, more in (("t5", set()), ("bart", {"vocab.json", "merges.txt"})):
        names = {path.name for path in writing_models[kind].iterdir()}
        checkpoints = {name for name in names if name.startswith("checkpoint-")}
        assert names - checkpoints == FILES | more and len(checkpoints) == 2
        assert not undescribed_files(writing_models[kind])
        card, results = (
            ModelCard.load(writing_models[kind] / "README.md"),
            load(writing_models[kind] / "eval_results.json"),
        )
        assert card.data.eval_results[1].metric_value == pytest.approx(results["eval_f1"], abs=1e-4)
        assert "This model writes the answer to a question" in card.text and "```python" not in card.text


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_results_of_a_run(writing_models, squad_files, kind):
    folder = writing_models[kind]
    check_results(folder, golds_of(squad_files / "dev.json"))
    losses = [entry["loss"] for entry in load(folder / "trainer_state.json")["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    columns, scores = read_csv_columns(folder / "eval_answers.csv"), load(folder / "eval_report.json")["scores"]
    assert all(0 < probability <= 1 for probability in columns["probability"])
    assert [part["value"] for part in scores] == pytest.approx(
        [np.mean(columns["exact_match"]), np.mean(columns["f1"])]
    )


@pytest.fixture
def encoded():
    """Return the encoders that have read a batch during a test, one for each batch."""
    calls = []

    def note(module, inputs):
        encodes = isinstance(module, BartEncoder) or (isinstance(module, T5Stack) and not module.is_decoder)
        if encodes and type(module.embed_tokens.weight) is torch.nn.Parameter:  # the checks of a run have no weights
            calls.append(module)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield calls
    hook.remove()


@pytest.mark.parametrize("kind, beams", [("t5", 1), ("t5", 3), ("bart", 1), ("bart", 3)])
def test_short_contexts_are_answered_as_by_plain_generate(
    tiny_writers, squad_files, unknown_answers, tmp_path, encoded, kind, beams
):
    """In prediction too, whichever runs first: optimum-habana's predict alone knows neither beams nor length.

    Answers may be unknown, and a batch is encoded once.
    """
    flags = [
        "--do_predict",
        "--test_file",
        unknown_answers if beams == 1 else squad_files / "dev.json",
        "--num_beams",
        beams,
        "--val_max_answer_length",
        7,
    ]
    run(tiny_writers[kind], tmp_path, *flags, "--pad_to_max_length", str(beams == 1))
    assert len(encoded) == -(-load(tmp_path / "predict_results.json")["predict_samples"] // 8)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_writers[kind]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_writers[kind])
    found, nbest = load(tmp_path / "predict_predictions.json"), load(tmp_path / "predict_nbest_predictions.json")
    assert len(set(found.values())) > 3
    for row in rows_of_file(squad_files / "dev.json"):
        encoding = read_by_itself(model, tokenizer, row)
        (tokens,) = model.generate(**encoding, num_beams=beams, max_length=7)
        assert found[row["id"]] == tokenizer.decode(tokens, skip_special_tokens=True)
        ((score,),) = [[entry["score"] for entry in nbest[row["id"]]]]
        assert score == pytest.approx(slow_log_probability(model, encoding, tokens[1:].tolist()), abs=1e-3)


def test_the_trainer_is_called_as_the_references(tiny_writers, squad_files, tmp_path):
    """With its collator, without a length in the arguments, and with length and beams of a call."""
    rows, model = read_rows(squad_files / "dev.json"), AutoModelForSeq2SeqLM.from_pretrained(tiny_writers["t5"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_writers["t5"])
    written, collator = [], DataCollatorForSeq2Seq(tokenizer, model=model)

    def post_processing(examples, features, outputs, stage="eval"):
        written.append(tokenizer.batch_decode(outputs[0], skip_special_tokens=True))
        return EvalPrediction(predictions=written[-1], label_ids=None)

    def without_labels(items):
        batch = collator(items)
        if len(items) == 8:
            batch["labels"].fill_(-100)
        return batch

    args = training_arguments(True)(str(tmp_path), predict_with_generate=True, report_to="none", disable_tqdm=True)
    features = prepare_seq2seq_features(rows, tokenizer, 256, 32, 30)
    assert features.row.tolist() == list(range(len(rows))) and len(rows) % 8
    data = {"eval_dataset": features, "eval_examples": rows}
    trainer = QuestionAnsweringSeq2SeqTrainer(
        model, args, collator, processing_class=tokenizer, post_process_function=post_processing, **data
    )
    model.generation_config.max_length = 9
    losses = [trainer.evaluate(max_length=7, num_beams=3, metric_key_prefix="eval")["eval_loss"]]
    losses.append(trainer.predict(features, rows, max_length=7, num_beams=3).metrics["test_loss"])
    trainer.data_collator = without_labels  # without a token that counts, the loss of a batch is NaN
    losses.append(trainer.evaluate()["eval_loss"])
    for found, settings in zip(written, ({"max_length": 7, "num_beams": 3}, {"max_length": 7, "num_beams": 3}, {})):
        for row, text in zip(rows, found, strict=True):
            (tokens,) = model.generate(**read_by_itself(model, tokenizer, row), **settings)
            assert text == tokenizer.decode(tokens, skip_special_tokens=True)
    last = collator([features[index] for index in range(len(rows) // 8 * 8, len(rows))])
    with torch.no_grad():
        assert losses[2] == pytest.approx(model(**last).loss.item(), rel=1e-5)
    assert losses[0] == losses[1] and type(losses[0]) is float


def test_evaluation_and_prediction_write_alike(writing_models, squad_files, tmp_path):
    """Of every window, in any batches; --generation_max_length and --generation_num_beams too."""
    files = ["--validation_file", squad_files / "dev.json", "--test_file", squad_files / "dev.json"]
    flags = [*files, "--generation_max_length", 5, "--generation_num_beams", 2, "--max_seq_length", 64]
    run(writing_models["t5"], tmp_path / "both", "--do_eval", "--do_predict", *flags)
    first = load(tmp_path / "both" / "eval_nbest_predictions.json")
    assert load(tmp_path / "both" / "predict_nbest_predictions.json") == first
    assert max(map(len, first.values())) > 1
    others = [["--pad_to_max_length", "False", "--group_by_length"], ["--use_legacy_prediction_loop"]]
    others += [["--eval_accumulation_steps", "1", "--per_device_eval_batch_size", "3"]]
    others += [["--generation_max_length", 9, "--generation_num_beams", 1]]
    for number, other in enumerate(others):
        run(writing_models["t5"], tmp_path / str(number), "--do_eval", *flags, *other)
        same = load(tmp_path / str(number) / "eval_predictions.json") == load(
            tmp_path / "both" / "eval_predictions.json"
        )
        assert same == (number < 3)


def test_without_generating_the_missing_scores_are_reported(writing_models, squad_files, tmp_path, caplog):
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json"]
    run(writing_models["t5"], tmp_path, *flags, generate=False)
    assert "Without --predict_with_generate no answers are written" in caplog.text
    results = load(tmp_path / "eval_results.json")
    assert results["eval_loss"] == pytest.approx(load(writing_models["t5"] / "eval_results.json")["eval_loss"])
    assert "eval_f1" not in results and not (tmp_path / "eval_predictions.json").exists()
    best = ["--metric_for_best_model", "f1", "--load_best_model_at_end", "--eval_strategy", "epoch"]
    with pytest.raises(
        UserError, match="--metric_for_best_model f1 needs written answers; add --predict_with_generate"
    ):
        run(writing_models["t5"], tmp_path / "x", *flags, *training_flags(squad_files), *best, generate=False)


@pytest.fixture(scope="module")
def trained_on_negatives(tiny_writers, negatives, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained_on_negatives")
    flags = ["--do_train", "--train_file", negatives, "--learning_rate", "1e-2", "--version_2_with_negative"]
    run(tiny_writers["bart"], folder, *flags, "--max_seq_length", "64", generate=False)
    return folder


def test_questions_without_an_answer(trained_on_negatives, negatives, tmp_path, encoded):
    """Defect 6 for this script: null odds and probabilities are real, and the threshold counts as in run_qa.py."""
    flags = ["--version_2_with_negative", "--do_eval", "--validation_file", negatives, "--max_answer_length", 6]
    flags += ["--max_seq_length", "64"]
    run(trained_on_negatives, tmp_path / "0", *flags)
    assert len(encoded) == -(-load(tmp_path / "0" / "eval_results.json")["eval_samples"] // 8)
    folder, golds = tmp_path / "0", golds_of(negatives)
    odds, texts, nbest = (
        load(folder / f"eval_{name}.json") for name in ("null_odds", "predictions", "nbest_predictions")
    )
    results = load(folder / "eval_results.json")
    assert max(map(len, nbest.values())) > 1 and len({row["window"] for row in nbest[next(iter(nbest))]}) > 1
    assert odds == pytest.approx({name: min(r["null_score"] for r in rows) - max(r["score"] for r in rows if r["text"].strip())
                                  for name, rows in nbest.items() if any(r["text"].strip() for r in rows)}, abs=1e-5)  # fmt: skip
    middle = float(np.median(list(odds.values())))
    for number, threshold in enumerate((middle, 1e9, -1e9), 1):
        run(trained_on_negatives, tmp_path / str(number), *flags, f"--null_score_diff_threshold={threshold}")
        texts = load(tmp_path / str(number) / "eval_predictions.json")
        assert {name: not text for name, text in texts.items()} == {
            name: value > threshold for name, value in odds.items()
        }
        found = load(tmp_path / str(number) / "eval_results.json")
        scores = oracle.squad_v2(texts, golds, dict.fromkeys(texts, 0.0))
        plain = {f"eval_{name}": value for name, value in scores.items() if "best" not in name}
        assert {name: found[name] for name in plain} == pytest.approx(plain)
        assert found["eval_best_f1"] == results["eval_best_f1"]
    assert {"eval_HasAns_f1", "eval_NoAns_f1"} <= results.keys()


def test_questions_that_have_no_answer_alone(tiny_writers, tmp_path):
    """They train the empty text and are scored."""
    row = {
        "context": "The Nile flows north.",
        "question": "Who swims?",
        "answers": {"text": [""], "answer_start": [0]},
    }
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row | {"id": str(n)}) for n in range(4)]))
    flags = ["--do_train", "--do_eval", "--train_file", tmp_path / "rows.jsonl", "--version_2_with_negative"]
    flags += ["--validation_file", tmp_path / "rows.jsonl", "--num_train_epochs", "9", "--learning_rate", "1e-2"]
    run(tiny_writers["bart"], tmp_path / "out", *flags)
    results = load(tmp_path / "out" / "eval_results.json")
    texts = load(tmp_path / "out" / "eval_predictions.json")
    scores = oracle.squad_v2(texts, dict.fromkeys(texts, []), dict.fromkeys(texts, 0.0))
    plain = {f"eval_{name}": value for name, value in scores.items() if "best" not in name}
    assert {name: results.get(name) for name in plain} == pytest.approx(plain)
    assert results["eval_NoAns_total"] == 4 and "eval_HasAns_total" not in results and results["eval_loss"] < 1


def test_questions_that_no_window_answers_are_counted_in_the_results(tiny_writers, tmp_path):
    context = "the river of the city was built " * 20
    answers = [{"text": [context.strip()], "answer_start": [0]}, {"text": ["the river"], "answer_start": [0]}]
    rows = [{"context": context, "question": "what was built?", "answers": answer} for answer in answers]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    flags = ["--do_train", "--train_file", tmp_path / "train.json", "--max_steps", 1, "--save_strategy", "no"]
    run(tiny_writers["t5"], tmp_path / "out", *flags, "--max_seq_length", 64, "--doc_stride", 16)
    assert load(tmp_path / "out" / "train_results.json")["train_questions_without_window"] == 1


def test_the_scores_are_log_probabilities(trained_on_negatives, negatives, tmp_path):
    """Of the text and of the empty answer, against the model asked token by token, one window at a time."""
    flags = ["--version_2_with_negative", "--do_eval", "--validation_file", negatives, "--max_eval_samples", 4]
    run(trained_on_negatives, tmp_path, *flags)
    model = AutoModelForSeq2SeqLM.from_pretrained(trained_on_negatives).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_on_negatives)
    nbest = load(tmp_path / "eval_nbest_predictions.json")
    empty = tokenizer("")["input_ids"]
    for row in rows_of_file(negatives)[:4]:
        encoding = read_by_itself(model, tokenizer, row)
        (entry,) = nbest[row["id"]]
        assert entry["null_score"] == pytest.approx(slow_log_probability(model, encoding, empty), abs=1e-4)
        (tokens,) = model.generate(**encoding, max_length=30, min_new_tokens=len(empty))
        assert entry["text"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert entry["score"] == pytest.approx(slow_log_probability(model, encoding, tokens[1:].tolist()), abs=1e-4)


def test_capped_samples_keep_all_their_windows(writing_models, squad_files, tmp_path):
    """Defect 3: the reference's script of this kind raises a KeyError."""
    flags = [
        "--validation_file",
        squad_files / "dev.json",
        "--test_file",
        squad_files / "dev.json",
        "--max_seq_length",
        "48",
    ]
    run(writing_models["t5"], tmp_path / "all", "--do_eval", *flags, "--doc_stride", "8")
    run(writing_models["t5"], tmp_path / "some", "--do_eval", "--do_predict", "--max_eval_samples", 7,
        "--max_predict_samples", 10**6, *flags, "--doc_stride", "8")  # fmt: skip
    every, some = (load(tmp_path / name / "eval_nbest_predictions.json") for name in ("all", "some"))
    assert some == dict(list(every.items())[:7]) and len(some[next(iter(some))]) > 1
    assert load(tmp_path / "some" / "predict_nbest_predictions.json") == every


def test_predicting_questions_whose_answers_nobody_knows(writing_models, unknown_answers, tmp_path):
    run(writing_models["t5"], tmp_path / "out", "--do_predict", "--test_file", unknown_answers)
    assert load(tmp_path / "out" / "predict_predictions.json") == load(
        writing_models["t5"] / "predict_predictions.json"
    )
    results = load(tmp_path / "out" / "predict_results.json")
    assert "test_f1" not in results and "test_loss" not in results and results["predict_samples"] > 0
    for more, generate, advice in (
        ([], False, "add --predict_with_generate"),
        (["--prediction_loss_only"], True, "omit --prediction_loss_only"),
    ):
        flags = ["--do_predict", "--test_file", unknown_answers, *more]
        with pytest.raises(UserError, match=f"--do_predict has nothing to compute: .*; {advice}"):
            run(writing_models["t5"], tmp_path / "x", *flags, generate=generate)


def test_a_stopped_run_resumes_to_the_same_weights(tiny_writers, squad_files, writing_models, tmp_path):
    steps = sorted(int(path.name.split("-")[1]) for path in writing_models["t5"].glob("checkpoint-*"))
    shutil.copytree(writing_models["t5"] / f"checkpoint-{steps[0]}", tmp_path / f"checkpoint-{steps[0]}")
    run(tiny_writers["t5"], tmp_path, *training_flags(squad_files), generate=False)
    expected, found = (load_file(folder / "model.safetensors") for folder in (writing_models["t5"], tmp_path))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [load(folder / "train_results.json")["train_loss"] for folder in (writing_models["t5"], tmp_path)]
    assert losses[0] == losses[1]


def test_the_best_checkpoint_by_f1_is_kept(tiny_writers, tmp_path):
    """Also with label smoothing, for which the trainer takes the labels away from the model."""
    row = {"context": "The Nile flows through Egypt.", "question": "Where does it flow?", "answers": "Egypt"}
    (tmp_path / "nile.jsonl").write_text("\n".join([json.dumps(row)] * 16))
    run(tiny_writers["t5"], tmp_path / "out", "--do_train", "--do_eval", "--train_file", tmp_path / "nile.jsonl",
        "--validation_file", tmp_path / "nile.jsonl", "--eval_strategy", "steps", "--eval_steps", "60", "--save_steps",
        "60", "--load_best_model_at_end", "--metric_for_best_model", "f1", "--label_smoothing_factor", "0.1",
        "--learning_rate", "3e-3", "--max_steps", "240", "--lr_scheduler_type", "constant", "--seed", "1")  # fmt: skip
    history = load(tmp_path / "out" / "trainer_state.json")["log_history"]
    scores = [entry["eval_f1"] for entry in history if "eval_f1" in entry]
    assert load(tmp_path / "out" / "eval_results.json")["eval_f1"] == max(scores) == 100 and min(scores) == 0


@pytest.mark.parametrize("ignore", ["True", "False"])
def test_padding_counts_in_the_loss_when_asked(writing_models, squad_files, tmp_path, ignore):
    flags = [
        "--do_eval",
        "--validation_file",
        squad_files / "dev.json",
        "--max_eval_samples",
        6,
        "--max_answer_length",
        20,
    ]
    run(writing_models["bart"], tmp_path, *flags, "--ignore_pad_token_for_loss", ignore, generate=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(writing_models["bart"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(writing_models["bart"])
    counted, total = 0, 0.0
    for row in rows_of_file(squad_files / "dev.json")[:6]:
        labels = tokenizer(row["answers"][0]["text"])["input_ids"]
        padded = labels + [tokenizer.pad_token_id] * (20 - len(labels) if ignore == "False" else 0)
        with torch.no_grad():
            loss = model(**read_by_itself(model, tokenizer, row), labels=torch.tensor([padded])).loss.item()
        total, counted = total + loss * len(padded), counted + len(padded)
    assert load(tmp_path / "eval_results.json")["eval_loss"] == pytest.approx(total / counted, rel=1e-4)


def test_models_that_do_not_write_are_refused(tiny_model, writing_models, squad_files, tmp_path, caplog):
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json"]
    with pytest.raises(UserError, match="a bert model that is not an encoder-decoder cannot write answers.*run_qa.py"):
        run(tiny_model, tmp_path, *flags)
    shutil.copytree(writing_models["t5"], tmp_path / "t5", ignore=shutil.ignore_patterns("checkpoint-*"))
    for name in ("config.json", "generation_config.json"):
        settings = load(tmp_path / "t5" / name)
        del settings["decoder_start_token_id"]
        (tmp_path / "t5" / name).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="a t5 model that has no decoder_start_token_id"):
        run(tmp_path / "t5", tmp_path / "x", *flags, "--use_fast_tokenizer", "False")
    assert "--use_fast_tokenizer False has no effect" in caplog.text


def test_check_only_checks(tiny_writers, squad_files, tmp_path, capsys):
    run(tiny_writers["t5"], tmp_path / "out", "--check", "--do_eval", "--validation_file", squad_files / "dev.json")
    assert "checked, a run could start: 34 validation features" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_numbers_of_the_command_line(writing_models, squad_files, tmp_path):
    flags = [
        "--do_eval",
        "--validation_file",
        squad_files / "dev.json",
        "--num_beams",
        0,
        "--val_max_answer_length",
        1,
    ]
    with pytest.raises(UserError) as caught:
        run(writing_models["t5"], tmp_path, *flags)
    assert caught.value.problems == (
        "--val_max_answer_length is 1; give 2 or more, 1048576 at most",
        "--num_beams is 0; give 1 or more, 1024 at most",
    )


def test_the_two_scripts_share_no_long_run_of_lines():
    """Apart from the imports: common code is in one place."""
    first, second = (
        (ROOT / f"{name}.py").read_text().split("def main(")[1].splitlines() for name in ("run_qa", "run_seq2seq_qa")
    )
    runs = {tuple(first[start : start + 6]) for start in range(len(first) - 5)}
    assert not runs & {tuple(second[start : start + 6]) for start in range(len(second) - 5)}
