"""DeepSpeed's ZeRO stages and FSDP on two ranks: training, checkpoint, resuming from it, evaluation, and one rank's losses.

All jobs for the simulated Gaudi run in one launch (see ranks_run.py), and as one rank in this process, in fp32.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, distance_trained, history_of, load, read_rows, start_ranks, undescribed_files
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import run_qa
from qa.checkpoint_files import refusal
from qa.device import training_arguments
from qa.errors import UserError
from qa.room import saved_bytes
from trainer_qa import QuestionAnsweringTrainer
from utils_qa import PaddingCollator, prepare_features


CONFIGS = ROOT / "tests" / "configs"
STAGES = ("deepspeed_zero_1", "deepspeed_zero_2", "deepspeed_zero_3")
STOPPED = "stopped_deepspeed_zero_3/checkpoint-3"
FLAGS = """--do_train --do_eval --max_train_samples 32 --max_eval_samples 33 --max_seq_length 192 --doc_stride 64
    --learning_rate 5e-4 --num_train_epochs 2 --save_strategy epoch --logging_steps 1 --report_to none --disable_tqdm True"""
LORA = """--lora_r 4 --lora_dropout 0 --learning_rate 3e-2 --max_steps 2 --save_strategy steps --save_steps 1
    --eval_report False"""
# bf16 keeps three digits, and DeepSpeed logs losses in it; FSDP trains in fp32 here. Rounding errors of the weights add up
# over the steps, and differ between CPUs with and without bf16 units: of a last loss of 1.4, 0.06 or 0.09.
TOLERANCES = {"fsdp": {"abs": 5e-4}} | dict.fromkeys(STAGES, {"rel": 0.06, "abs": 0.15})
# The design document's, which its DeepSpeed recipe names without --bf16.
ZERO_2 = {
    "steps_per_print": 64,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "bf16": {"enabled": True},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_scatter": False, "contiguous_gradients": False},
}
PROCESS_SECONDS = 900

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="no DeepSpeed: pip install -r requirements-dev.txt"
)


def job(name: str, folder: Path, still_models: Path, squad_files: Path, batch: int = 4) -> list[str]:
    """Return a run by name: `deepspeed_zero_2`, `fsdp`, or plain for `one`.

    `..._resumed` resumes from the first checkpoint of the former, with ZeRO-3 from that of `stopped_...`, which gets a
    signal in its third step. `..._causal` takes two steps with a Llama. Its layers and those of ZeRO-2 are checkpointed.
    `..._lora` trains adapters in two steps, with a checkpoint of each; the run that resumes from the first merges them."""
    model = still_models / ("llama" if name.endswith("_causal") else "bert")
    words = ["run_qa", "--model_name_or_path", model, "--train_file", squad_files / "train.json"]
    words += ["--validation_file", squad_files / "dev.json", *FLAGS.split(), "--output_dir", folder / name]
    words += ["--per_device_train_batch_size", batch]
    kind = name.removesuffix("_resumed").removesuffix("_causal").removeprefix("stopped_")
    kind = kind.removesuffix("_lora")
    if kind == "fsdp":
        words += ["--fsdp", "full_shard auto_wrap", "--fsdp_config", CONFIGS / "fsdp.json"]
    elif kind in STAGES:
        words += ["--deepspeed", CONFIGS / f"{kind}.json", *["--bf16"] * (kind == "deepspeed_zero_1")]
    words += ["--max_steps", "2"] * name.endswith("_causal")
    words += ["--gradient_checkpointing"] * (name.endswith("_causal") or kind == "deepspeed_zero_2")
    if "_lora" in name:
        first = folder / f"{kind}_lora" / "checkpoint-1"
        words += [*LORA.split(), *(["--merge_lora", "--resume_from_checkpoint", first] if "_resumed" in name else [])]
    elif name.endswith("_resumed"):
        words += ["--resume_from_checkpoint", folder / (STOPPED if kind in STOPPED else f"{kind}/checkpoint-4")]
    return list(map(str, words))


def run_two(folder: Path, engine: str, environment: dict, jobs: dict[str, list[str]]) -> Path:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = start_ranks(folder, engine, environment, ROOT / "tests" / "runs" / "ranks_run.py", folder / "jobs.json")
    assert process.wait(PROCESS_SECONDS) == 0, (folder / "err").read_text()[-6000:]
    return folder


@pytest.fixture(scope="module")
def one(still_models, squad_files, tmp_path_factory) -> Path:
    """Return the output folder of a plain run as one rank on the CPU."""
    folder = tmp_path_factory.mktemp("one")
    run_qa.main(job("one", folder, still_models, squad_files, batch=8)[1:])
    return folder / "one"


@pytest.fixture(scope="module")
def cards(simulated_gaudi, still_models, squad_files, tmp_path_factory) -> Path:
    """Return the output folders of all kinds on two simulated cards."""
    folder = tmp_path_factory.mktemp("cards")
    # FSDP first: DeepSpeed does not undo its changes in a process.
    names = [name for kind in ("fsdp", *STAGES) for name in (kind, f"{kind}_resumed")]
    names.insert(names.index("deepspeed_zero_3_resumed"), "stopped_deepspeed_zero_3")
    names += ["deepspeed_zero_3_causal"]
    names += [f"{kind}_lora{again}" for kind in STAGES[1:] for again in ("", "_resumed")] if find_spec("peft") else []
    lazy = ["--use_habana", "--use_lazy_mode"]
    jobs = {name: job(name, folder, still_models, squad_files) + lazy for name in names}
    return run_two(folder, "deepspeed", simulated_gaudi.environment(), jobs)


@pytest.mark.parametrize("kind", [*STAGES, "fsdp"])
def test_two_cards_train_as_one_rank(one, cards, kind):
    expected, found = (history_of(folder, "loss") for folder in (one, cards / kind))
    assert found == pytest.approx(expected, **TOLERANCES[kind]) and len(found) == 8
    expected, found = (load(folder / "eval_results.json") for folder in (one, cards / kind))
    assert expected["eval_f1"] > 20 and abs(found["eval_f1"] - expected["eval_f1"]) < 10
    assert len(load(cards / kind / "eval_predictions.json")) == 33


@pytest.mark.parametrize("kind", [*STAGES, "fsdp"])
def test_a_training_resumes_from_its_checkpoint(cards, kind):
    """To the same weights, whole ones, and the same answers."""
    resumed = cards / f"{kind}_resumed"
    expected, found = (load_file(folder / "model.safetensors") for folder in (cards / kind, resumed))
    assert len(found) > 50 and all(tensor.numel() and tensor.equal(found[name]) for name, tensor in expected.items())
    assert load(resumed / "eval_predictions.json") == load(cards / kind / "eval_predictions.json")
    assert load(resumed / "train_results.json")["train_resumed_step"] == (3 if kind in STOPPED else 4)


@pytest.mark.parametrize("kind", [*STAGES, "fsdp"])
def test_the_bytes_of_a_checkpoint_are_those_of_a_check(cards, still_models, kind):
    """The tokenizer and small files come on top: 0.1 MB, and as much for each rank with DeepSpeed."""
    model = AutoModelForQuestionAnswering.from_pretrained(still_models / "bert")
    args = {"do_train": True, "save_only_model": False, "optim": "adamw_torch", "bf16": False, "fp16": False}
    config = str(CONFIGS / f"{kind}.json") if kind in STAGES else None
    weights, states = saved_bytes(model, argparse.Namespace(**args, deepspeed=config, fsdp=kind == "fsdp"))
    assert (cards / kind / "model.safetensors").stat().st_size == pytest.approx(weights, rel=0.01)
    written = sum(path.stat().st_size for path in (cards / kind / "checkpoint-4").rglob("*") if path.is_file())
    assert weights + states < written < weights + states + 3e5
    assert not undescribed_files(cards / kind)


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(cards):
    assert [path.name for path in cards.glob("stopped_*/checkpoint-*")] == ["checkpoint-3"]
    ends = [line for line in (cards / "out").read_text().splitlines() if "exit status" in line]
    assert len(ends) == 2 and all("exit status 143: stopped by SIGTERM after step 3 of 8" in line for line in ends)


def test_a_causal_checkpoint_keeps_its_weights(cards, still_models):
    """Random weights would differ by 0.1; two steps at a rate of 5e-4 move each by 1e-3."""
    assert 0 < distance_trained(still_models / "llama", cards / "deepspeed_zero_3_causal") < 0.01


def test_rank_0_alone_prints(cards):
    printed = (cards / "out").read_text() + (cards / "err").read_text()
    lines = [line for line in printed.splitlines() if line.startswith("[rank 1]")]
    assert not [
        line
        for line in lines
        if "simulated Gaudi: ops" not in line
        and not line.startswith(("[rank 1] DeepSpeed deepspeed.ops", "[rank 1] exit"))
    ]


@pytest.mark.skipif(find_spec("peft") is None, reason="no peft: pip install -r requirements-dev.txt")
@pytest.mark.parametrize("kind", STAGES[1:])
def test_adapters_of_two_cards_are_resumed_and_merged(cards, still_models, kind):
    """Checkpoints hold what is trained alone; the merged model is the base's weights and the adapters, in bf16."""
    once, again = cards / f"{kind}_lora", cards / f"{kind}_lora_resumed"
    adapters, resumed = (load_file(path / "checkpoint-2" / "adapter_model.safetensors") for path in (once, again))
    assert adapters.keys() == resumed.keys() and load(again / "train_results.json")["train_resumed_step"] == 1
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in adapters.items())
    whole = sum(path.stat().st_size for path in (again / "checkpoint-2").rglob("*") if path.is_file())
    assert whole < load(again / "train_results.json")["train_parameters"] * 30 + 200_000
    merged, base = load_file(again / "model.safetensors"), load_file(still_models / "bert" / "model.safetensors")
    assert merged.keys() == base.keys() and not list(again.glob("adapter*"))
    for name, tensor in merged.items():
        expected = with_adapter(name, base[name].bfloat16().float(), adapters)
        assert torch.allclose(tensor.float(), expected, atol=2e-4, rtol=2**-7), name
    assert load(again / "eval_results.json")["eval_samples"] == 33


