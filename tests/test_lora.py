"""Adapters: what is trained and saved, loading, merging, resuming and mistakes."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import load, undescribed_files
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM, AutoTokenizer

import run_qa
import run_seq2seq_qa
from qa.answerer import Answerer
from qa.arguments import ModelArguments
from qa.errors import UserError
from qa.models import load_config_and_tokenizer, load_extractive_model, load_seq2seq_model
from qa.reading import flatten_squad


pytest.importorskip("peft", reason="adapters need peft; for tests: pip install -r requirements-dev.txt")

KINDS = ("bert", "llama", "t5")
SETTINGS = """--max_seq_length 96 --doc_stride 32 --max_train_samples 16 --max_eval_samples 8 --per_device_train_batch_size 4
    --max_steps 4 --save_steps 2 --logging_steps 1 --disable_tqdm True --learning_rate 5e-3 --pad_to_max_length False
    --eval_report False --do_eval""".split()
LORA = ["--do_train", "--lora_r", "4"]


@dataclass
class Run:
    kind: str
    base: Path
    output: Path
    flags: list

    def start(self, model: Path, output: Path, *more) -> None:
        """Start the script with the flags of an evaluation, and further ones."""
        script = run_seq2seq_qa if self.kind == "t5" else run_qa
        names = ["--model_name_or_path", model, "--output_dir", output]
        script.main(list(map(str, [*self.flags, *names, *more])))

    def load(self, name: Path) -> torch.nn.Module:
        model_args = ModelArguments(model_name_or_path=str(name))
        config, _ = load_config_and_tokenizer(model_args)
        return (load_seq2seq_model if self.kind == "t5" else load_extractive_model)(config, model_args).eval()

    def outputs(self, model: torch.nn.Module) -> torch.Tensor:
        """Return what a model computes for a question and a context."""
        words = AutoTokenizer.from_pretrained(self.output)("Which river?", "The Nile is long.", return_tensors="pt")
        inputs = {"input_ids": words["input_ids"]} | ({"labels": words["input_ids"]} if self.kind == "t5" else {})
        with torch.no_grad():
            return model(**inputs)["logits" if self.kind == "t5" else "start_logits"]


def qas(file: str) -> list[dict]:
    return flatten_squad(load(Path(file))["data"])


def answers(folder: Path) -> bytes:
    return (folder / "eval_nbest_predictions.json").read_bytes()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def runs(still_models, squad_files, tmp_path_factory):
    """Return a function that trains adapters of a kind of model, once, and evaluates; with checkpoints of the steps 2 and 4."""

    @cache
    def make(kind: str) -> Run:
        return trained(kind, still_models / kind, squad_files, tmp_path_factory.mktemp(kind) / "out")

    return make


@pytest.fixture
def run(runs, kind) -> Run:
    return runs(kind)


def trained(kind: str, base: Path, squad_files: Path, output: Path) -> Run:
    flags = [
        *SETTINGS,
        "--train_file",
        str(squad_files / "train.json"),
        "--validation_file",
        str(squad_files / "dev.json"),
    ]
    flags += {"bert": [], "llama": ["--pack"], "t5": ["--predict_with_generate", "--max_answer_length", "8"]}[kind]
    made = Run(kind, base, output, flags)
    made.start(made.base, output, *LORA)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_head_are_saved_and_nothing_else(run):
    """The head of models that mark answers is trained in full; T5's own goes on as it is."""
    for folder in (run.output, run.output / "checkpoint-4"):
        tensors = load_file(folder / "adapter_model.safetensors")
        others = {name for name in tensors if ".lora_" not in name}
        heads = {"base_model.model.qa_outputs.weight", "base_model.model.qa_outputs.bias"}
        assert others == (set() if run.kind == "t5" else heads)
        assert not list(folder.glob("model*")) and not (folder / "config.json").exists()
        assert load(folder / "adapter_config.json")["base_model_name_or_path"] == str(run.base)
    assert not list(run.output.glob("checkpoint-*/README.md")) and not undescribed_files(run.output)
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    written = load(run.output / "checkpoint-4" / "files.json")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= written.keys()
    assert "library_name: peft" in (run.output / "README.md").read_text()
    results = load(run.output / "train_results.json")
    assert results["train_parameters"] == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_adapters_answer_as_the_trained_model(run, tmp_path):
    """So the base, which is not saved, is as it was in training; the command has no flag of adapters."""
    run.start(run.output, tmp_path)
    assert answers(tmp_path) == answers(run.output)
    assert load(tmp_path / "eval_results.json")["eval_loss"] == load(run.output / "eval_results.json")["eval_loss"]
    expected = load(run.output / "eval_predictions.json")
    asked = [row for row in qas(run.flags[run.flags.index("--validation_file") + 1]) if row["id"] in expected]
    found = Answerer(run.output).answer([row["question"] for row in asked], [row["context"] for row in asked])
    assert [answer.text for answer in found] == [expected[row["id"]] for row in asked]
    model, base = run.load(run.output), load_file(run.base / "model.safetensors")
    loaded = {name.replace(".base_layer", ""): tensor for name, tensor in model.get_base_model().named_parameters()}
    loaded = {name.removeprefix("transformer."): tensor for name, tensor in loaded.items()}  # of Llama for questions
    same = [
        name
        for name, tensor in base.items()
        if torch.equal(loaded.get(name.removeprefix("model."), tensor + 1), tensor)
    ]
    assert len(same) >= len(base) - 2  # the head of another task, or that of before the training


