"""run_seq2seq_qa.py on contexts that are longer than its window, and on real questions without an answer.

    python -m benchmarks.writing long      # invented documents of four windows: the best window compared with the last one
    python -m benchmarks.writing squad_v2  # real questions of ../shared/data, split by article

Both train a T5 from scratch with the script, with the quickstart's model and settings, in three and seven minutes.
A model of that size learns next to nothing of real language (it answers nothing, which is right for half of the
questions); `squad_v2` only shows that the script handles real data on its own.
"""

import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "quickstart")]

import seq2seq_corpus  # noqa: E402
import seq2seq_model  # noqa: E402

import qa.reading  # noqa: E402
import run_seq2seq_qa  # noqa: E402
from qa.metrics import squad_scores  # noqa: E402


SHARED_DEV = ROOT.parent / "shared" / "data" / "squad-v2.0-dev.json.gz"
SETTINGS = ROOT / "quickstart" / "seq2seq.yaml"
EVALUATION_ARTICLES = 4
LONG = {"windows": 4, "window_tokens": 60}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["long", "squad_v2"])
    with tempfile.TemporaryDirectory() as folder:
        {"long": long_documents, "squad_v2": squad_v2}[parser.parse_args().what](Path(folder))


if __name__ == "__main__":
    main()