def with_adapter(name: str, weight: torch.Tensor, adapters: dict) -> torch.Tensor:
    """Return a weight with its adapter, or that of the trained head."""
    name = f"base_model.model.{name}"
    below, above = (adapters.get(name.replace(".weight", f".lora_{part}.weight")) for part in "AB")
    if below is not None and below is not above:
        return weight + 2 * above.float() @ below.float()
    return adapters.get(name, weight).float()


def test_the_configuration_is_the_documents():
    assert load(CONFIGS / "deepspeed_zero_2.json") == ZERO_2
    for number, name in enumerate(STAGES, 1):
        assert load(CONFIGS / f"{name}.json")["zero_optimization"]["stage"] == number


def test_two_ranks_without_a_gaudi(one, still_models, squad_files, tmp_path):
    """The same configuration, also without --bf16: transformers would refuse it. Nothing is compiled first. ZeRO-3 packs.

    Both runs are started again after their end, and evaluate with another flag.
    """
    names = ("deepspeed_zero_2", "deepspeed_zero_3_causal")
    jobs = {}
    for name, flags in zip(names, ([], ["--pack"])):
        jobs[name] = [*job(name, tmp_path, still_models, squad_files), *flags]
        jobs[f"{name}, evaluated again"] = [*jobs[name], "--eval_report", "False"]
    run_two(tmp_path, "deepspeed", dict(os.environ), jobs)
    assert history_of(tmp_path / "deepspeed_zero_2", "loss") == pytest.approx(
        history_of(one, "loss"), **TOLERANCES["deepspeed_zero_2"]
    )
    assert load(tmp_path / "deepspeed_zero_2" / "eval_results.json")["eval_f1"] > 20
    check_evaluated_again(tmp_path, names)
    assert "built successfully" not in (tmp_path / "out").read_text() + (tmp_path / "err").read_text()
    check_one_rank_goes_on(tmp_path, still_models, squad_files)


