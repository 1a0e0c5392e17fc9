"""Adapters: what is trained and saved, loading, merging, resuming and mistakes."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import load
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM

import run_qa
import run_seq2seq_qa
from qa.arguments import ModelArguments
from qa.errors import UserError
from qa.models import load_config_and_tokenizer, load_extractive_model, load_seq2seq_model


pytest.importorskip("peft", reason="adapters need peft; for tests: pip install -r requirements-dev.txt")

KINDS = ("bert", "llama", "t5")
SETTINGS = """--max_seq_length 96 --doc_stride 32 --max_train_samples 16 --max_eval_samples 8 --per_device_train_batch_size 4
    --max_steps 4 --save_steps 2 --logging_steps 1 --disable_tqdm True --learning_rate 5e-3 --pad_to_max_length False
    --lora_r 4 --eval_report False --do_train --do_eval""".split()


@dataclass
class Run:
    kind: str
    base: Path
    output: Path
    flags: list

    def again(self, output: Path, *more, drop: tuple = ()) -> None:
        """Run the same command with another output folder, further flags, and without some flags that have no value."""
        script = run_seq2seq_qa if self.kind == "t5" else run_qa
        flags = [flag for flag in self.flags if flag not in drop]
        script.main([*flags, "--output_dir", str(output), *map(str, more)])

    def answers(self, folder: Path | None = None) -> bytes:
        return ((folder or self.output) / "eval_nbest_predictions.json").read_bytes()

    def load(self, name: Path) -> torch.nn.Module:
        model_args = ModelArguments(model_name_or_path=str(name))
        config, _ = load_config_and_tokenizer(model_args)
        return (load_seq2seq_model if self.kind == "t5" else load_extractive_model)(config, model_args)


@pytest.fixture(scope="module", params=KINDS)
def run(request, still_models, squad_files, tmp_path_factory) -> Run:
    """A training of adapters and its evaluation, with checkpoints of the steps 2 and 4."""
    kind, output = request.param, tmp_path_factory.mktemp("lora") / "out"
    flags = [*SETTINGS, "--model_name_or_path", str(still_models / kind)]
    flags += ["--train_file", str(squad_files / "train.json"), "--validation_file", str(squad_files / "dev.json")]
    flags += ["--predict_with_generate", "--max_answer_length", "8"] if kind == "t5" else []
    made = Run(kind, still_models / kind, output, flags)
    made.again(output)
    return made


def test_adapters_and_head_are_saved_and_nothing_else(run):
    """The head of models that mark answers is trained in full; T5's own goes on as it is."""
    for folder in (run.output, run.output / "checkpoint-4"):
        tensors = load_file(folder / "adapter_model.safetensors")
        others = {name for name in tensors if ".lora_" not in name}
        heads = {"base_model.model.qa_outputs.weight", "base_model.model.qa_outputs.bias"}
        assert others == (set() if run.kind == "t5" else heads)
        assert not list(folder.glob("model*")) and not (folder / "config.json").exists()
        assert load(folder / "adapter_config.json")["base_model_name_or_path"] == str(run.base)
    assert not list(run.output.glob("checkpoint-*/README.md"))
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    written = load(run.output / "checkpoint-4" / "files.json")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= written.keys()
    results = load(run.output / "train_results.json")
    assert results["train_parameters"] == sum(tensor.numel() for tensor in tensors.values())


def test_loaded_adapters_answer_as_the_trained_model(run, tmp_path):
    """So the base, which is not saved, is as it was; the run that evaluates has no flag of adapters."""
    base = {name: tensor.clone() for name, tensor in load_file(run.base / "model.safetensors").items()}
    run.again(tmp_path / "scores", "--model_name_or_path", run.output, "--do_train", "False", "--lora_r", "4", drop=())
