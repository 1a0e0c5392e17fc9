"""Questions with the lengths of real ones, and a tokenizer, for all benchmarks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "quickstart")]

import qa.data  # noqa: E402
import qa.reading  # noqa: E402
from qa.arguments import DataArguments  # noqa: E402


SHARED = ROOT.parent / "shared" / "data"
MAX_SEQ_LENGTH, DOC_STRIDE = 384, 128
QUESTIONS_OF_A_CONTEXT = 5  # as in SQuAD


def load_questions(part: str, number: int, seed: int = 0) -> tuple[list[dict], str]:
    """Random rows of SQuAD 1.1 (`part` "train" or "dev"), at most `number`, else generated ones; and which they are."""
    path = SHARED / f"squad-v1.1-{part}.json.gz"
    if not path.is_file():
        return generated_questions(number, seed), "generated questions with the lengths of SQuAD's"
    questions = qa.data.read_questions(qa.reading.read_file(path), path.name, DataArguments(), "train")
    rows, _ = qa.data.checked_rows(questions, path.name, DataArguments(), "train")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:number])
    return [rows[index] for index in chosen], path.name


def generated_questions(number: int, seed: int = 0) -> list[dict]:
    """Rows of made-up words. Together with their questions half of them have up to 165 tokens, one in twenty over 350."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(2000)])
    rows = []
    while len(rows) < number:
        context = rng.choice(words, max(20, int(rng.lognormal(np.log(147), 0.48)))).tolist()
        for _ in range(min(QUESTIONS_OF_A_CONTEXT, number - len(rows))):
            place = int(rng.integers(0, len(context)))
            answer = {"text": [context[place]], "answer_start": [len(" ".join(context[:place])) + (place > 0)]}
            question = " ".join(rng.choice(words, rng.integers(6, 18)).tolist())
            row = {"title": "", "context": " ".join(context), "question": question, "answers": answer}
            rows.append({"id": str(len(rows)), **row})
    return rows


def write_rows(rows: list[dict], path: Path) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def make_tokenizer(rows: list[dict]):
    """Return a WordPiece tokenizer of at most 20,000 pieces, trained on the contexts."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertTokenizerFast

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    contexts = dict.fromkeys(row["context"] for row in rows)
    tokenizer.train_from_iterator(contexts, vocab_size=20_000, show_progress=False)
    special = ((token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = BertProcessing(*special)
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer)


def make_model(folder: Path, rows: list[dict], **sizes) -> Path:
    """Return a BERT of random weights, with its tokenizer."""
    from transformers import BertConfig, BertForQuestionAnswering

    tokenizer = make_tokenizer(rows)
    BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fast_bf16() -> bool:
    """Return whether a GPU is there, or the CPU has units for bf16."""
    import torch

    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def run_process(command: list, status: int = 0, **options) -> str:
    """Return the output of a process; if it does not end with the exit status, show the end of its errors."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, **options)
    if done.returncode != status:
        raise SystemExit(f"{done.stderr[-3000:]}\nended with {done.returncode}: {command}")
    return done.stdout


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
