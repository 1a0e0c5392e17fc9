"""A training as a person watches it: the log, the bar on a terminal, TensorBoard and W&B."""

import fcntl
import importlib.util
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
import torch
from helpers import ROOT, load
from safetensors.torch import load_file

import run_qa
from qa.answer_files import read_table
from qa.device import training_arguments
from qa.plan import format_log
from qa.plots import draw_threshold, figure_of
from qa.steps import logging_interval
from qa.trackers import has_curve, threshold_figures


WANDB = "W&B: pip install wandb==0.31.0"
STEP = (
    r"Step (\d+) of 8: loss \S+, learning rate \S+, gradient norm \S+, \S+ features/s, \S+ tokens/s, \d+% padding(.*)"
)
LOGGED = ("loss", "learning_rate", "grad_norm", "samples_per_second", "tokens_per_second", "padding_share")


class Terminal:
    """A pseudo-terminal in place of this process's stdout and stderr, with a handler of the log; `text` is its output."""

    def __init__(self, monkeypatch):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.file, self.pieces = os.fdopen(slave, "w", buffering=1), []
        monkeypatch.setattr(sys, "stdout", self.file)
        monkeypatch.setattr(sys, "stderr", self.file)
        self.handler = logging.StreamHandler(self.file)
        logging.getLogger().addHandler(self.handler)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        try:
            while piece := os.read(self.master, 4096):
                self.pieces.append(piece)
        except OSError:  # Linux reports the end so
            pass

    def close(self) -> str:
        logging.getLogger().removeHandler(self.handler)
        self.file.close()
        self.reader.join()
        os.close(self.master)
        return b"".join(self.pieces).decode()


