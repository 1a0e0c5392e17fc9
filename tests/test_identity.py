"""The identity of a training, and what an output folder holds of earlier runs, of secrets and of other processes."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import ROOT, load
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import TrainerState

import qa.identity
import run_qa
import run_seq2seq_qa
from qa.arguments import ModelArguments, Seq2SeqDataArguments, Seq2SeqModelArguments, SpanDataArguments
from qa.device import trainer_class, training_arguments
from qa.earlier import is_generated, remove_earlier_run
from qa.errors import UserError
from qa.finished import finished_training
from qa.identity import (
    EVALUATION_FLAGS,
    TRAINING_FLAGS,
    differences,
    file_fingerprint,
    questions_fingerprint,
    read_record,
)
from qa.locks import LOCK_FILE, lock, unlock
from qa.resume import checkpoint_to_resume
from qa.saving import end, is_being_overwritten
from qa.screen import StageLines
from qa.secret_flags import SECRETS, take_words, without_secrets
from qa.start import complete_overwriting
from qa.written import names_in


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
    preprocessing_num_workers check check_steps language license answer_language temperature eval_report report_columns val_max_answer_length num_beams merge_lora
    output_dir overwrite_output_dir do_train do_eval do_predict resume_from_checkpoint resume_anyway ignore_data_skip
    restore_callback_states_from_checkpoint run_name
    eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches eval_use_gather_object
    batch_eval_metrics include_inputs_for_metrics include_for_metrics per_device_eval_batch_size per_gpu_eval_batch_size
    use_legacy_prediction_loop jit_mode_eval load_best_model_at_end early_stopping_patience max_train_minutes nan_patience debug_traceback
    generation_config ignore_eos
    save_strategy save_steps save_total_limit save_safetensors save_on_each_node save_only_model
    log_level log_level_replica log_on_each_node logging_dir logging_strategy logging_first_step logging_steps
    logging_nan_inf_filter report_to disable_tqdm include_tokens_per_second include_num_input_tokens_seen
    skip_memory_metrics throughput_warmup_steps adjust_throughput profiling_warmup_steps profiling_steps
    profiling_warmup_steps_eval profiling_steps_eval profiling_record_shapes profiling_with_stack debug tpu_metrics_debug
    push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision push_to_hub_model_id
    push_to_hub_organization
    no_cuda use_cpu use_mps_device use_ipex use_habana local_rank ddp_backend ddp_timeout ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers distribution_strategy mp_parameters tpu_num_cores ray_scope
    dataloader_num_workers dataloader_prefetch_factor dataloader_pin_memory dataloader_persistent_workers
    non_blocking_data_copy torch_empty_cache_steps half_precision_backend fp16_backend full_determinism
    gradient_checkpointing gradient_checkpointing_kwargs minimize_memory torch_compile torch_compile_backend
    torch_compile_mode torchdynamo compile_from_sec_iteration compile_dynamic use_compiled_autograd use_regional_compilation
    inline_inbuilt_nn_modules allow_unspec_int_on_nn_module cache_size_limit use_lazy_mode use_hpu_graphs
    use_hpu_graphs_for_inference use_hpu_graphs_for_training disable_tensor_cache_hpu_graphs max_hpu_graphs
    pipelining_fwd_bwd use_zero3_leaf_promotion attn_implementation flash_attention_recompute flash_attention_fast_softmax
    flash_attention_causal_mask recipe_cache use_liger_kernel liger_kernel_config past_index label_names remove_unused_columns
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
    assert record["resumed"] == []
    assert torch.__version__.startswith(record["versions"]["torch"])  # which may lack the part after the plus sign
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


def test_what_the_libraries_take_for_the_command_line_holds_no_secret(monkeypatch):
    """W&B writes it to its files; the run has the secret."""
    monkeypatch.setattr(sys, "argv", ["run_qa.py", "--token", "hf_secretB", "--hub_token=secretC", "--seed", "7"])
    with pytest.raises(UserError, match="nothing to do"):
        run_qa.main()
    assert sys.argv == ["run_qa.py", "--token", "***", "--hub_token=***", "--seed", "7"]
    monkeypatch.setattr(sys, "argv", ["run_qa.py", "--token", "hf_secretB"])
    assert take_words() == ["--token", "hf_secretB"]


def test_a_word_that_may_hold_a_secret_is_not_repeated(tmp_path):
    (message,) = problems_of("m", tmp_path, "--do_train", "--train_file", "x", "--hub_tokn=hf_secretB")[:1]
    assert message == "unknown argument --hub_tokn (did you mean --hub_token?)"
    assert "hf_secret" not in "".join(problems_of("m", tmp_path, "--hub=hf_secretB"))  # ambiguous
    assert "secretB" not in "".join(problems_of("m", tmp_path, "hub_token", "secretB", "--train_file", "x"))


@pytest.mark.parametrize(
    "typed, shown",
    [
        ("--token hf_x hf_y --seed 7", "--token *** *** --seed 7"),
        ("--hub-tok=x", "--hub-tok=***"),
        ("--hub_tokn x --tokn=x --hub_tokn:x", "--hub_tokn *** --tokn=*** --hub_tokn:***"),
        ("--hub_tokenhf_x --hub_tokenABC --tokenABC", "--hub_token*** --hub_token*** --token***"),
        ("hub_token x --seed 7 token=x", "hub_token *** --seed 7 token=***"),
        ("\u2014hub_token x --do_train \u2013token=x", "\u2014hub_token *** --do_train \u2013token=***"),
        ("--hf_token x --api_key x --HUB_TOKEN x", "--hf_token *** --api_key *** --HUB_TOKEN ***"),
        ("--seed hf_x --=hf_x --hf_x", "--seed *** --=*** --***"),
        ("--train_file tokens.json hf_data/a.json /data/hf_x --id_column key", None),
    ],
)
def test_words_are_shown_without_secrets(typed, shown):
    assert " ".join(without_secrets(typed.split())) == (shown or typed)


def test_no_flag_without_a_secret_is_taken_for_one_with_it():
    kinds = [ModelArguments, SpanDataArguments, Seq2SeqModelArguments, Seq2SeqDataArguments, training_arguments(True)]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)} - set(SECRETS)
    hidden = [name for name in names if without_secrets([f"--{name}", "x"]) != [f"--{name}", "x"]]
    assert not hidden


def test_every_flag_is_known_to_decide_about_a_training_or_not():
    classes = [ModelArguments, SpanDataArguments, Seq2SeqModelArguments, Seq2SeqDataArguments]
    classes += [training_arguments(seq2seq) for seq2seq in (False, True)]
    flags = {field.name for kind in classes for field in dataclasses.fields(kind) if field.init}
    groups = [TRAINING_FLAGS, EVALUATION_FLAGS, SOMETIMES, FREE, SECRETS]
    assert sorted(flags) == sorted(name for group in groups for name in group)


def test_each_flag_that_decides_is_named_when_it_differs(trained):
    """Those of evaluations where evaluations decide; and no other flag is named."""
    record = load(trained / "run.json")
    decides = record | {"arguments": record["arguments"] | {"load_best_model_at_end": True}}
    writes = record | {"arguments": record["arguments"] | {"predict_with_generate": True}}
    for name in [*TRAINING_FLAGS, *EVALUATION_FLAGS, *SOMETIMES, *FREE]:
        old = {key: run | {"arguments": {name: None} | run["arguments"]} for key, run in
               (("plain", record), ("decides", decides), ("writes", writes))}  # fmt: skip
        new = {key: run | {"arguments": run["arguments"] | {name: "another"}} for key, run in old.items()}
        named = {key for key in old if differences(old[key], new[key])}
        expected = {"plain", "decides", "writes"} if name in TRAINING_FLAGS else set()
        expected |= {"decides"} if name in EVALUATION_FLAGS else {"decides", "writes"} if name in SOMETIMES else set()
        if name in ("load_best_model_at_end", "save_strategy", "lr_scheduler_type", "early_stopping_patience"):
            continue  # they say whether evaluations decide
        assert named == expected, name
        for key in named:
            (line,) = differences(old[key], new[key])
            assert line.startswith(f"--{name}: now 'another', was ")


def test_other_data_another_model_or_number_of_ranks_is_named(trained):
    record = load(trained / "run.json")
    part = record["data"]["train"] | {"fingerprint": "0123", "file": "other.json"}
    (line,) = differences(record, record | {"data": record["data"] | {"train": part}})
    assert line.startswith("the train questions: now 12 of other.json (0123), was 12 of ")
    part = record["data"]["validation"] | {"fingerprint": "0123"}
    other = record | {"data": record["data"] | {"validation": part}, "ranks": 8}
    assert differences(record, other) == ["ranks: now 8, was 1"]
    chooses = [run | {"arguments": run["arguments"] | {"save_strategy": "best"}} for run in (record, other)]
    assert len(differences(*chooses)) == 2


def test_a_resume_of_another_training_names_what_differs(stopped, data, tiny_model, negatives, tmp_path):
    """And what changes nothing is no reason to stop."""
    free = "--logging_steps 3 --save_steps 5 --save_total_limit 2 --per_device_eval_batch_size 2 --run_name x".split()
    run(tiny_model, stopped, *data, "--do_eval", "--check", *free)
    flags = {"max_seq_length": 80, "doc_stride": 16, "seed": 7, "optim": "adafactor", "learning_rate": 1e-4,
             "lr_scheduler_type": "constant", "weight_decay": 0.1, "per_device_train_batch_size": 2,
             "gradient_accumulation_steps": 3, "max_steps": 5}  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    *lines, end = problems_of(tiny_model, stopped, *data, "--check", *words)
    assert [line.partition(":")[0] for line in lines] == sorted(f"--{name}" for name in flags)
    assert "--seed: now 7, was 42" in lines
    assert end.startswith(f"{stopped}/checkpoint-2 is of a run that differs") and "--resume_anyway" in end

    other = tmp_path / "other_model"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    save_file(
        weights | {"qa_outputs.bias": weights["qa_outputs.bias"] + 1}, other / "model.safetensors", {"format": "pt"}
    )
    settings = load(other / "tokenizer_config.json") | {"padding_side": "left"}
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = load(negatives)
    (tmp_path / "train.json").write_text(json.dumps(rows))
    changed = ["--do_train", "--train_file", negatives, "--version_2_with_negative"]
    *lines, _ = problems_of(other, stopped, *changed, "--check")
    names = ["--version_2_with_negative", "the train questions", "the starting weights", "the tokenizer"]
    assert [line.partition(":")[0] for line in lines] == names


def test_a_resume_goes_on_anyway_or_without_a_record(stopped, data, tiny_model, caplog):
    run(tiny_model, stopped, *data, "--learning_rate", 1e-3, "--per_device_train_batch_size", 2, "--resume_anyway")
    assert "Resuming" in caplog.text and "--learning_rate: now 0.001, was 5e-05" in caplog.text
    (resumed,) = load(stopped / "run.json")["resumed"]
    assert resumed["checkpoint"] == str(stopped / "checkpoint-2") and len(resumed["differences"]) == 2
    last = load(stopped / "trainer_state.json")["log_history"][-2]
    assert last["step"] == 4 and last["epoch"] == pytest.approx(4 / 15, abs=0.01)  # of 30 features, in batches of 2
    assert load(stopped / "checkpoint-4" / "run.json") == load(stopped / "run.json")
    for content in (b"", b"[]", b'{"arguments": 3}', b"[" * 99999, None):
        caplog.clear()
        (stopped / "run.json").write_bytes(content) if content is not None else (stopped / "run.json").unlink()
        assert read_record(stopped) is None and "nothing was compared" in caplog.text


def test_overwriting_removes_the_earlier_run_and_nothing_else(trained, data, tiny_model, tmp_path, monkeypatch):
    """A kill before the new run's first checkpoint leaves none of the old run, and one after it the new run's."""
    folder, expected = tmp_path / "out", tmp_path / "expected"
    shutil.copytree(trained, folder)
    (folder / "checkpoint-precious").mkdir()
    (folder / "checkpoint-100").mkdir()
    mine = ["notes.txt", "my_predictions.json", "checkpoint-precious/model.safetensors", "runs.csv"]
    mine += ["checkpoint-100/notes.txt"]
    for name in mine:
        (folder / name).touch()
    killed_at = 1

    def kill(callback, args, state, control, **_):
        if state.global_step == killed_at:
            sys.exit(3)

    with monkeypatch.context() as patch:
        patch.setattr(StageLines, "on_step_end", kill)
        for killed_at in (1, 3):
            with pytest.raises(SystemExit):
                run(tiny_model, folder, *data, "--seed", 7, "--overwrite_output_dir")
            unlock(folder)
            kept = {"config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
            found = {path.relative_to(folder).as_posix() for path in files_of(folder)}
            new = {name for name in found if name.startswith("checkpoint-2/")}
            assert found - new == kept | {*mine, "run.json"} and bool(new) == (killed_at == 3)
    run(tiny_model, folder, *data, "--seed", 7)
    run(tiny_model, expected, *data, "--seed", 7)
    weights = [load_file(path / "model.safetensors") for path in (folder, expected)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


def test_nothing_of_a_run_that_is_being_removed_is_used(trained, tmp_path, monkeypatch):
    """Killed at every operation; the same command without the flag starts again, each checkpoint being whole or gone."""
    left = 0

    def killed(operate):
        def operate_or_exit(*args, **kwargs):
            nonlocal left
            left -= 1
            return operate(*args, **kwargs) if left >= 0 else sys.exit(3)

        return operate_or_exit

    training_args = training_arguments(False)(output_dir="", do_train=True, use_cpu=True, max_steps=4)
    for operation in range(100):
        folder, left = tmp_path / str(operation), operation
        shutil.copytree(trained, folder)
        with monkeypatch.context() as patch, suppress(SystemExit):
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(os, name, killed(getattr(os, name)))
            remove_earlier_run(folder, [])
            break
        for checkpoint in folder.glob("checkpoint-*"):
            assert names_in(checkpoint) == names_in(trained / checkpoint.name)
        training_args.output_dir, training_args.overwrite_output_dir = str(folder), False
        end(folder)  # of an evaluation alone
        complete_overwriting(training_args)
        assert training_args.overwrite_output_dir and finished_training(training_args) is None
        assert checkpoint_to_resume(training_args, None) is None
        remove_earlier_run(folder, [])
        assert not any(folder.glob("checkpoint-*")) and not (folder / "run.json").exists()
        assert not is_being_overwritten(folder)
    assert operation > 20


def test_overwriting_keeps_what_the_run_starts_from(trained, tmp_path):
    for name, gone in (
        ("checkpoint-2", {"checkpoint-4", "model.safetensors"}),
        (".", {"checkpoint-2", "checkpoint-4"}),
    ):
        folder = tmp_path / name / "out"
        shutil.copytree(trained, folder)
        remove_earlier_run(folder, [str(folder / name), "bert-base-uncased"])
        after = {path.name for path in folder.iterdir()}
        assert {"checkpoint-2", "checkpoint-4", "model.safetensors"} - after == gone


def test_overwriting_leaves_weights_that_no_run_wrote(tmp_path):
    for name in ("model.safetensors", "README.md", "config.json"):
        (tmp_path / name).write_text("mine")
    remove_earlier_run(tmp_path, [])
    assert len(files_of(tmp_path)) == 3


def test_a_run_that_must_not_resume_does_not(stopped, data, tiny_model, tmp_path):
    (problem,) = problems_of(tiny_model, stopped, *data, "--resume_from_checkpoint", "false")
    assert problem.endswith("name another folder, or remove them with --overwrite_output_dir")
    run(tiny_model, tmp_path / "new", *data, "--resume_from_checkpoint", "False", "--check")


HOLDER = """
import os, sys, time
from pathlib import Path
from qa.locks import lock
lock(Path(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_a_second_run_at_a_folder_is_refused_while_the_first_lives(data, tiny_model, tmp_path):
    """A kill leaves the folder free, also if a worker that the run forked lives on."""
    folder, environment = tmp_path / "out", os.environ | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], env=environment, stdout=subprocess.PIPE, text=True
    )
    child = int(holder.stdout.readline())
    try:
        (problem,) = problems_of(tiny_model, folder, *data)
        assert f"another run is writing there (process {holder.pid} on " in problem
        run(tiny_model, folder, *data, "--check")
        holder.kill()
        holder.wait()
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
        lock(folder)
        os.kill(child, 0)
        unlock(folder)
        assert not any(folder.iterdir())
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    lock(tmp_path)
    assert "cannot be locked (No locks available)" in caplog.text


