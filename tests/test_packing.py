"""Packed batches: their rows and order, the masks of models, and runs whose answers are those of padded batches."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import examples, load, mixed_training, run_in_windows
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    DistilBertConfig,
    FalconConfig,
    LlamaConfig,
    LongformerConfig,
    MptConfig,
    Qwen2Config,
    RobertaConfig,
)

import qa.packing
import run_qa
from qa.errors import UserError
from qa.packed_model import find_packed_form, pack_model
from qa.packing import Packing, PackingCollator


LENGTHS = st.lists(st.integers(3, 56), min_size=1, max_size=80).map(np.array)


@examples(100)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_each_batch_fits_its_rows_in_every_epoch(lengths, batch, ranks, drop_last):
    args = SimpleNamespace(
        train_batch_size=batch, eval_batch_size=batch, world_size=ranks, dataloader_drop_last=drop_last, n_gpu=1
    )
    train, evaluated = Parts(lengths), Parts(lengths)
    qa.packing.set_packing({"train": train, "validation": evaluated}, 56, args)
    group, number = batch * ranks, len(lengths)
    for epoch in range(3):
        order = qa.packing.training_order(lengths, train.packing, group, (5, epoch), drop_last)
        check_rows(lengths, order, train.packing)
        counts = np.bincount(order, minlength=number)
        assert counts.max(initial=0) <= 1 if drop_last else counts.min() >= 1
        assert len(order) == (number // group if drop_last else -(-number // group)) * group
    order = qa.packing.evaluation_order(lengths, evaluated.packing, group)
    check_rows(lengths, order, evaluated.packing)
    assert sorted(order[:number]) == list(range(number)) and len(order) % group == 0


def test_the_rows_of_a_batch_that_repeats_a_few_features_are_found_in_a_few_tries():
    tries, few, many = [], np.arange(10, 100, 10), np.arange(10, 20)

    def find(lengths, packing, group):
        tries.append(packing.rows)
        return qa.packing.try_orders(lengths, packing, group)

    rows = qa.packing.rows_needed([few, many], 200, 200, 100, find)
    assert len(tries) < 20
    for lengths in (few, many):
        check_rows(
            lengths, qa.packing.training_order(lengths, Packing(200, rows, 100), 200, (1,)), Packing(200, rows, 100)
        )


class Parts:
    """Features of which only the lengths are known."""

    def __init__(self, lengths):
        self.lengths = lambda: lengths

    def __len__(self):
        return len(self.lengths())


def check_rows(lengths, order, packing) -> None:
    """The features of a batch are in rows that hold their tokens."""
    for batch in order.reshape(-1, packing.batch):
        (rows,) = qa.packing.place(lengths[batch][None], packing)
        tokens = np.zeros(packing.rows, dtype=int)
        for row, feature in zip(rows.tolist(), batch.tolist()):
            tokens[row] += lengths[feature]
        assert min(rows) >= 0 and tokens.max() <= packing.width


# Models

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
# The second layer has a sliding window.
WINDOWS = SMALL | {"num_key_value_heads": 2, "pad_token_id": 2, "use_sliding_window": True, "max_window_layers": 1}
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL, max_position_embeddings=64, pad_token_id=1),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=2),
    "falcon": FalconConfig(**SMALL, pad_token_id=2),  # takes another mask too, in a batch of one row
    "qwen2": Qwen2Config(**WINDOWS, sliding_window=48, max_position_embeddings=48),
}
# Models without another attention; this one has no positions, and the mask of decoders on a Gaudi.
EAGER = {"mpt": MptConfig(vocab_size=100, d_model=32, n_layers=2, n_heads=4, pad_token_id=2)}
MIXING = {
    "distilbert": DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "longformer": LongformerConfig(**SMALL, attention_window=[8, 8]),
    "qwen2": Qwen2Config(**WINDOWS, sliding_window=47),
    "llama": LlamaConfig(
        **SMALL, pad_token_id=2, max_position_embeddings=47, rope_scaling={"rope_type": "dynamic", "factor": 2.0}
    ),
}


@pytest.mark.parametrize("kind, attention", [*product(CONFIGS, ("sdpa", "eager")), *product(EAGER, ("eager",))])
def test_a_packed_feature_has_the_logits_and_the_loss_that_it_has_alone(kind, attention):
    config = (CONFIGS | EAGER)[kind]
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    draw = np.random.default_rng(0)
    features = [
        {"input_ids": draw.integers(5, 100, length), "start_positions": start, "end_positions": end, "cls_index": 0,
         "packing": Packing(batch=6, rows=3, width=48)}
        for length, start, end in ((40, 3, 5), (20, 0, 0), (9, 8, 8), (7, 1, 2), (25, 24, 24), (3, 10**9, 10**9))
    ]  # fmt: skip
    alone, losses = [], []
    with torch.no_grad():
        for feature in features:
            ids = torch.from_numpy(feature["input_ids"])[None]
            places = {name: torch.tensor([feature[name]]) for name in ("start_positions", "end_positions")}
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **places)
            alone.append((output.start_logits[0], output.end_logits[0]))
            losses.append(output.loss)
        form = find_packed_form(AutoModelForQuestionAnswering, config, width=48)
        padding = SimpleNamespace(pad_token_id=config.pad_token_id, pad_token_type_id=0)
        batch = PackingCollator(padding, form.first_position)(features)
        lengths = batch.pop("lengths")
        del batch["cls_index"]
        output = pack_model(model, form)(**batch)
    assert batch["input_ids"].shape == (3, 48) and output.start_logits.shape == (6, 48)
    for index, (starts, ends) in enumerate(alone):
        length = lengths[index]
        torch.testing.assert_close(output.start_logits[index, :length], starts, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.end_logits[index, :length], ends, atol=1e-5, rtol=1e-5)
        assert (output.start_logits[index, length:] < -1e30).all()
    torch.testing.assert_close(output.loss, torch.stack(losses[:-1]).mean())  # the last one has no label


@pytest.mark.parametrize("kind", MIXING)
def test_a_model_that_does_not_keep_features_apart_is_refused(kind):
    """By its attention, by windows shorter than a row, or by positions that are scaled by the longest feature."""
    message = rf"--pack: models of the type {kind} .* of 48 tokens apart(, with (sdpa|eager) attention)?; .* --length_buckets auto"
    with pytest.raises(UserError, match=message):
        find_packed_form(AutoModelForQuestionAnswering, MIXING[kind], width=48)


# The script


def test_a_packed_run_has_one_shape_and_the_padded_answers(tiny_model, mixed_lengths, tmp_path, seen):
    flags = ["--do_eval", "--validation_file", mixed_lengths / "dev.json"]
    run_in_windows(run_qa, tiny_model, tmp_path / "trained", *mixed_training(mixed_lengths, 8), *flags, "--pack")
    ((rows, width),) = set(seen["training_step"])
    ((eval_rows, eval_width),) = set(seen["prediction_step"])
    assert width == eval_width == 96 and rows < 8 and eval_rows < 8
    run_in_windows(run_qa, tmp_path / "trained", tmp_path / "padded", *flags)
    results, expected = (load(tmp_path / folder / "eval_results.json") for folder in ("trained", "padded"))
    for name in ("eval_f1", "eval_exact_match", "eval_samples"):
        assert results[name] == expected[name]
    answers, expected = (load(tmp_path / folder / "eval_predictions.json") for folder in ("trained", "padded"))
    assert answers == expected
    train = load(tmp_path / "trained" / "train_results.json")
    assert train["train_padding_share"] < 0.3
