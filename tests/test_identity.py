"""The identity of a training, and what an output folder holds of earlier runs, of secrets and of other processes."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, load
from safetensors.torch import load_file, save_file
from transformers import TrainerState

import qa.identity
import run_qa
import run_seq2seq_qa
from qa.arguments import DataArguments, ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments
from qa.device import SECRETS, trainer_class, training_arguments
from qa.earlier import remove_earlier_run
from qa.errors import UserError
from qa.identity import EVALUATION_FLAGS, TRAINING_FLAGS, differences, read_record, weights_fingerprint
from qa.locks import LOCK_FILE, lock, unlock


TOKENS = {"token": "hf_secretA", "hub_token": "hf_secretB", "push_to_hub_token": "hf_secretC"}
MASK = 0o027
SETTINGS = """--max_seq_length 96 --doc_stride 32 --max_train_samples 12 --max_eval_samples 6 --per_device_train_batch_size 4
    --max_steps 4 --save_steps 2 --logging_steps 1 --disable_tqdm True""".split()

# Flags that decide nothing about a training. Which questions, model and tokenizer a run has is compared, and not how it
# names them. Where and how fast a run computes is left to the user.
FREE = """
    model_name_or_path config_name tokenizer_name cache_dir model_revision trust_remote_code use_fast_tokenizer
    dataset_name dataset_config_name train_file validation_file test_file question_column context_column answer_column id_column
    on_bad_rows ambiguous_answers validation_split max_train_samples max_eval_samples max_predict_samples overwrite_cache
    preprocessing_num_workers check answer_language val_max_answer_length num_beams
    output_dir overwrite_output_dir do_train do_eval do_predict resume_from_checkpoint resume_anyway ignore_data_skip
    restore_callback_states_from_checkpoint run_name
    eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches eval_use_gather_object
    batch_eval_metrics include_inputs_for_metrics include_for_metrics per_device_eval_batch_size per_gpu_eval_batch_size
    use_legacy_prediction_loop jit_mode_eval load_best_model_at_end early_stopping_patience generation_config ignore_eos
    save_strategy save_steps save_total_limit save_safetensors save_on_each_node save_only_model
    log_level log_level_replica log_on_each_node logging_dir logging_strategy logging_first_step logging_steps
    logging_nan_inf_filter report_to disable_tqdm include_tokens_per_second include_num_input_tokens_seen
    skip_memory_metrics throughput_warmup_steps adjust_throughput profiling_warmup_steps profiling_steps
    profiling_warmup_steps_eval profiling_steps_eval profiling_record_shapes profiling_with_stack debug tpu_metrics_debug
    push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision push_to_hub_model_id
    push_to_hub_organization
    no_cuda use_cpu use_mps_device use_ipex use_habana local_rank _n_gpu ddp_backend ddp_timeout ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers distribution_strategy mp_parameters tpu_num_cores ray_scope
    dataloader_num_workers dataloader_prefetch_factor dataloader_pin_memory dataloader_persistent_workers
    non_blocking_data_copy torch_empty_cache_steps half_precision_backend fp16_backend full_determinism
    gradient_checkpointing gradient_checkpointing_kwargs minimize_memory torch_compile torch_compile_backend
    torch_compile_mode torchdynamo compile_from_sec_iteration compile_dynamic use_compiled_autograd use_regional_compilation
    inline_inbuilt_nn_modules allow_unspec_int_on_nn_module cache_size_limit use_lazy_mode use_hpu_graphs
    use_hpu_graphs_for_inference use_hpu_graphs_for_training disable_tensor_cache_hpu_graphs max_hpu_graphs
    pipelining_fwd_bwd use_zero3_leaf_promotion attn_implementation flash_attention_recompute flash_attention_fast_softmax
    flash_attention_causal_mask use_liger_kernel liger_kernel_config past_index label_names remove_unused_columns
""".split()
SOMETIMES = {"max_answer_length"}  # for models that write, and where evaluations choose the model


def run(model, folder, *flags, script=run_qa) -> None:
    script.main(["--model_name_or_path", str(model), "--output_dir", str(folder), *SETTINGS, *map(str, flags)])


@pytest.fixture(scope="module")
def data(squad_files) -> list:
    return ["--do_train", "--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json"]


@pytest.fixture(scope="module")
def trained(tiny_model, data, tmp_path_factory) -> Path:
    """Return the output folder of a run with secrets that trained four steps and evaluated, with umask 027."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    before = os.umask(MASK)
    try:
        run(tiny_model, folder, *data, "--do_eval", *(f"--{name}={token}" for name, token in TOKENS.items()))
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def stopped(trained, tmp_path) -> Path:
    """Return a copy of the run as if it had been killed after its first checkpoint."""
    shutil.copytree(trained / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
    shutil.copy(trained / "run.json", tmp_path / "out")
    return tmp_path / "out"


def problems_of(*command) -> list[str]:
    with pytest.raises(UserError) as caught:
        run(*command)
    return list(caught.value.problems)


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_the_record_of_a_run_is_in_its_folder_and_in_each_checkpoint(trained, squad_files):
    records = [load(folder / "run.json") for folder in (trained, trained / "checkpoint-2", trained / "checkpoint-4")]
    assert records[0] == records[1] == records[2]
    record = records[0]
    assert record["arguments"]["seed"] == 42 and record["arguments"]["max_seq_length"] == 96 and record["ranks"] == 1
    assert record["versions"]["torch"] == torch.__version__ and record["resumed"] == []
    assert record["data"]["train"]["file"] == str(squad_files / "train.json")
    assert [part["questions"] for part in record["data"].values()] == [12, 6]
    assert record["command"][-3:] == ["--token=***", "--hub_token=***", "--push_to_hub_token=***"]


def test_no_file_of_a_run_holds_a_secret(trained):
    for path in files_of(trained):
        assert b"hf_secret" not in path.read_bytes(), path
    assert torch.load(trained / "training_args.bin", weights_only=False).hub_token is None


def test_all_files_of_a_run_can_be_read_by_those_whom_the_umask_allows(trained):
    modes = {path.name: path.stat().st_mode & 0o777 for path in files_of(trained)}
    assert "model.safetensors" in modes and modes == dict.fromkeys(modes, 0o666 & ~MASK)
    folders = [path for path in trained.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o777 & ~MASK}


def test_the_library_still_hides_weights(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o077 == 0


def test_a_word_that_may_hold_a_secret_is_not_repeated(tmp_path):
    (message,) = problems_of("m", tmp_path, "--do_train", "--train_file", "x", "--hub_tokn=hf_secretB")[:1]
    assert message == "unknown argument --hub_tokn (did you mean --hub_token?)"
    for word in ("--hub=hf_secretB", "--no_cuda=hf_secretB"):
        assert "hf_secret" not in "".join(problems_of("m", tmp_path, word))
