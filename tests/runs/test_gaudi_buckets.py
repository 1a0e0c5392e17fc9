"""Buckets and packing on the simulated Gaudi, on one card in lazy mode and on two with torch.compile: few shapes, or one."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, mixed_training
from test_buckets import BUCKETS


@pytest.mark.parametrize(
    "script, cards, shapes",
    [("run_qa.py", 1, 3), ("run_qa.py", 2, 3), ("run_seq2seq_qa.py", 1, 3), ("run_qa.py", 1, 1), ("run_qa.py", 2, 1)],
)
def test_a_gaudi_sees_a_shape_for_each_bucket_or_one_with_packing(
    simulated_gaudi, tiny_model, tiny_writers, mixed_lengths, tmp_path, script, cards, shapes
):
    """With generation in static shapes for the encoder-decoder; compiled, each shape has graphs of its own."""
    writes, compiles = script == "run_seq2seq_qa.py", cards > 1
    flags = [
        *mixed_training(mixed_lengths, 4),
        "--do_eval",
        "--validation_file",
        mixed_lengths / "dev.json",
        "--use_habana",
    ]
    flags += ["--model_name_or_path", tiny_writers["t5"] if writes else tiny_model, "--output_dir", tmp_path / "out"]
    flags += ["--max_seq_length", "96", "--doc_stride", "16", "--report_to", "none", "--disable_tqdm", "True"]
    flags += ["--per_device_eval_batch_size", "4", "--num_train_epochs", "1"]
    flags += ["--torch_compile", "--use_lazy_mode", "false"] if compiles else ["--use_hpu_graphs_for_inference"]
    # Without buckets each batch of answers would be as wide as its longest.
    flags += ["--predict_with_generate", "--max_answer_length", "9", "--pad_to_max_length", "False"] if writes else []
    launched = ["gaudi_spawn.py", "--world_size", "2", "--use_mpi", script]
    command = [sys.executable, *(launched if cards > 1 else [script]), *flags]
    command += ["--pack"] if shapes == 1 else ["--length_buckets", *(["48", "64", "96"] if writes else BUCKETS)]
    # Where compiled graphs are kept, by the flag or by the user's own variable.
    recipes = f"{tmp_path}/graphs,false,4096" if writes else f"{tmp_path}/own,True,7"
    command += ["--recipe_cache", tmp_path / "graphs"]
    environment = simulated_gaudi.environment(lazy=not compiles, counts_file=tmp_path / "counts") | {
        "OMP_NUM_THREADS": "1",
        "PT_HPU_RECIPE_CACHE_CONFIG": recipes,
    }
    if writes:
        del environment["PT_HPU_RECIPE_CACHE_CONFIG"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [json.loads(line) for line in (tmp_path / "counts").read_text().splitlines()]
    assert len(counts) == cards
    assert (tmp_path / "graphs").is_dir() == writes
    for stage, title in (("train", "Training"), ("eval", "Evaluation")):
        results = json.loads((tmp_path / "out" / f"{stage}_results.json").read_text())
        assert results[f"{stage}_shapes_runtime"]["shapes"] == shapes
        steps = "step of 1 new shape" if shapes == 1 else f"steps of {shapes} new shapes"
        assert f"{title}: the first {steps} took " in done.stdout
    for rank in counts:
        assert rank["recipe_cache"] == recipes
        calls = 2 if writes else 1  # in evaluation: for the loss, and for the score of what was written
        assert (rank["input_shapes"]["train"], rank["input_shapes"]["eval"]) == (shapes, shapes * calls)
        # Forward and backward in training, forward in evaluation.
        assert (rank["compiles"], rank["symbolic_graphs"]) == (3 * shapes * compiles, 0)
        # For each the first decoding step, and all the others, however long the answers are: the loss's pass has encoded.
        assert rank["input_shapes"]["generate"] == (2 * 3 if writes else 0)
