"""What the tests share: the project on the path, no hub, and tiny real models and data made here."""

import json
import os
import sys
import tempfile
from pathlib import Path


CACHE = tempfile.TemporaryDirectory()  # or the user's own would keep the tests' "squad", and pass it for the hub's
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": CACHE.name, "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "quickstart")]

import corpus  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers_qa import SENTENCES, make_tokenizers  # noqa: E402


torch.set_num_threads(1)  # tiny models are faster so, and a busy machine does not slow them down
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def environment():
    """Training arguments leave settings for accelerate (bf16, compiling) in the environment: one test's end with it."""
    before = os.environ.copy()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tokenizers():
    """One small trained tokenizer of each kind, by name; those without a padding token pad with their end token."""
    made = make_tokenizers(SENTENCES)
    for tokenizer in made.values():
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return made


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a BERT of 2 layers, 32 wide, with a tokenizer that knows the corpus."""
    from transformers import BertConfig, BertForQuestionAnswering, set_seed

    squad = corpus.make_part("train", 400, seed=5)
    texts = [
        text
        for paragraph in squad["data"][0]["paragraphs"]
        for text in (paragraph["context"], *questions_of(paragraph))
    ]
    tokenizer = make_tokenizers(texts)["bert"]
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **sizes))
    folder = tmp_path_factory.mktemp("tiny_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def squad_files(tmp_path_factory):
    """`train.json` and `dev.json` of the corpus, in SQuAD's own layout: 64 and 32 questions or a few more."""
    folder = tmp_path_factory.mktemp("squad")
    for part, questions in (("train", 64), ("dev", 32)):
        (folder / f"{part}.json").write_text(json.dumps(corpus.make_part(part, questions, seed=1)))
    return folder


def questions_of(paragraph: dict) -> list[str]:
    return [qa["question"] for qa in paragraph["qas"]]


def rows_of(questions: list[str], contexts: list[str], answers: list[dict | None]) -> list[dict]:
    """Rows in the shape of data_qa."""
    return [
        {"id": f"q{number}", "title": "", "context": context, "question": question, "answers": answer}
        for number, (question, context, answer) in enumerate(zip(questions, contexts, answers))
    ]
