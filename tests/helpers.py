"""Functions that tests share: flags of runs, starts of ranks, readers of the files of a run. Fixtures are in conftest.py."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import corpus
import numpy as np
import oracle
import pytest
from hypothesis import settings
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parent.parent
ENGINES = {"none": [], "mpi": ["--use_mpi"], "deepspeed": ["--use_deepspeed"]}  # the flags of each way to start ranks
CAUSAL_KINDS = {"llama": "llama", "qwen3": "qwen2", "mistral": "llama"}  # decoder-only models, and their tokenizers
SHARED_DATA = ROOT.parent / "shared" / "data"


def examples(number: int) -> settings:
    """Return the setting for N random cases of a test; in `make fuzz` for 20 times as many, with FUZZ=5 for 100."""
    return settings(max_examples=number * max(1, 20 * int(os.environ.get("FUZZ") or 0)))


def undescribed_files(output_dir: Path) -> list[str]:
    """Return the files of a run, with their folder, that no table of docs/outputs.md names; an N there is any number."""
    sections = (ROOT / "docs" / "outputs.md").read_text().split("\n## ")[1:]
    described = {
        section.splitlines()[0]: [
            re.escape(name).replace("N", r"\d+") + (".+" if name.endswith("/") else "")
            for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
            for name in re.findall("`(.+?)`", row)
            if name != "checkpoint-N/"
        ]
        for section in sections
    }
    at_the_end = [*described["The model"], *described["The training"], *described["Evaluation and prediction"]]
    in_a_checkpoint = [*described["The model"], *described["A checkpoint"]]
    found = []
    for path in output_dir.rglob("*"):
        name = path.relative_to(output_dir).as_posix()
        checkpoint, _, rest = name.partition("/")
        inside = re.fullmatch(r"checkpoint-\d+", checkpoint) and rest
        names, rest = (in_a_checkpoint, rest) if inside else (at_the_end, name)
        if path.is_file() and not any(re.fullmatch(pattern, rest) for pattern in names):
            found.append(name)
    return found


def learning_flags(rows: Path) -> list:
    """Return the flags of sixty epochs on the rows of a file, which then score the model."""
    flags = ["--do_train", "--train_file", rows, "--do_eval", "--validation_file", rows, "--num_train_epochs", 60]
    flags += ["--learning_rate", "5e-3", "--per_device_train_batch_size", 16, "--per_device_eval_batch_size", 16]
    return flags + ["--save_strategy", "no", "--pad_to_max_length", "False"]


HELD = []


def mixed_training(mixed_lengths: Path, batch: int) -> list:
    """Return the flags of two epochs on the questions of `mixed_lengths`, N features a step."""
    return ["--do_train", "--train_file", mixed_lengths / "train.json", "--num_train_epochs", "2", "--logging_steps", "1",
            "--per_device_train_batch_size", batch, "--learning_rate", "1e-3"]  # fmt: skip


def run_in_windows(script, model, output_dir: Path, *flags) -> None:
    """Run a script in this process, with windows of 96 tokens that share 16."""
    words = ["--model_name_or_path", model, "--output_dir", output_dir, "--max_seq_length", 96, "--doc_stride", 16]
    script.main([*map(str, [*words, "--report_to", "none", "--disable_tqdm", "True", *flags])])


def free_port() -> int:
    """Return a TCP port that nothing else gets as long as the tests run, for ranks of several launchers."""
    from qa.launch.hosts import hold_port

    HELD.append(hold_port())
    return HELD[-1].getsockname()[1]


def address_here() -> str | None:
    """Return an address of this machine that is not loopback, None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return probe.getsockname()[0]


def own_address() -> str:
    """Return an address of this machine that is not loopback; skip the test where it has none."""
    return address_here() or pytest.skip("no network interface except loopback; give the machine one")


def skip_without(engine: str) -> None:
    """Skip a test where this machine lacks the program of an engine."""
    from qa.launch.job import missing_programs

    problems = missing_programs(engine == "mpi", engine == "deepspeed")
    if problems:
        pytest.skip(problems[0] + "; for tests: pip install -r requirements-dev.txt")


