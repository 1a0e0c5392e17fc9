"""Every flag that optimum-habana adds, changes or ignores: followed, refused, or reported as without effect; in tables."""

import ast
import dataclasses
import json
import math
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import transformers
from helpers import ROOT, corpus_texts, load
from small_tokenizers import make_tokenizers


COMPILE = ["--torch_compile", "--torch_compile_backend", "hpu_backend"]
EVALUATE = ["--do_eval", "--max_eval_samples", 8, "--per_device_eval_batch_size", 4]
FIND = ["--max_steps", 4, "--auto_find_batch_size", "--save_strategy", "steps", "--save_steps", 2]
MEMORY = dict.fromkeys(
    ("too large", "found", "found and resumed"), 3 * 2**20
)  # bytes; with batches of 8 it takes 7 MB
# Runs by name: model, mode and flags. Those of a run have different places in what is seen of it.
RUNS = {
    "plain": ("bert", "lazy", EVALUATE),
    "several": (
        "bert",
        "lazy",
        [*EVALUATE, "--use_hpu_graphs", "--max_hpu_graphs", 1, "--disable_tensor_cache_hpu_graphs"]
        + ["--non_blocking_data_copy", False, "--adjust_throughput", "--sdp_on_bf16", "--adam_epsilon", 1e-3]
        + ["--attn_implementation", "eager", "--profiling_warmup_steps", 1, "--profiling_steps", 1],
    ),
    "training": (
        "bert",
        "lazy",
        ["--pipelining_fwd_bwd", "--optim", "adagrad", "--profiling_record_shapes", False, "--profiling_with_stack"]
        + [*EVALUATE, "--profiling_warmup_steps_eval", 1, "--profiling_steps_eval", 1],
    ),
    "graphs": (
        "bert",
        "lazy",
        ["--use_hpu_graphs_for_training", "--max_hpu_graphs", 1, "--disable_tensor_cache_hpu_graphs"],
    ),
    "infinite": ("bert", "lazy", ["--learning_rate", 1e18, "--nan_patience", 9, "--logging_nan_inf_filter", True]),
    "fused": (
        "smollm3",
        "eager",
        ["--attn_implementation", "gaudi_fused_sdpa", "--flash_attention_recompute", "--flash_attention_fast_softmax"],
    ),
    "not fused": ("smollm3", "eager", ["--attn_implementation", "eager"]),
    "writes": ("t5", "eager", [*EVALUATE, "--predict_with_generate", "--ignore_eos", False]),
    "compiled": (
        "bert",
        "compile",
        ["--compile_dynamic", True, "--cache_size_limit", 5]
        + ["--inline_inbuilt_nn_modules", False, "--allow_unspec_int_on_nn_module", True],
    ),
    "first step": (
        "bert",
        "compile",
        ["--compile_from_sec_iteration", "--max_steps", 1, "--use_regional_compilation"],
    ),
    "too large": ("bert", "lazy", []),
    "found": ("bert", "lazy", FIND),
    "found and resumed": ("bert", "lazy", [*FIND, "--resume_from_checkpoint", "../found/out/checkpoint-2"]),
    "checked": ("bert", "lazy", ["--check"]),
    "dropout": ("bert_dropout", "eager", []),
    "no dropout": ("bert_still", "eager", []),
    "dropout of xlm-roberta": ("xlm-roberta_dropout", "eager", []),
    "no dropout of xlm-roberta": ("xlm-roberta_still", "eager", []),
}