def test_nothing_of_an_earlier_evaluation_stays(trained, data, negatives, tmp_path):
    """With negatives, then without: no null odds, and no scores of questions without an answer."""
    folder, flags = tmp_path / "out", data[1:] + ["--do_eval"]
    run(trained, folder, "--do_eval", "--validation_file", negatives, "--version_2_with_negative")
    assert (folder / "eval_null_odds.json").exists() and "eval_NoAns_f1" in load(folder / "all_results.json")
    for name in (".predict_predictions.json.partial", ".tmpA1b2C3"):  # of other runs that were killed
        (folder / name).touch()
    assert (folder / "eval_report.html").exists() and (folder / "eval_report.json").exists()
    run(trained, folder, *flags, "--eval_report", False)
    assert not (folder / "eval_null_odds.json").exists() and not list(folder.glob("eval_report.*"))
    assert not {".predict_predictions.json.partial", ".tmpA1b2C3"} & {path.name for path in folder.iterdir()}
    assert load(folder / "all_results.json") == load(folder / "eval_results.json")


def test_answers_of_an_earlier_evaluation_go_where_the_new_one_writes_none(tiny_writers, squad_files, tmp_path):
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json"]
    run(tiny_writers["t5"], tmp_path, *flags, "--predict_with_generate", script=run_seq2seq_qa)
    assert (tmp_path / "eval_predictions.json").exists()
    run(tiny_writers["t5"], tmp_path, *flags, script=run_seq2seq_qa)
    assert {path.name for path in tmp_path.iterdir()} == {"all_results.json", "eval_results.json"}


