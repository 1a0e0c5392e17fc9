"""run_seq2seq_qa.py on contexts that are longer than its window, and on real questions without an answer.

    python -m benchmarks.writing long      # invented documents of four windows: the best window compared with the last one
    python -m benchmarks.writing squad_v2  # real questions of ../shared/data, split by article
    python -m benchmarks.writing speed     # windows that are evaluated in a second, encoded once or for each use

The first two train a T5 from scratch with the script, with the quickstart's model and settings, in three and seven minutes.
A model of that size learns next to nothing of real language (it answers nothing, which is right for half of the
questions); `squad_v2` only shows that the script handles real data on its own.
"""

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "quickstart")]

import numpy as np  # noqa: E402
import seq2seq_corpus  # noqa: E402
import seq2seq_model  # noqa: E402

import qa.reading  # noqa: E402
import qa.seq2seq  # noqa: E402
import run_seq2seq_qa  # noqa: E402
from benchmarks.questions import DOC_STRIDE, MAX_SEQ_LENGTH, load_questions  # noqa: E402
from qa.device import training_arguments  # noqa: E402
from qa.metrics import squad_scores  # noqa: E402


SHARED_DEV = ROOT.parent / "shared" / "data" / "squad-v2.0-dev.json.gz"
SETTINGS = ROOT / "quickstart" / "seq2seq.yaml"
EVALUATION_ARTICLES = 4
LONG = {"windows": 4, "window_tokens": 60}
READER = {"d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 6, "num_heads": 8}
WINDOWS, BATCH, ROUNDS = 16, 8, 3


def train_and_score(folder: Path, train: dict, dev: dict, vocabulary: int, *flags: str) -> dict:
    """Run the script on two SQuAD files; return the scores. The model and the answers are in `folder`/out."""
    for name, squad in (("train", train), ("dev", dev)):
        (folder / f"{name}.json").write_text(json.dumps(squad))
    tokenizer = seq2seq_model.train_tokenizer(seq2seq_model.texts_of(train), vocabulary)
    for saved in (tokenizer, seq2seq_model.make_model(tokenizer)):
        saved.save_pretrained(folder / "model")
    files = ["--train_file", str(folder / "train.json"), "--validation_file", str(folder / "dev.json")]
    files += ["--model_name_or_path", str(folder / "model"), "--output_dir", str(folder / "out")]
    run_seq2seq_qa.main([str(SETTINGS), *files, *flags])
    return json.loads((folder / "out" / "eval_results.json").read_text())


def long_documents(folder: Path) -> None:
    """Print the EM of the best window and of the last one; the asked fact is in any of four windows.

    Most contexts of training are short: from long ones alone so small a model learns too slowly.
    """
    train = seq2seq_corpus.make_part("train", 64_000, seed=0, **LONG, long_share=0.15)
    dev = seq2seq_corpus.make_part("dev", 500, seed=1000, **LONG)
    train_and_score(folder, train, dev, seq2seq_model.VOCABULARY, "--max_seq_length", "96", "--doc_stride", "16")
    rows = qa.reading.flatten_squad(dev["data"])
    golds = {row["id"]: [answer["text"] for answer in row["answers"]] for row in rows}
    windows = json.loads((folder / "out" / "eval_nbest_predictions.json").read_text())
    last = {name: max(entries, key=lambda entry: entry["window"])["text"] for name, entries in windows.items()}
    best = json.loads((folder / "out" / "eval_predictions.json").read_text())
    count = sum(map(len, windows.values())) / len(windows)
    print(f"\n{len(rows)} questions on documents of {count:.1f} windows\n\n| answer of | EM |\n|---|---|")
    scores = {name: squad_scores(texts, golds)["exact_match"] for name, texts in (("last", last), ("best", best))}
    print(
        f"| the last window (the reference's rule) | {scores['last']:.1f} |\n| the best window | {scores['best']:.1f} |"
    )
    print(f"\nratio {scores['best'] / scores['last']:.1f}")


def squad_v2(folder: Path) -> None:
    """SQuAD 2.0 dev: all but the last articles train, those evaluate."""
    articles = json.loads(gzip.open(SHARED_DEV).read())["data"]
    train, dev = ({"data": part} for part in (articles[:-EVALUATION_ARTICLES], articles[-EVALUATION_ARTICLES:]))
    flags = [
        "--version_2_with_negative",
        "--max_seq_length",
        "384",
        "--doc_stride",
        "128",
        "--max_answer_length",
        "30",
    ]
    scores = train_and_score(folder, train, dev, 8000, *flags, "--num_train_epochs", "3", "--bf16")
    print("\n| score | value |\n|---|---|")
    for name, value in scores.items():
        if any(word in name for word in ("exact", "f1", "total")):
            print(f"| {name.removeprefix('eval_')} | {value:.2f} |")


def speed(folder: Path) -> None:
    """Print windows per CPU second of an evaluation that writes: with the encoder's states shared, and computed for each use.

    One thread; the two ways in turns.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    torch.set_num_threads(1)
    rows, source = load_questions("dev", WINDOWS)
    tokenizer = seq2seq_model.train_tokenizer([row["context"] for row in load_questions("dev", 1000)[0]], 8000)
    features = qa.seq2seq.prepare_seq2seq_features(rows, tokenizer, MAX_SEQ_LENGTH, DOC_STRIDE, max_answer_length=30)
    set_seed(0)
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **READER)
    model = T5ForConditionalGeneration(config).eval()
    print(f"\n{len(features)} windows of {source}, batches of {BATCH}; median of {ROUNDS}\n")
    print(
        "| tokens | beams | encoded for each use, windows/s | once, windows/s | ratio |\n|---|---|---|---|---|",
        flush=True,
    )
    for tokens, beams in ((8, 1), (8, 4), (30, 1), (30, 4)):
        seconds, tables = {False: [], True: []}, {}
        for _ in range(ROUNDS):
            for once in seconds:
                spent, tables[once] = evaluate(folder, model, tokenizer, features, tokens, beams, once)
                seconds[once].append(spent)
        if not all(map(np.array_equal, *tables.values())):
            raise SystemExit("answers or scores differ")
        each, once = (len(features) / statistics.median(found) for found in seconds.values())
        print(f"| {tokens} | {beams} | {each:.2f} | {once:.2f} | {once / each:.2f}x |", flush=True)


def evaluate(folder: Path, model, tokenizer, features, tokens: int, beams: int, once: bool) -> tuple[float, list]:
    """Evaluate; return the CPU seconds and what is kept: tokens and scores."""
    import qa.outputs
    import trainer_seq2seq_qa

    settings = {"predict_with_generate": True, "generation_max_length": tokens, "generation_num_beams": beams}
    settings |= {"per_device_eval_batch_size": BATCH, "report_to": "none", "disable_tqdm": True, "log_level": "error"}
    trainer = trainer_seq2seq_qa.QuestionAnsweringSeq2SeqTrainer(
        model=model,
        args=training_arguments(True)(output_dir=str(folder), **settings),
        processing_class=tokenizer,
        data_collator=qa.seq2seq.Seq2SeqCollator(tokenizer, MAX_SEQ_LENGTH, label_length=30, start_token=0),
    )
    shared = qa.outputs.encoded if once else lambda own, states: {}
    with (
        mock.patch.object(qa.outputs, "encoded", shared),
        mock.patch.object(trainer_seq2seq_qa, "encoded", shared),
    ):
        loader, start = trainer.get_test_dataloader(features), time.process_time()
        trainer.run_model(loader, features, "predict")
        return time.process_time() - start, trainer.kept_tables(features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=[*PROGRAMS])
    with tempfile.TemporaryDirectory() as folder:
        PROGRAMS[parser.parse_args().what](Path(folder))


PROGRAMS = {"long": long_documents, "squad_v2": squad_v2, "speed": speed}


if __name__ == "__main__":
    main()