NO_MODEL = "no model for question answering reads it; omit it"
FUSED = "needs --attn_implementation gaudi_fused_sdpa; add that, or omit it"
NOT_SUPPORTED = "supported by optimum-habana"
# Flags that are refused, with a part of the message.
REFUSED = {
    "flash_attention_recompute": ([], FUSED),
    "flash_attention_fast_softmax": ([], FUSED),
    "flash_attention_causal_mask": ([], NO_MODEL),
    "flash_attention_fp8": ([], NO_MODEL),
    "context_parallel_size": ([2], "read a window on one card; omit it"),
    "fp8": ([], "needs Intel's transformer engine, which is not installed"),
    "half_precision_backend": (["cpu_amp"], "computes nothing on a Gaudi"),
    "use_cpu": ([], "--use_cpu and --use_habana contradict each other"),
    "attn_implementation": (
        ["gaudi_fused_sdpa"],
        "models of the type bert do not compute their attention that way on this device; use eager",
    ),
    "max_hpu_graphs": ([1], "must be using hpu graphs"),
    "disable_tensor_cache_hpu_graphs": ([], "must be using hpu graphs"),
    "fp16": ([], NOT_SUPPORTED),
    "fp16_full_eval": ([], NOT_SUPPORTED),
    "tf32": ([True], NOT_SUPPORTED),
    "tpu_num_cores": ([1], NOT_SUPPORTED),
    "tpu_metrics_debug": ([], NOT_SUPPORTED),
    "mp_parameters": (["x"], NOT_SUPPORTED),
}
UNREAD = "optimum-habana's trainer does not read it"
# Flags without effect in an eager run on one card, with the reason in the line about them.
UNUSED = {
    "compile_dynamic": ([True], "needs --torch_compile"),
    "compile_from_sec_iteration": ([], "needs --torch_compile"),
    "cache_size_limit": ([5], "needs --torch_compile"),
    "use_regional_compilation": ([], "needs --torch_compile"),
    "inline_inbuilt_nn_modules": ([True], "needs --torch_compile"),
    "allow_unspec_int_on_nn_module": ([True], "needs --torch_compile"),
    "use_compiled_autograd": ([], "needs --torch_compile and --deepspeed"),
    "pipelining_fwd_bwd": ([], "needs lazy mode"),
    "profiling_warmup_steps": ([1], "needs --profiling_steps"),
    "profiling_warmup_steps_eval": ([1], "needs --profiling_steps_eval"),
    "profiling_record_shapes": ([False], "needs --profiling_steps or --profiling_steps_eval"),
    "profiling_with_stack": ([], "needs --profiling_steps or --profiling_steps_eval"),
    "minimize_memory": ([], "needs --fp8"),
    "distribution_strategy": (["fast_ddp"], "needs several cards"),
    "ignore_eos": ([False], "needs --predict_with_generate"),
    "use_zero3_leaf_promotion": ([], UNREAD),
    "fp16_opt_level": (["O2"], UNREAD),
    "jit_mode_eval": ([], UNREAD),
    "torch_empty_cache_steps": ([1], UNREAD),
}
# The same of the run named "graphs", which records graphs in training alone.
UNUSED_IN_TRAINING = {
    "max_hpu_graphs": "needs --use_hpu_graphs_for_inference",
    "disable_tensor_cache_hpu_graphs": "needs --use_hpu_graphs_for_inference",
}
TRAINER = "tests/runs/test_gaudi_trainer.py::"
# Every flag, and how it is shown that it is followed: by a test elsewhere, by a run here and what is seen of it, or None
# for one that is only refused or without effect.
FLAGS = {
    "use_habana": f"{TRAINER}test_the_gaudi_configuration_reaches_the_run",
    "gaudi_config_name": f"{TRAINER}test_the_gaudi_configuration_reaches_the_run",
    "use_lazy_mode": "tests/runs/test_gaudi_models.py::test_the_runs_used_the_card_as_their_flags_say",
    "use_hpu_graphs": lambda seen: (seen["several"]["graph_wraps"], seen["plain"]["graph_wraps"]) == (1, 0),
    "use_hpu_graphs_for_inference": "tests/runs/test_gaudi_models.py::test_the_runs_used_the_card_as_their_flags_say",
    "use_hpu_graphs_for_training": lambda seen: seen["graphs"]["graph_wraps"] == 1,
    "use_compiled_autograd": None,
    "compile_from_sec_iteration": lambda seen: seen["first step"]["compiles"] == 0 < seen["compiled"]["compiles"],
    "compile_dynamic": lambda seen: seen["compiled"]["dynamic"] is True is not seen["first step"]["dynamic"],
    "use_zero3_leaf_promotion": None,
    "cache_size_limit": lambda seen: seen["compiled"]["cache_size_limit"] == 5,
    "use_regional_compilation": lambda seen: (
        [seen[run]["outermost"] for run in ("compiled", "first step")]
        == ["OptimizedModule", "BertForQuestionAnswering"]
    ),
    "inline_inbuilt_nn_modules": lambda seen: not seen["compiled"]["inline_inbuilt_nn_modules"],
    "allow_unspec_int_on_nn_module": lambda seen: seen["compiled"]["allow_unspec_int_on_nn_module"],
    "disable_tensor_cache_hpu_graphs": lambda seen: seen["several"]["wrapped"][0][1]["disable_tensor_cache"],
    "max_hpu_graphs": lambda seen: seen["several"]["wrapped"][0][1]["max_graphs"] == 1,
    "distribution_strategy": f"{TRAINER}test_flags_of_several_ranks_are_followed",
    "context_parallel_size": None,
    "minimize_memory": None,
    "throughput_warmup_steps": "tests/test_buckets.py::test_tokens_and_padding_are_counted",
    "adjust_throughput": lambda seen: speeds(seen, "several") == 1 and speeds(seen, "plain") != 1,
    "pipelining_fwd_bwd": lambda seen: seen["training"]["mark_steps"] == seen["plain"]["mark_steps"] + 2,  # one a step
    "ignore_eos": lambda seen: seen["writes"]["generated"][0][1]["ignore_eos"] is False,
    "non_blocking_data_copy": lambda seen: (
        waits(seen, "plain") == {"waiting": False, "not waiting": True}
        and waits(seen, "several") == {"waiting": True, "not waiting": False}
    ),
    "profiling_warmup_steps": lambda seen: profiled_steps(seen, "several") == ["ProfilerStep#1"],
    "profiling_steps": lambda seen: profiled_steps(seen, "several") == ["ProfilerStep#1"],
    "profiling_warmup_steps_eval": lambda seen: profiled_steps(seen, "training") == ["ProfilerStep#1"],
    "profiling_steps_eval": lambda seen: profiled_steps(seen, "training") == ["ProfilerStep#1"],
    "profiling_record_shapes": lambda seen: traced(seen, "record_shapes") == (1, 0),
    "profiling_with_stack": lambda seen: traced(seen, "with_stack") == (0, 1),
    "optim": lambda seen: (seen["training"]["optimizer"], seen["plain"]["optimizer"]) == ("Adagrad", "AdamW"),
    "adam_epsilon": lambda seen: (seen["several"]["epsilon"], seen["plain"]["epsilon"]) == (1e-3, 1e-6),
    "logging_nan_inf_filter": lambda seen: all(map(math.isfinite, seen["infinite"]["losses"])),
    "ddp_bucket_cap_mb": f"{TRAINER}test_flags_of_several_ranks_are_followed",
    "ddp_find_unused_parameters": f"{TRAINER}test_flags_of_several_ranks_are_followed",
    "half_precision_backend": f"{TRAINER}test_the_gaudi_configuration_reaches_the_run",
    "attn_implementation": lambda seen: (
        [
            [name for name in seen[run]["modules"] if name.startswith("Bert") and name.endswith("SelfAttention")]
            for run in ("plain", "several")
        ]
        == [["BertSdpaSelfAttention"], ["BertSelfAttention"]]
    ),
    "flash_attention_recompute": lambda seen: seen["fused"]["attended"][0][0][-1] is True,
    "flash_attention_fast_softmax": lambda seen: seen["fused"]["attended"][0][0][-2] == "fast",
    "flash_attention_causal_mask": None,
    "flash_attention_fp8": None,
    "sdp_on_bf16": lambda seen: (seen["several"]["sdp_on_bf16"], seen["plain"]["sdp_on_bf16"]) == (True, False),
    "fp8": None,
}