def seen(output: str) -> list[str]:
    """Return the lines of a terminal's output as they stay on it: a carriage return overwrites what is there."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.fixture(scope="module")
def watched(tiny_model, negatives, tmp_path_factory):
    """Return the folder and the terminal's output of a run with two evaluations, which logs to the trackers installed."""
    folder = tmp_path_factory.mktemp("watched")
    trackers = [name for name in ("tensorboard", "wandb") if is_installed(name)] or ["none"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MODE", "offline"), ("DIR", folder), ("SILENT", "true")):
            patch.setenv(f"WANDB_{name}", str(value))
        terminal = Terminal(patch)
        try:
            run(tiny_model, folder / "out", negatives, "--report_to", *trackers)
        finally:
            output = terminal.close()
    return folder, output


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def run(model, folder, data, *flags) -> None:
    words = ["--model_name_or_path", model, "--output_dir", folder, "--train_file", data, "--validation_file", data]
    words += ["--do_train", "--do_eval", "--version_2_with_negative", "--max_seq_length", 96, "--doc_stride", 32]
    words += ["--max_steps", 8, "--eval_strategy", "steps", "--eval_steps", 4, "--save_steps", 4]
    words += ["--learning_rate", "1e-3"]
    run_qa.main(list(map(str, [*words, *flags])))


def test_a_log_has_about_a_hundred_entries_by_default(tmp_path):
    """And evaluations keep the interval that they have without this one."""
    for flags, interval, evaluated, line in (
        ({}, 10, 500, "every 10 steps"),
        ({"logging_steps": 7}, 7, 7, "every 7 steps"),
        ({"eval_steps": 50}, 10, 50, "every 10 steps"),
        ({"logging_strategy": "epoch"}, None, 500, "every epoch"),
        ({"logging_strategy": "no"}, None, 500, "never"),
        ({"logging_steps": 1, "report_to": ["a", "b"]}, 1, 1, "every step, also to a, b"),
    ):
        args = training_arguments(False)(output_dir=str(tmp_path), use_cpu=True, eval_strategy="steps", **flags)
        found = logging_interval(1000, args)
        assert (found, args.eval_steps, format_log(found, args)) == (interval, evaluated, line)


def test_the_log_of_a_run(watched):
    """Every step is more than a hundredth of 8; speed and padding are those of the whole training."""
    folder, output = watched
    log = [entry for entry in load(folder / "out" / "trainer_state.json")["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in log] == list(range(1, 9))
    assert all(
        entry.keys() == {*LOGGED, "epoch", "step"} and min(entry["grad_norm"], entry["tokens_per_second"]) > 0
        for entry in log
    )
    results = load(folder / "out" / "train_results.json")
    shares = [entry["padding_share"] for entry in log]
    assert min(shares) <= results["train_padding_share"] <= max(shares)
    real = [entry["tokens_per_second"] / entry["samples_per_second"] for entry in log]  # tokens of a feature
    assert min(real) < results["train_tokens_per_second"] / results["train_steady_samples_per_second"] < max(real)


def test_one_bar_at_a_time_on_a_terminal(watched):
    """It never shares a line with one of the log, moves the cursor up for a second bar, or stays."""
    _, output = watched
    assert re.search(r"Training +\d+%\|.*\| +\d/8", output) and re.search(r"Answering +\d+%\|", output)
    assert re.search(r"/8, \S+ s left", output)
    assert "\x1b[A" not in output
    lines = [line for line in seen(output) if line]
    assert not [line for line in lines if "%|" in line]
    steps = [match for line in lines if (match := re.fullmatch(STEP, line))]
    assert [int(match[1]) for match in steps] == list(range(1, 9))
    left = [match[2] for match in steps]
    assert left[0] == "" and re.fullmatch(r", \S+ s plus 2 evaluations and 2 checkpoints left", left[1])
    assert all(re.fullmatch(r", \S+ s left", text) for text in left[4:])


def test_the_curve_that_trackers_get(watched):
    """Also where no tracker is installed: its data, and the figure of it."""
    folder, _ = watched
    table, results = read_table(folder / "out", "eval"), load(folder / "out" / "eval_results.json")
    figures = threshold_figures(table, 0.0)
    assert has_curve(table) and max(figures["curves"]["f1"]) == pytest.approx(results["eval_best_f1"])
    with figure_of(draw_threshold, figures) as figure:
        f1, em, *points = (line.get_xydata().tolist() for line in figure.axes[0].lines)
    assert len(f1) == len(em) == len(figures["curves"]["threshold"]) and len(points) == 2
    assert points[1] == [[figures["thresholds"][-1]["threshold"], max(score for _, score in f1)]]


def test_logging_changes_no_weight(watched, tiny_model, negatives, tmp_path):
    folder, _ = watched
    run(tiny_model, tmp_path / "out", negatives, "--logging_strategy", "no", "--disable_tqdm", "true")
    assert not any("loss" in entry for entry in load(tmp_path / "out" / "trainer_state.json")["log_history"])
    expected, found = (load_file(path / "out" / "model.safetensors") for path in (tmp_path, folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_tensorboard_has_the_log_the_scores_and_the_curve(watched):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    folder, _ = watched
    (logs,) = (folder / "out" / "runs").iterdir()
    found = events.EventAccumulator(str(logs), size_guidance={events.IMAGES: 0}).Reload()
    history = load(folder / "out" / "trainer_state.json")["log_history"]
    for name in LOGGED:
        logged = [(entry["step"], pytest.approx(entry[name])) for entry in history if "loss" in entry]
        assert [(part.step, part.value) for part in found.Scalars(f"train/{name}")] == logged
    scores = [(entry["step"], pytest.approx(entry["eval_f1"])) for entry in history if "eval_f1" in entry]
    last = load(folder / "out" / "eval_results.json")["eval_f1"]
    assert [(part.step, part.value) for part in found.Scalars("eval/f1")] == [*scores, (8, pytest.approx(last))]
    assert [image.step for image in found.Images("eval/threshold")] == [4, 8, 8]
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in found.Images("eval/threshold"))


def test_wandb_has_the_log_the_scores_and_the_curve(watched):
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason=WANDB)
    folder, _ = watched
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    records = [messages.Record.FromString(data) for data in records_of(path.read_bytes())]
    assert records[-1].WhichOneof("record_type") == "exit"  # so that the next run in this process has its own
    rows = [{key_of(item): json.loads(item.value_json) for item in record.history.item} for record in records]
    history = load(folder / "out" / "trainer_state.json")["log_history"]
    for name in LOGGED:
        logged = [(entry["step"], pytest.approx(entry[name])) for entry in history if "loss" in entry]
        assert steps_of(rows, f"train/{name}") == logged
    last = load(folder / "out" / "eval_results.json")["eval_f1"]
    scores = [(entry["step"], pytest.approx(entry["eval_f1"])) for entry in history if "eval_f1" in entry]
    assert steps_of(rows, "eval/f1") == [*scores, (8, pytest.approx(last))]
    assert [step for step, _ in steps_of(rows, "eval/threshold_table/path")] == [4, 8, 8]
    _, table = steps_of(rows, "eval/threshold_table/path")[-1]
    points = load(path.parent / "files" / table)["data"]
    assert {line for _, line, _ in points} == {"F1", "EM"}
    assert max(score for _, line, score in points if line == "F1") == pytest.approx(
        load(folder / "out" / "eval_results.json")["eval_best_f1"]
    )


def test_wandb_without_a_valid_key_is_reported_before_anything_is_read():
    """In another process: W&B reads its environment once."""
    pytest.importorskip("wandb", reason=WANDB)
    code = "from qa.names import tracker_problems; print(*tracker_problems(['wandb']))"
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    for more, problem in (
        ({}, "--report_to wandb: WANDB_API_KEY .*run `wandb login`.*"),
        ({"WANDB_MODE": "offline"}, ""),
    ):
        environment |= {"WANDB_API_KEY": "short", **more}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
        assert re.fullmatch(problem, done.stdout.splitlines()[-1]), done.stdout + done.stderr


def key_of(item) -> str:
    return "/".join(item.nested_key) or item.key


def steps_of(rows: list[dict], name: str) -> list[tuple]:
    """Return the step and the value of each row of W&B's history that has a value of this name."""
    return [(row["train/global_step"], row[name]) for row in rows if name in row]


def records_of(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of W&B: a log of LevelDB after 7 bytes, with records in pieces within blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(data):
        room = -place % 32768 or 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""
