"""Show what a run of either script has learned: a few answered questions, then EM and F1.

    python quickstart/report.py OUTPUT_DIR [DEV_JSON]

OUTPUT_DIR is the run's --output_dir; DEV_JSON the SQuAD file it was evaluated on. For a corpus of the quickstarts the EM
of a baseline follows: see `baseline_exact_match` of each.
"""

import json
import sys
from pathlib import Path

import corpus
import seq2seq_corpus


BASELINES = {
    corpus.VERSION: (corpus.baseline_exact_match, "ignores the entity"),
    seq2seq_corpus.VERSION: (seq2seq_corpus.baseline_exact_match, "does not read the context"),
}


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def show_answers(squad: dict, predictions: dict[str, str], count: int = 4) -> None:
    """Print evenly spread questions with predicted and gold answer, and the first one's context."""
    paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
    for number, paragraph in enumerate(paragraphs[:: max(1, len(paragraphs) // count)][:count]):
        if number == 0:
            print(f"\nContext:   {paragraph['context']}")
        qa = paragraph["qas"][0]
        golds = " | ".join(dict.fromkeys(answer["text"] for answer in qa["answers"])) or "(no answer)"
        print(f"\nQuestion:  {qa['question']}\nPredicted: {predictions.get(qa['id'])}\nGold:      {golds}")


def main() -> None:
    output_dir = Path(sys.argv[1])
    scores = load(output_dir / "eval_results.json")
    squad = load(Path(sys.argv[2])) if len(sys.argv) > 2 else None
    if squad is not None:
        show_answers(squad, load(output_dir / "eval_predictions.json"))
    print(f"\nEM {scores.get('eval_exact_match', scores.get('eval_exact')):.1f}")
    print(f"F1 {scores['eval_f1']:.1f}")
    if squad is not None and squad.get("version") in BASELINES:
        exact_match, what = BASELINES[squad["version"]]
        print(f"EM {exact_match(squad):.1f} of a baseline that {what}")


if __name__ == "__main__":
    main()