def start_ranks(folder: Path, engine: str, environment: dict, *script) -> subprocess.Popen:
    """Start the launcher with two ranks of a script; their output goes to the files `out` and `err` of `folder`."""
    command = [sys.executable, ROOT / "gaudi_spawn.py", "--world_size", 2, *ENGINES[engine], *script]
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        return subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=environment, cwd=ROOT)


def split_import_times(stderr: str) -> tuple[set[str], list[str]]:
    """Return the modules that a `python -X importtime` imported, and what else it printed on stderr, by lines."""
    lines = stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in times}, [line for line in lines if line not in times]


def addresses_listening(port: int) -> list[str]:
    """Return the addresses, in hexadecimal digits, on which a TCP port of this machine is listened to."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [words[1].split(":")[0] for words in lines if words[3] == "0A" and words[1].endswith(f":{port:04X}")]


@contextmanager
def signal_at_step(number: int, step: int, batch: int | None = None):
    """Let trainings within send their process a signal at the beginning of a step, and handle signals as a script does.

    Step 0 means the end of the training, before the model is saved. With a `batch` the signal comes at the end of that
    batch of an evaluation after the step.
    """
    from transformers import TrainerCallback, trainer

    from qa.signals import REQUEST, STATUS, handle_signals

    class Sender(TrainerCallback):
        batches = 0  # since the last step

        def on_step_begin(self, args, state, control, **kwargs):
            self.batches = 0
            if batch is None and state.global_step == step - 1:
                os.kill(os.getpid(), number)

        def on_prediction_step(self, args, state, control, **kwargs):
            self.batches += 1
            if (state.global_step, self.batches) == (step, batch):
                os.kill(os.getpid(), number)

        def on_train_end(self, args, state, control, **kwargs):
            if step == 0 and batch is None:
                os.kill(os.getpid(), number)

    handlers = {each: signal.getsignal(each) for each in STATUS}
    handle_signals()
    trainer.DEFAULT_CALLBACKS.append(Sender)
    try:
        yield
    finally:
        trainer.DEFAULT_CALLBACKS.remove(Sender)
        REQUEST.__init__()
        for each, handler in handlers.items():
            signal.signal(each, handler)


@contextmanager
def memory_of_second_step():
    """Yield a list that gets the bytes at the peak of the second step of each training within, as PyTorch counts them."""
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import TrainerCallback, trainer

    peaks = []

    class Tracker(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == 1:
                self.tracker, nothing = MemTracker(), SimpleNamespace(remove=lambda: None)
                for weight in model.parameters():
                    if not weight.requires_grad:  # PyTorch's tracker would hook its gradient
                        self.tracker._param_to_grad_hook_handles[weight] = (nothing, nothing)
                self.tracker.track_external(model, optimizer.optimizer)
                self.tracker.__enter__()

        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.tracker.reset_mod_stats()  # it takes one batch

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.tracker.__exit__(None, None, None)
                (peak,) = self.tracker.get_tracker_snapshot("peak").values()
                peaks.append(peak["Total"])

    trainer.DEFAULT_CALLBACKS.append(Tracker)
    try:
        yield peaks
    finally:
        trainer.DEFAULT_CALLBACKS.remove(Tracker)


def history_of(folder: Path, name: str) -> list[float]:
    """Return the values that a training logged under a name, in order."""
    return [entry[name] for entry in load(folder / "trainer_state.json")["log_history"] if name in entry]


def distance_trained(checkpoint: Path, output: Path) -> float:
    """Return the largest difference of a tensor of a trained model from the checkpoint's, which must have all except the head's.

    A checkpoint of a causal model has the prefix `model` where its model for questions has another one.
    """
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, output))
    names = {name: name if name in before else f"model.{name.partition('.')[2]}" for name in after}
    assert {name for name in after if names[name] not in before} <= {"qa_outputs.weight", "qa_outputs.bias"}
    return max(
        float((after[name].float() - before[names[name]]).abs().max()) for name in after if names[name] in before
    )


def load(path):
    return json.loads(path.read_text())


def golds_of(path) -> dict[str, list[str]]:
    """Return the gold texts by question id of a file in SQuAD's own layout."""
    paragraphs = [paragraph for article in load(path)["data"] for paragraph in article["paragraphs"]]
    return {
        qa["id"]: [answer["text"] for answer in qa["answers"]] for paragraph in paragraphs for qa in paragraph["qas"]
    }


