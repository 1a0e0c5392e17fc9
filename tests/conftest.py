"""Fixtures of all tests: the project on the path, no hub, and tiny real models and data made here."""

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest


gc.disable()  # until all tests are imported
CACHE = tempfile.TemporaryDirectory()  # in the user's own, the tests' "squad" would later pass for the hub's
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": CACHE.name, "TOKENIZERS_PARALLELISM": "false"}
os.environ["PT_HPU_RECIPE_CACHE_CONFIG"] = ""  # no compiled graphs in the user's cache
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "quickstart")]
pytest.register_assert_rewrite("helpers", "oracle")

import corpus  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from helpers import CAUSAL_KINDS, corpus_texts, load, sentence_of  # noqa: E402
from hypothesis import settings  # noqa: E402
from small_tokenizers import SENTENCES, make_tokenizers, make_writers  # noqa: E402


# Random cases: the same ones each time; with FUZZ=1, as in `make fuzz`, others each time. `helpers.examples` sets how many.
settings.register_profile("test", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("fuzz" if os.environ.get("FUZZ") else "test")
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    signal.signal(number, handler)  # Jobs in the background of a shell ignore them, and so would all that tests start.
torch.set_num_threads(1)  # faster for tiny models, also on a busy machine


def pytest_collection_finish():
    """Collect garbage from now on, but not among the modules, whose objects are millions."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment after each test: training arguments leave settings for accelerate in it (bf16, compiling).

    Those with `--deepspeed` also leave a process group of one rank, which processes forked by later tests would have.
    """
    before = os.environ.copy()
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def simulated_gaudi():
    """Return the module `tests.gaudi_sim`, its libraries compiled; without a compiler the test is skipped."""
    from tests import gaudi_sim

    try:
        gaudi_sim.environment()
    except gaudi_sim.CannotBuild as error:
        pytest.skip(str(error))
    return gaudi_sim


@pytest.fixture(scope="session")
def remote_shells(tmp_path_factory):
    """Return a folder for PATH whose ssh reaches nodes of any name on this machine, see remote_shell.py."""
    folder = tmp_path_factory.mktemp("remote_shells")
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/runs/remote_shell.py "$@"\n')
    (folder / "ssh").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def tokenizers():
    """Return a small trained tokenizer of each kind, by name; without a padding token it pads with its end token."""
    made = make_tokenizers(SENTENCES)
    for tokenizer in made.values():
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    return made


@pytest.fixture(scope="session")
def writers():
    """Return one small trained tokenizer of each kind of encoder-decoder, by name."""
    return make_writers(SENTENCES)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Return the folder of a BERT of 2 layers, 32 wide, with a tokenizer that knows the corpus."""
    from transformers import BertConfig, BertForQuestionAnswering, set_seed

    tokenizer = make_tokenizers(corpus_texts())["bert"]
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **sizes))
    folder = tmp_path_factory.mktemp("tiny_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_writers(tmp_path_factory):
    """Return the folders of a T5 and a BART of 2 + 2 layers, 32 wide, by name, with tokenizers that know the corpus.

    Their initial weights are so large that they write a different text for every input, although they are untrained.
    """
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration, set_seed

    tokenizers = make_writers(corpus_texts())
    t5, bart = tokenizers["t5"], tokenizers["bart"]
    set_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "initializer_factor": 3}
    models = {"t5": T5ForConditionalGeneration(T5Config(vocab_size=len(t5), decoder_start_token_id=0, **sizes))}
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {
        "d_model": 32,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 512,
        "init_std": 0.3,
    }
    ends = {"bos_token_id": bart.bos_token_id, "eos_token_id": bart.eos_token_id, "pad_token_id": bart.pad_token_id}
    ends |= {"decoder_start_token_id": bart.eos_token_id, "forced_eos_token_id": bart.eos_token_id}
    models["bart"] = BartForConditionalGeneration(BartConfig(vocab_size=len(bart), **sizes, **ends))
    folders = {}
    for kind, model in models.items():
        folders[kind] = tmp_path_factory.mktemp(f"tiny_{kind}")
        model.save_pretrained(folders[kind])
        tokenizers[kind].save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def still_models(tiny_writers, tmp_path_factory):
    """Return a folder with the quickstart's pretrained BERT, `bert`, a random T5, `t5`, and a random Llama, `llama`.

    They have no dropout, because ranks draw different masks.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration, set_seed

    folder = tmp_path_factory.mktemp("still_models")
    shutil.copytree(ROOT / "quickstart" / "checkpoint", folder / "bert")
    config = load(folder / "bert" / "config.json")
    config |= {name: 0.0 for name in config if name.endswith("dropout_prob")}
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    shutil.copytree(tiny_writers["t5"], folder / "t5")
    set_seed(2)
    config = T5Config.from_pretrained(folder / "t5", initializer_factor=1.5, dropout_rate=0.0)
    T5ForConditionalGeneration(config).save_pretrained(folder / "t5")
    shutil.copytree(folder / "bert", folder / "llama", ignore=shutil.ignore_patterns("config.json", "model.*"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vocabulary = load(folder / "bert" / "config.json")["vocab_size"]
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).save_pretrained(folder / "llama")
    return folder


@pytest.fixture(scope="session")
def squad_files(tmp_path_factory):
    """Write `train.json` and `dev.json` of the corpus, in SQuAD's own layout: 64 and 32 questions or a few more."""
    folder = tmp_path_factory.mktemp("squad")
    for part, questions in (("train", 64), ("dev", 32)):
        (folder / f"{part}.json").write_text(json.dumps(corpus.make_part(part, questions, seed=1)))
    return folder


@pytest.fixture(scope="session")
def mixed_lengths(squad_files, tmp_path_factory):
    """Write training and development questions on contexts of one sentence, of one window, and of several."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in ("train", "dev"):
        squad, mixed = load(squad_files / f"{name}.json"), []
        for number, paragraph in enumerate(squad["data"][0]["paragraphs"]):
            if number % 4 == 0:
                mixed.append(paragraph | {"context": " ".join([paragraph["context"]] * 2)})
            elif number % 4 == 1:
                mixed.append(paragraph)
            else:
                mixed += [sentence_of(paragraph["context"], qa) for qa in paragraph["qas"]]
        squad["data"][0]["paragraphs"] = mixed
        (folder / f"{name}.json").write_text(json.dumps(squad))
    return folder


@pytest.fixture
def seen(monkeypatch):
    """Return the shapes of the inputs that a run trains and evaluates with, by the method of the trainer."""
    import trainer_qa

    shapes = {"training_step": [], "prediction_step": []}
    for name in shapes:

        def step(self, model, inputs, *args, name=name, **kwargs):
            shapes[name].append(tuple(inputs["input_ids"].shape))
            return getattr(super(trainer_qa.FeatureOrder, self), name)(model, inputs, *args, **kwargs)

        monkeypatch.setattr(trainer_qa.FeatureOrder, name, step, raising=False)
    return shapes


@pytest.fixture(scope="session")
def negatives(squad_files, tmp_path_factory):
    """Return a SQuAD 2.0 file: `dev.json`, every other question of a paragraph without an answer."""
    squad = load(squad_files / "dev.json")
    for paragraph in squad["data"][0]["paragraphs"]:
        for qa in paragraph["qas"][::2]:
            qa["answers"], qa["is_impossible"] = [], True
    path = tmp_path_factory.mktemp("negatives") / "dev.json"
    path.write_text(json.dumps(squad))
    return path


@pytest.fixture(scope="session")
def unknown_answers(squad_files, tmp_path_factory):
    """Write `dev.json` without any answers: questions to predict."""
    squad = load(squad_files / "dev.json")
    for paragraph in squad["data"][0]["paragraphs"]:
        for qa in paragraph["qas"]:
            del qa["answers"]
    path = tmp_path_factory.mktemp("unknown") / "test.json"
    path.write_text(json.dumps(squad))
    return path


@pytest.fixture(scope="session")
def two_questions(tmp_path_factory):
    """Write `plain.jsonl`: 8 contexts with two questions each, which only a model that reads the question can distinguish.

    `negatives.jsonl` has a third question for each, without an answer.
    """
    colours = dict(
        zip("Anna Bert Carl Dora Emil Fred Gina Hugo".split(), "red blue green black white brown grey pink".split())
    )
    rows = []
    for name, colour in colours.items():
        context = f"{name} has a {colour} boat in the harbour of the old town."
        questions = {"What colour is the boat?": colour, "Who has the boat?": name, "When was the boat built?": None}
        for question, text in questions.items():
            answers = {"text": [], "answer_start": []}
            if text is not None:
                answers = {"text": [text], "answer_start": [context.index(text)]}
            rows.append({"id": f"{name} {question}", "context": context, "question": question, "answers": answers})
    folder = tmp_path_factory.mktemp("two_questions")
    for name, kept in (("plain", [row for row in rows if row["answers"]["text"]]), ("negatives", rows)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    return folder


@pytest.fixture(scope="session")
def causal_models(two_questions, tmp_path_factory):
    """Return a folder with causal models of 2 layers, 32 wide: `llama_left`, `llama_right` and so on by padding side."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    rows = [json.loads(line) for line in (two_questions / "negatives.jsonl").read_text().splitlines()]
    tokenizers = make_tokenizers([row[name] for row in rows for name in ("context", "question")])
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    folder = tmp_path_factory.mktemp("causal_models")
    for kind, tokenizer in CAUSAL_KINDS.items():
        tokenizer = tokenizers[tokenizer]
        config = AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), head_dim=16, num_key_value_heads=1, bos_token_id=None, **sizes
        )
        set_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for side in ("left", "right"):
            model.save_pretrained(folder / f"{kind}_{side}")
            tokenizer.padding_side = side
            tokenizer.save_pretrained(folder / f"{kind}_{side}")
    return folder


@pytest.fixture(scope="session")
def colour_model(two_questions, tmp_path_factory):
    """Return the folder of a BERT of 2 layers, 32 wide, that `run_qa.py` trained to answer `negatives.jsonl`."""
    from transformers import BertConfig, BertForQuestionAnswering, set_seed

    import run_qa

    path, folder = two_questions / "negatives.jsonl", tmp_path_factory.mktemp("colour_model")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = make_tokenizers([row[name] for row in rows for name in ("context", "question")])["bert"]
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    flags = ["--do_train", "--train_file", path, "--version_2_with_negative", "--max_seq_length", 64]
    flags += [
        "--doc_stride",
        16,
        "--num_train_epochs",
        120,
        "--learning_rate",
        "3e-3",
        "--lr_scheduler_type",
        "constant",
    ]
    flags += ["--pad_to_max_length", "False", "--save_strategy", "no", "--disable_tqdm", "True"]
    run_qa.main(["--model_name_or_path", str(folder / "start"), "--output_dir", str(folder / "out"), *map(str, flags)])
    return folder / "out"