def test_a_trainer_trains_with_deepspeed_whatever_its_arguments_say(tiny_model, squad_files, tmp_path):
    """The libraries' trainers do not read `do_train`, which only scripts set."""
    rows, tokenizer = read_rows(squad_files / "train.json")[:8], AutoTokenizer.from_pretrained(tiny_model)
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "report_to": "none", "disable_tqdm": True}
    trainer = QuestionAnsweringTrainer(
        model=AutoModelForQuestionAnswering.from_pretrained(tiny_model),
        args=training_arguments(False)(str(tmp_path), deepspeed=str(CONFIGS / "deepspeed_zero_2.json"), **settings),
        train_dataset=prepare_features(rows, tokenizer, 96, 32),
        data_collator=PaddingCollator(tokenizer),
    )
    trainer.train()
    assert trainer.deepspeed is not None and (tmp_path / "checkpoint-1" / "latest").exists()


def check_evaluated_again(folder: Path, names: tuple[str, ...]) -> None:
    """Check that finished runs, started again without a report, have evaluated to the same scores."""
    scores = re.findall(r"^(?:EM|F1) .*", (folder / "out").read_text(), re.MULTILINE)
    assert len(scores) == 4 * len(names)
    assert all(scores[place : place + 2] == scores[place + 2 : place + 4] for place in range(0, len(scores), 4))
    assert not any((folder / name / "eval_report.json").exists() for name in names)