def test_a_models_card_is_neither_lost_to_an_evaluation_nor_to_a_training(trained, data, tiny_model, tmp_path):
    """Neither one that a run wrote nor, in a training, one that a person changed; and no evaluation writes one."""
    folder = tmp_path / "out"
    shutil.copytree(trained, folder)
    card = (folder / "README.md").read_text()
    run(folder, folder, "--do_eval", *data[1:], "--null_score_diff_threshold", 1)
    assert (folder / "README.md").read_text() == card
    (folder / "README.md").write_text(card.replace("# out", "# The best model"))
    run(tiny_model, folder, *data, "--overwrite_output_dir", "--max_steps", 1)
    assert (folder / "README.md").read_text() == card.replace("# out", "# The best model")
    (folder / "README.md").unlink()
    run(folder, folder, "--do_eval", *data[1:])
    assert not (folder / "README.md").exists()


def test_a_run_that_was_killed_before_its_card_had_the_scores_completes_it(
    trained, data, tiny_model, tmp_path, monkeypatch
):
    """Killed in its evaluation, it has a card without them; killed after it, the same command only writes the card."""
    folder = tmp_path / "out"
    shutil.copytree(trained, folder)
    card, flags = (folder / "README.md").read_text(), [*data, "--do_eval"]
    (folder / "eval_results.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("qa.stages.evaluate", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            run(tiny_model, folder, *flags, "--overwrite_output_dir")
    early = (folder / "README.md").read_text()
    assert is_generated(folder / "README.md") and "model-index" in card and "model-index" not in early
    run(tiny_model, folder, *flags)
    scored = (folder / "README.md").read_text()
    assert ModelCard(scored).data.to_dict()["model-index"] == ModelCard(card).data.to_dict()["model-index"]
    (folder / "README.md").write_text(early)
    run(tiny_model, folder, *flags)
    assert (folder / "README.md").read_text() == scored


def test_no_json_file_holds_nan(tmp_path, trained):
    trainer_class(False)
    state = TrainerState(log_history=[{"loss": math.nan, "step": 1}, {"grad_norm": math.inf}], best_metric=1.5)
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    refuse = {"parse_constant": lambda word: pytest.fail(word)}
    state = json.loads((tmp_path / "trainer_state.json").read_text(), **refuse)
    assert state["log_history"] == [{"loss": None, "step": 1}, {"grad_norm": None}]
    assert TrainerState.load_from_json(str(tmp_path / "trainer_state.json")).best_metric == 1.5
    for path in trained.rglob("*.json"):
        json.loads(path.read_text(), **refuse)


def test_ids_decide_nothing_and_any_text_has_a_fingerprint():
    """An answer to score may hold half a surrogate pair, which has no bytes."""
    row = {"id": "a", "context": "c", "question": "q", "answers": {"text": ["\ud800"], "answer_start": [-1]}}
    other = row | {"answers": {"text": ["\ud801"], "answer_start": [-1]}}
    assert questions_fingerprint([row]) == questions_fingerprint([row | {"id": "b"}]) != questions_fingerprint([other])


def test_a_large_file_of_weights_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(qa.identity, "WHOLE_FILE", 2**20)
    path = tmp_path / "a"
    prints = set()
    for size, place in ((2**23, 0), (2**23, 2**22), (2**23, 2**23 - 1), (2**23 + 1, 0)):
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        prints.add(file_fingerprint(path))
    assert len(prints) >= 3