def waits(seen: dict, run: str) -> dict[str, bool]:
    """Return whether a run has copies of batches to the card of each kind."""
    return {kind: number > 0 for kind, number in seen[run]["copies"].items()}


def speeds(seen: dict, run: str) -> float:
    """Return the ratio of the reported speed to that without evaluation and saving."""
    results = seen[run]["train_results"]
    return results["train_samples_per_second"] / results["train_steady_samples_per_second"]


def profiled_steps(seen: dict, run: str) -> list[str]:
    """Return the steps in a run's profile, numbered from 0."""
    events = [event["name"] for trace in seen[run]["traces"] for event in trace["traceEvents"]]
    return [name for name in events if name.startswith("ProfilerStep")]


def traced(seen: dict, setting: str) -> tuple:
    """Return a setting of the profiles of the two runs that have one."""
    return tuple(seen[run]["traces"][0].get(setting, 0) for run in ("several", "training"))


@pytest.fixture(scope="module")
def models(tiny_model, tiny_writers, tmp_path_factory) -> dict[str, Path]:
    """Return the folders of models by name: with and without dropout of the attention alone, and one for Habana's kernel."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tokenizers = make_tokenizers(corpus_texts())
    made = {"bert": tiny_model, "t5": tiny_writers["t5"]}
    kinds = {"smollm3": {"num_key_value_heads": 2, "initializer_range": 0.3}}
    for kind in ("bert", "xlm-roberta"):
        still = {"hidden_dropout_prob": 0.0, "initializer_range": 0.3}
        kinds[f"{kind}_still"] = still | {"attention_probs_dropout_prob": 0.0}
        kinds[f"{kind}_dropout"] = still | {"attention_probs_dropout_prob": 0.5}
    for name, settings in kinds.items():
        kind = name.split("_")[0]
        tokenizer = tokenizers["roberta" if kind == "xlm-roberta" else "bert"]
        settings = sizes | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | settings
        transformers.set_seed(0)
        config = transformers.AutoConfig.for_model(kind, **settings)
        transformers.AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        made[name] = folder / name
    return made


def flags_of(folder: Path, model: Path, squad_files: Path, mode: str, flags: list) -> list[str]:
    given = [
        "--model_name_or_path",
        model,
        "--output_dir",
        folder,
        "--do_train",
        "--train_file",
        squad_files / "train.json",
    ]
    given += [
        "--validation_file",
        squad_files / "dev.json",
        "--max_train_samples",
        16,
        "--max_steps",
        2,
        "--logging_steps",
        1,
    ]
    given += ["--max_seq_length", 96, "--doc_stride", 24, "--per_device_train_batch_size", 4, "--save_strategy", "no"]
    given += ["--report_to", "none", "--disable_tqdm", True, "--use_habana", "--use_lazy_mode", mode == "lazy", *flags]
    return list(map(str, given + COMPILE * (mode == "compile")))


@pytest.fixture(scope="module")
def seen(simulated_gaudi, models, squad_files, tmp_path_factory) -> dict[str, dict]:
    """Return what is seen of each run, by its name; of those that are refused by the flag, and of the unused flags."""
    folder = tmp_path_factory.mktemp("gaudi_flags")
    runs = RUNS | {flag: ("bert", "eager", [f"--{flag}", *value]) for flag, (value, _) in REFUSED.items()}
    runs["unused"] = ("bert", "eager", [word for flag, (value, _) in UNUSED.items() for word in (f"--{flag}", *value)])
    tasks = {}
    for name, (model, mode, flags) in runs.items():
        script = "run_seq2seq_qa" if model == "t5" else "run_qa"
        flags = flags_of(folder / name / "out", models[model], squad_files, mode, flags)
        tasks[name] = {"script": script, "flags": flags, "lazy": mode == "lazy", "memory": MEMORY.get(name)}
    (folder / "runs.json").write_text(json.dumps(tasks))
    command = [sys.executable, str(ROOT / "tests" / "runs" / "gaudi_flags_run.py"), str(folder / "runs.json")]
    env = simulated_gaudi.environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: read(folder / name) for name in runs}


def read(folder: Path) -> dict:
    """Return what is seen of a run, its results, and its profiles in the order of their names."""
    found = load(folder / "out" / "seen.json")
    results = folder / "out" / "train_results.json"
    found["train_results"] = load(results) if results.exists() else {}
    found["traces"] = [load(trace) for trace in sorted(folder.glob("hpu_profile/**/*.json"))]
    return found


def test_the_table_has_every_flag_of_the_library(simulated_gaudi):
    """Also those that the library refuses itself."""
    code = (
        "from optimum.habana.transformers import training_args as library\n"
        "print(*library.GaudiTrainingArguments.__annotations__)\n"
        "print(*library.UNSUPPORTED_ARGUMENTS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=simulated_gaudi.environment(), capture_output=True, text=True
    )
    added, refused = (line.split() for line in done.stdout.splitlines()[-2:])
    assert set(FLAGS) == set(added)
    assert set(refused) - set(REFUSED) - set(UNUSED) == {"fp16_backend"}  # half_precision_backend's old name
    ways = {flag for table in (REFUSED, UNUSED) for flag in table}
    assert {flag for flag, shown in FLAGS.items() if shown is None} <= ways


def methods_of(library: str, path: str, name: str) -> dict[str, ast.FunctionDef]:
    """Return the methods of a class by name, from the text of its module."""
    tree = ast.parse(distribution(library).locate_file(path).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}


def arguments_read(methods) -> set[str]:
    """Return the names that methods read of `args` or `self.args`."""
    nodes = (node for method in methods for node in ast.walk(method) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if ast.unparse(node.value) in ("args", "self.args")}


def test_inherited_flags_that_the_library_does_not_read_are_without_effect():
    """Those that only methods of transformers' trainer read that the library's replaces."""
    whole = methods_of("transformers", "transformers/trainer.py", "Trainer")
    own = methods_of("optimum-habana", "optimum/habana/transformers/trainer.py", "GaudiTrainer")
    replaced = {name for name in whole.keys() & own if f"super().{name}(" not in ast.unparse(own[name])}
    used = [*own.values(), *(method for name, method in whole.items() if name not in replaced)]
    flags = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    unread = arguments_read(whole[name] for name in replaced) & flags - arguments_read(used)
    assert unread == {flag for flag, (_, reason) in UNUSED.items() if reason == UNREAD} - set(FLAGS)


@pytest.mark.parametrize("flag", [flag for flag, shown in FLAGS.items() if shown is not None])
def test_a_flag_is_followed(seen, flag):
    shown = FLAGS[flag]
    if isinstance(shown, str):
        file, _, name = shown.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text()
    else:
        assert shown(seen)


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_is_refused_in_a_line(seen, flag):
    (problem,) = seen[flag]["problems"]
    assert REFUSED[flag][1] in problem and "\n" not in problem and "Error" not in problem


def test_flags_without_effect_are_named_in_a_line(seen):
    unused = {"unused": {flag: reason for flag, (_, reason) in UNUSED.items()}, "graphs": UNUSED_IN_TRAINING}
    for name, flags in unused.items():
        (line,) = (line for line in seen[name]["lines"] if line.startswith("Without effect"))
        expected = [f"--{flag} ({reason})" for flag, reason in flags.items()]
        assert sorted(line.removeprefix("Without effect in this run: ").split(", ")) == sorted(expected)
    assert all(not found["problems"] for name, found in seen.items() if name not in (*REFUSED, "too large"))
    named = [name for name, found in seen.items() if any(line.startswith("Without effect") for line in found["lines"])]
    assert sorted(named) == sorted(unused)


def test_models_with_habanas_kernel_are_tried_without_weights(seen):
    """On the CPU, where the kernel computes nothing; `checked` also estimates the memory of a step."""
    lines = [line for found in seen.values() for line in found["lines"]]
    assert not [line for line in lines if "could not be tried" in line or "is not known" in line]


@pytest.mark.parametrize("kind", ["", " of xlm-roberta"])
def test_the_dropout_of_attention_acts_in_training(seen, kind):
    """optimum-habana's BERT passes 0.0 to Habana's kernel, whatever its configuration says; its XLM-RoBERTa ends with an error."""
    losses = [seen[f"{name}{kind}"]["losses"] for name in ("dropout", "no dropout")]
    assert all(len(each) == 2 for each in losses)
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def test_attention_by_habanas_kernel_has_the_losses_of_plain_attention(seen):
    """A decoder's: without a mask it would see padding and later tokens."""
    assert seen["fused"]["losses"] == pytest.approx(seen["not fused"]["losses"], abs=1e-4)
    assert seen["fused"]["attended"] and not seen["not fused"]["attended"]


def test_a_card_without_memory_ends_the_run_in_a_line(seen):
    """In the second step, when the optimizer has its state."""
    (line,) = seen["too large"]["problems"]
    assert line.startswith("out of memory on hpu in step 2 of the training, with a batch of 4 features of 96 tokens (")
    assert "Allocation failed for size" in line and "add --auto_find_batch_size" in line


def test_a_batch_size_that_fits_is_found(seen):
    """And the run goes on from its checkpoint with that batch size."""
    found, resumed = seen["found"], seen["found and resumed"]
    assert 0 < found["batch_size"] < 4 and resumed["batch_size"] == found["batch_size"]
    assert len(found["losses"]) == 4 and resumed["losses"] == found["losses"]