def check_results(folder: Path, golds: dict[str, list[str]]) -> None:
    """Check the files of an evaluated and a predicted part: scores, losses, and n-best rows that begin with the answers."""
    for stage, prefix in (("eval", "eval"), ("predict", "test")):
        results, texts = load(folder / f"{stage}_results.json"), load(folder / f"{stage}_predictions.json")
        assert list(texts) == list(golds)
        scores = oracle.squad_v1(texts, golds)
        assert {name: results[f"{prefix}_{name}"] for name in scores} == pytest.approx(scores)
        assert results[f"{prefix}_loss"] > 0
        nbest = load(folder / f"{stage}_nbest_predictions.json")
        assert {name: rows[0]["text"] for name, rows in nbest.items()} == texts


def corpus_texts() -> list[str]:
    """Return contexts and questions to train tokenizers on."""
    squad = corpus.make_part("train", 400, seed=5)
    paragraphs = squad["data"][0]["paragraphs"]
    return [text for paragraph in paragraphs for text in (paragraph["context"], *questions_of(paragraph))]


def questions_of(paragraph: dict) -> list[str]:
    return [qa["question"] for qa in paragraph["qas"]]


def sentence_of(context: str, qa: dict) -> dict:
    """Return a paragraph of the sentence that holds a question's answer."""
    place = qa["answers"][0]["answer_start"]
    begin = context.rfind(". ", 0, place) + 2 if ". " in context[:place] else 0
    end = context.find(". ", place) + 1 or len(context)
    moved = qa | {"answers": [{"text": qa["answers"][0]["text"], "answer_start": place - begin}]}
    return {"context": context[begin:end], "qas": [moved]}


def rows_of(questions: list[str], contexts: list[str], answers: list[dict | None]) -> list[dict]:
    """Return rows in the shape of qa.data."""
    return [
        {"id": f"q{number}", "title": "", "context": context, "question": question, "answers": answer}
        for number, (question, context, answer) in enumerate(zip(questions, contexts, answers))
    ]


def peak_memory(function: Callable) -> int:
    """Return the bytes that Python and numpy hold at most while a function runs, beyond those before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bytes_of(value) -> int:
    """Return the bytes of the arrays and ids that features hold, each array counted once."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return sum(len(entry) for entry in value if isinstance(entry, str))
    return sum(map(bytes_of, vars(value).values())) if type(value).__module__.startswith("qa.") else 0


def as_dicts(features) -> list[dict]:
    return [features.as_dict(index) for index in range(len(features))]


def nbest_of(answers) -> dict[str, list[dict]]:
    """Return the n-best rows of `qa.answers.Answers`, by id."""
    return {name: rows for part in answers.nbest for name, rows in part.rows().items()}


def real_questions() -> list[dict]:
    """Return every ninth question of the half of SQuAD 2.0's dev set that is available."""
    return read_rows(SHARED_DATA / "squad-v2.0-dev.json.gz", version_2_with_negative=True)[::9]


def read_rows(path: Path, **flags) -> list[dict]:
    """Return the rows of a file to evaluate on."""
    from qa.arguments import DataArguments
    from qa.data import checked_rows, read_questions
    from qa.reading import read_file

    data = DataArguments(**flags)
    return checked_rows(read_questions(read_file(path), path.name, data, "validation"), path.name, data, "validation")[
        0
    ]