def check_one_rank_goes_on(folder: Path, still_models: Path, squad_files: Path) -> None:
    """Resume from a checkpoint of two ranks as one, after the command that the refusal names; compare losses with theirs.

    No launcher starts that one.
    """
    checkpoint = folder / "deepspeed_zero_2" / "checkpoint-4"
    flags = SimpleNamespace(deepspeed=str(CONFIGS / "deepspeed_zero_2.json"), world_size=1)
    command = re.search("run `python (.*)`", refusal(checkpoint, flags))[1]
    subprocess.run([sys.executable, *command.split()], check=True, capture_output=True)
    words = job("deepspeed_zero_2_resumed", folder, still_models, squad_files, batch=8)[1:]
    words = [sys.executable, ROOT / "run_qa.py", *words, "--do_eval", "False", "--resume_anyway"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Logging error" not in done.stderr, done.stderr
    one, two = folder / "deepspeed_zero_2_resumed", folder / "deepspeed_zero_2"
    assert history_of(one, "loss") == pytest.approx(history_of(two, "loss"), **TOLERANCES["deepspeed_zero_2"])
    assert load(one / "train_results.json")["train_resumed_step"] == 4


def test_impossible_settings_are_reported_at_once(still_models, squad_files, tmp_path):
    """All together; the libraries report one in a traceback, after data and model are loaded."""
    words = job("fsdp", tmp_path, still_models, squad_files)[1:]
    with pytest.raises(UserError) as error:
        run_qa.main(
            [
                *words,
                "--do_train",
                "False",
                "--deepspeed",
                str(CONFIGS / "deepspeed_zero_2.json"),
                "--early_stopping_patience",
                "2",
            ]
        )
    beginnings = [" ".join(problem.replace(": ", " ").split()[:2]) for problem in error.value.problems]
    deepspeed = f"--deepspeed {CONFIGS / 'deepspeed_zero_2.json'}"
    assert beginnings == ["--early_stopping_patience compares", deepspeed, "--fsdp accelerate"]
    assert not list(tmp_path.iterdir())


def test_a_file_that_contradicts_the_flags(still_models, squad_files, tmp_path):
    """transformers reports it in a traceback, after data and model are loaded."""
    file = CONFIGS / "deepspeed_zero_2.json"
    words = job("none", tmp_path, still_models, squad_files)[1:]
    with pytest.raises(UserError) as error:
        run_qa.main([*words, "--deepspeed", str(file), "--max_grad_norm", "0.5"])
    problem = f'--deepspeed {file}: gradient_clipping=1.0 in the file, but max_grad_norm=0.5 of the flags; make them equal, or write "auto"'
    assert error.value.problems == (problem,) and not list(tmp_path.iterdir())