@pytest.mark.parametrize("kind", ["bert"])
def test_a_resumed_run_is_the_same_run(run, tmp_path, caplog):
    shutil.copytree(run.output / "checkpoint-2", tmp_path / "checkpoint-2")
    run.start(run.base, tmp_path, *LORA)
    assert load(tmp_path / "train_results.json")["train_resumed_step"] == 2
    assert weights(tmp_path).keys() == weights(run.output).keys()
    assert all(torch.equal(tensor, weights(run.output)[name]) for name, tensor in weights(tmp_path).items())
    assert answers(tmp_path) == answers(run.output)
    before = (tmp_path / "adapter_model.safetensors").stat()
    run.start(run.base, tmp_path, *LORA)
    assert "left to do: nothing" in caplog.text and (tmp_path / "adapter_model.safetensors").stat() == before
    with pytest.raises(UserError) as error:
        run.start(run.base, tmp_path, "--do_train", "--lora_r", "8", "--max_steps", "6", "--resume_anyway")
    assert error.value.problems[0] == "--lora_r: now 8, was 4" and "--resume_anyway" not in error.value.problems[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_are_a_whole_model(run, tmp_path):
    """The finished command with --merge_lora merges; every tool loads the result."""
    shutil.copytree(run.output, tmp_path, dirs_exist_ok=True)
    run.start(run.base, tmp_path, *LORA, "--merge_lora")
    assert not list(tmp_path.glob("adapter*")) and (tmp_path / "checkpoint-4" / "adapter_config.json").is_file()
    plain = (AutoModelForSeq2SeqLM if run.kind == "t5" else AutoModelForQuestionAnswering).from_pretrained(tmp_path)
    expected = run.outputs(run.load(run.output))
    assert torch.allclose(run.outputs(plain), expected, atol=1e-4)
    assert not torch.allclose(run.outputs(run.load(run.base)), expected, atol=1e-2)
    run.start(tmp_path, tmp_path / "scores")
    assert answers(tmp_path / "scores") == answers(tmp_path)
    before = (tmp_path / "model.safetensors").stat()
    run.start(run.base, tmp_path, *LORA, "--merge_lora")
    assert (tmp_path / "model.safetensors").stat() == before


@pytest.mark.parametrize("kind", ["llama"])
def test_adapters_are_trained_further(run, tmp_path):
    """The same ones, from where they are, and with gradient checkpointing as without; the best ones are kept."""
    best = ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "2", "--learning_rate", "1e-3"]
    run.start(run.output, tmp_path / "plain", "--do_train", *best)
    run.start(run.output, tmp_path / "checkpointed", "--do_train", *best, "--gradient_checkpointing")
    plain, checkpointed = weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")
    assert plain.keys() == weights(run.output).keys()
    assert not all(torch.equal(tensor, weights(run.output)[name]) for name, tensor in plain.items())
    assert all(torch.allclose(tensor, plain[name], atol=1e-6) for name, tensor in checkpointed.items())
    with pytest.raises(UserError, match="already holds adapters, of rank 4"):
        run.start(run.output, tmp_path / "again", *LORA)


@pytest.mark.parametrize("kind", ["bert"])
def test_adapters_that_others_saved(run, tmp_path):
    """Without a tokenizer, of peft's class for questions, which would drop token types, and next to their model's name alone."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run.output / name, tmp_path)
    settings = load(tmp_path / "adapter_config.json")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "QUESTION_ANS"}))
    run.start(tmp_path, tmp_path / "scores")
    assert answers(tmp_path / "scores") == answers(run.output)
    tensors = weights(tmp_path)
    save_file(
        {name: tensor for name, tensor in tensors.items() if "layer.1" not in name},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="tensors of the adapters are missing"):
        run.start(tmp_path, tmp_path / "scores")
    without_head = settings | {"modules_to_save": None, "base_model_name_or_path": str(run.base.parent / "llama")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(without_head))
    save_file(
        {name: tensor for name, tensor in tensors.items() if "qa_outputs" not in name},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="Target modules"):
        run.start(tmp_path, tmp_path / "scores")


@pytest.mark.parametrize("kind", ["bert"])
def test_without_peft_it_is_one_line_before_any_work(run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "peft" else find(name, *args))
    for model, flags in ((run.base, LORA), (run.output, ["--do_train"])):
        with pytest.raises(UserError, match="needs the package peft, which is not installed; run `pip install peft`"):
            run.start(model, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
