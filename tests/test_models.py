"""Checkpoints keep their tensors, and mismatches are reported before a run, without weights, in one line."""

import copy
import json
import logging
import shutil
import struct

import pytest
import torch
import transformers
from helpers import load
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import qa.advice
import qa.models
import run_qa
import run_seq2seq_qa
from qa.arguments import ModelArguments
from qa.errors import UserError
from qa.models import is_causal, load_config_and_tokenizer
from qa.weightless import build_weightless
from qa.windows import read_template


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"vocab_size": 1100, "pad_token_id": 1}
PARTS = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}
OWN_SIZES = {
    "albert": {"embedding_size": 16},
    "bart": {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in PARTS.items()},
    "exaone4": {"sliding_window_pattern": 2},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "reformer": {"attn_layers": ["local", "lsh"], "attention_head_size": 16, "axial_pos_embds_dim": (16, 16)},
    "t5": {"d_kv": 16, "d_ff": 64, "decoder_start_token_id": 0},
}
CAUSAL = "llama qwen2 qwen3 mistral gpt2 nemotron arcee diffllama exaone4 qwen3_moe smollm3".split()
PRETRAINED = "bert roberta albert distilbert bart t5".split()


@pytest.fixture(autouse=True)
def levels(caplog):
    """Let warnings through, whatever another test's run has set."""
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.WARNING, "transformers")


def config_of(kind: str, **settings):
    return AutoConfig.for_model(kind, **SIZES | OWN_SIZES.get(kind, {}) | settings)


def save(folder, head: str, config, **how) -> tuple[ModelArguments, dict[str, torch.Tensor]]:
    """Save a model with a head of this kind, of random weights; return the flags that name it and its base model's tensors."""
    transformers.set_seed(0)
    model = getattr(transformers, f"AutoModel{head}").from_config(config)
    model.save_pretrained(folder, **how)
    return ModelArguments(model_name_or_path=str(folder)), model.base_model.state_dict()


def check(script, folder, output, *flags) -> None:
    """Run a script up to where it would load the weights."""
    settings = ["--max_seq_length", "64", "--doc_stride", "16", "--report_to", "none", "--check"]
    script.main(["--model_name_or_path", str(folder), "--output_dir", str(output), *settings, *map(str, flags)])


@pytest.mark.parametrize("part", ["config", "config elsewhere", "tokenizer"])
def test_nothing_asks_whether_to_run_the_code_of_a_model(tiny_model, tmp_path, monkeypatch, part):
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text("raise SystemExit('the code was run')\n")
    place = "other/name--own.Own" if part == "config elsewhere" else "own.Own"
    if part == "tokenizer":
        change = {"auto_map": {"AutoTokenizer": [place, None]}, "tokenizer_class": "OwnTokenizer"}
        path = tmp_path / "model" / "tokenizer_config.json"
    else:
        change, path = {"auto_map": {"AutoConfig": place}, "model_type": "own"}, tmp_path / "model" / "config.json"
    path.write_text(json.dumps(load(path) | change))
    with pytest.raises(UserError) as caught:
        load_config_and_tokenizer(ModelArguments(model_name_or_path=str(tmp_path / "model")))
    assert caught.value.problems == (
        f"--model_name_or_path {tmp_path}/model: it needs Python code of its repository, which is not run; read that code, "
        "and add --trust_remote_code if you trust its authors",
    )
    assert not asked


# ---------------------------------------------------------------------------------------------------------------------
# Tensors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, head, how",
    [
        *((kind, "ForCausalLM", {}) for kind in CAUSAL),
        *((kind, "ForPreTraining", {}) for kind in PRETRAINED),
        *(("llama", head, {}) for head in ("", "ForQuestionAnswering")),
        ("bert", "ForQuestionAnswering", {}),
        ("llama", "ForCausalLM", {"max_shard_size": "40KB"}),
        ("llama", "ForCausalLM", {"safe_serialization": False}),
        ("llama", "ForCausalLM", {"safe_serialization": False, "max_shard_size": "40KB"}),
    ],
)
def test_a_checkpoint_keeps_its_tensors(tmp_path, caplog, kind, head, how):
    """Those of its base model, whichever head it was saved with; the head alone is new."""
    model, kept = save(tmp_path, head, config_of(kind), **how)
    logging.getLogger("transformers").addHandler(caplog.handler)
    loaded = qa.models.load_extractive_model(AutoConfig.from_pretrained(tmp_path), model)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    prefix = f"{loaded.base_model_prefix}." if hasattr(loaded, loaded.base_model_prefix) else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in loaded.state_dict().items()}
    of_head = {name: found.pop(name) for name in ("qa_outputs.weight", "qa_outputs.bias")}
    assert len(found) > 10 and all(tensor.equal(kept[name]) for name, tensor in found.items())
    new = "The answer head is new: 2 tensors (qa_outputs.bias, qa_outputs.weight); train it before you rely on its answers"
    if head == "ForQuestionAnswering":
        saved = load_file(tmp_path / "model.safetensors")
        assert all(tensor.equal(saved[name]) for name, tensor in of_head.items())
    assert (new in caplog.text) == (head != "ForQuestionAnswering")
    assert "newly initialized" not in caplog.text
    weightless = build_weightless(AutoModelForQuestionAnswering, config_of(kind))
    assert qa.advice.has_new_head(config_of(kind), model) == (head != "ForQuestionAnswering")
    sizes = qa.checkpoints.read_sizes(model, remote=False)
    assert len(sizes) > 10 and qa.checkpoints.checkpoint_problems(weightless, sizes) == []


def test_the_library_still_loses_causal_weights(tmp_path):
    """Otherwise qa.upstream.models.trunk_mapping may be deleted."""
    save(tmp_path, "ForCausalLM", config_of("llama"))
    _, found = AutoModelForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert "transformer.layers.0.mlp.up_proj.weight" in found["missing_keys"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_model_that_writes_keeps_its_tensors(tmp_path, caplog, kind):
    model, _ = save(tmp_path, "ForSeq2SeqLM", config_of(kind))
    loaded = qa.models.load_seq2seq_model(AutoConfig.from_pretrained(tmp_path), model).state_dict()
    assert all(tensor.equal(loaded[name]) for name, tensor in load_file(tmp_path / "model.safetensors").items())
    assert "new" not in caplog.text


@pytest.mark.parametrize(
    "kind, head, lost, how",
    [
        ("llama", "ForCausalLM", "transformer.layers.1.", {}),
        ("llama", "ForCausalLM", "transformer.layers.1.", {"max_shard_size": "60KB"}),
        ("llama", "ForCausalLM", "transformer.layers.1.", {"safe_serialization": False}),
        ("bert", "ForPreTraining", "bert.encoder.layer.1.", {}),
        ("t5", "ForSeq2SeqLM", "decoder.block.1.", {}),
        ("bart", "ForSeq2SeqLM", "model.decoder.layers.1.", {}),
    ],
)
def test_a_checkpoint_that_lacks_tensors_is_an_error(tmp_path, kind, head, lost, how):
    """With the number and names of those that were taken out, both before weights are read and when they are loaded."""
    writes = head == "ForSeq2SeqLM"
    auto_class = AutoModelForSeq2SeqLM if writes else AutoModelForQuestionAnswering
    model, _ = save(tmp_path, head, config_of(kind), **how)
    names = take_out(tmp_path, lost.replace("transformer.", "model."))
    sizes = qa.checkpoints.read_sizes(model, remote=False)
    (problem,) = qa.checkpoints.checkpoint_problems(build_weightless(auto_class, config_of(kind)), sizes)
    assert f"lacks {len(names)} tensors of the model" in problem and lost in problem
    with pytest.raises(UserError) as error:
        load = qa.models.load_seq2seq_model if writes else qa.models.load_extractive_model
        load(AutoConfig.from_pretrained(tmp_path), model)
    assert error.value.problems == (f"--model_name_or_path {tmp_path}: {problem}",)


def take_out(folder, prefix: str) -> set[str]:
    """Take the tensors whose names begin so out of a checkpoint; return their names."""
    taken = set()
    for path in folder.glob("*model*.*"):
        if path.suffix not in (".safetensors", ".bin"):
            continue
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        taken |= {name for name in tensors if name.startswith(prefix)}
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        save_file(kept, path, {"format": "pt"}) if path.suffix == ".safetensors" else torch.save(kept, path)
    for index in folder.glob("*.index.json"):
        content = load(index)
        content["weight_map"] = {name: file for name, file in content["weight_map"].items() if name not in taken}
        index.write_text(json.dumps(content))
    assert taken
    return taken


def test_the_check_reads_no_weights(tokenizers, squad_files, tmp_path):
    """The file of a Llama of 13 billion parameters, 52 GB of nothing on disk, without its last layer."""
    config = LlamaConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, intermediate_size=13824)
    config.save_pretrained(tmp_path)
    tokenizers["llama"].save_pretrained(tmp_path)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    save_empty(tmp_path / "model.safetensors", {name: state[name] for name in state if ".layers.39." not in name})
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json", "--max_eval_samples", "4"]
    with pytest.raises(UserError) as error:
        check(run_qa, tmp_path, tmp_path / "out", *flags)
    (problem,) = error.value.problems
    assert "lacks 9 tensors of the model" in problem and "transformer.layers.39.input_layernorm.weight" in problem
    save_empty(tmp_path / "model.safetensors", state)
    check(run_qa, tmp_path, tmp_path / "out", *flags)


def save_empty(path, state: dict[str, torch.Tensor]) -> None:
    """Write a file of safetensors whose tensors are a hole, all zeros without a place on the disk."""
    head, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in state.items():
        head[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_tensors_of_another_size_are_an_error(tmp_path):
    model, _ = save(tmp_path, "ForPreTraining", config_of("bert"))
    other = build_weightless(AutoModelForQuestionAnswering, config_of("bert", vocab_size=1200))
    assert qa.checkpoints.checkpoint_problems(other, qa.checkpoints.read_sizes(model, remote=False)) == [
        "1 tensor of the checkpoint with another size than in the configuration: bert.embeddings.word_embeddings.weight "
        "is 1100 x 32, not 1200 x 32; name the configuration that belongs to the checkpoint"
    ]


def test_layers_without_a_place_are_reported(tmp_path, caplog):
    """Heads of other tasks are not."""
    model, _ = save(tmp_path, "ForPreTraining", config_of("bert"))
    shallow = build_weightless(AutoModelForQuestionAnswering, config_of("bert", num_hidden_layers=1))
    assert not qa.checkpoints.checkpoint_problems(shallow, qa.checkpoints.read_sizes(model, remote=False))
    assert "no place for 16 tensors of the checkpoint: bert.encoder.layer.1.attention" in caplog.text


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda path: path.unlink(), "there is none of model.safetensors, "),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "model.safetensors has "),
        (lambda path: path.write_bytes(b""), "model.safetensors is incomplete"),
    ],
)
def test_weights_that_cannot_be_read_are_an_error(tmp_path, change, reason):
    model, _ = save(tmp_path, "ForPreTraining", config_of("bert"))
    change(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="its weights cannot be read") as error:
        qa.checkpoints.read_sizes(model, remote=False)
    assert reason in str(error.value)


def test_a_file_of_an_old_pytorch_is_checked_when_it_is_loaded(tmp_path):
    """Before PyTorch 1.6 its names cannot be had without its weights."""
    model, _ = save(tmp_path, "ForPreTraining", config_of("bert"), safe_serialization=False)
    path = tmp_path / "pytorch_model.bin"
    tensors = torch.load(path)
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert qa.checkpoints.read_sizes(model, remote=False) is None
    with pytest.raises(UserError, match="lacks 1 tensor of the model, .*: bert.encoder.layer.1.output.dense.bias;"):
        qa.models.load_extractive_model(AutoConfig.from_pretrained(tmp_path), model)


def test_a_missing_shard_is_an_error(tmp_path):
    model, _ = save(tmp_path, "ForPreTraining", config_of("bert"), max_shard_size="60KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"there is no {lost.name}, which model.safetensors.index.json names"):
        qa.checkpoints.read_sizes(model, remote=False)


def test_a_model_in_the_hubs_cache_is_checked_there(tmp_path):
    """Without the hub, which the tests do not have."""
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    save(snapshot, "ForPreTraining", config_of("bert"))
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("abc")
    cached = ModelArguments(model_name_or_path="org/tiny", cache_dir=str(tmp_path))
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(snapshot / "model.safetensors").items()}
    assert qa.checkpoints.read_sizes(cached, remote=False) == expected
    elsewhere = ModelArguments(model_name_or_path="org/other", cache_dir=str(tmp_path))
    assert qa.checkpoints.read_sizes(elsewhere, remote=True) is None


# ---------------------------------------------------------------------------------------------------------------------
# Tokens, positions and shapes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    "bert roberta xlm-roberta camembert mpnet distilbert longformer ernie_m nystromformer deberta deberta-v2 gpt2 opt bart "
    "llama t5 bloom".split(),
)
def test_the_longest_input_is_that_of_the_real_model(tokenizers, kind):
    """The real one tries every length; tables begin after the padding's position, after two rows, or at once."""
    tokenizer, most = tokenizers["roberta"], 56
    config = config_of(kind, max_position_embeddings=40)
    if kind == "longformer":
        config.attention_window = [8, 8]
    real = AutoModelForQuestionAnswering.from_config(config).eval()

    def takes(length: int) -> bool:
        batch = tokenizer("a", " a" * most, truncation="only_second", max_length=length, return_tensors="pt")
        assert batch["input_ids"].shape[1] == length
        try:
            real(**batch)
        except (IndexError, RuntimeError):
            return False
        return True

    expected = next(length for length in range(most, 0, -1) if takes(length))
    model = build_weightless(AutoModelForQuestionAnswering, config)
    assert qa.models.longest_input(model, most, tokenizer, read_template(tokenizer)) == expected


def prepare(folder, head: str, config, tokenizer) -> None:
    save(folder, head, config)
    tokenizer.save_pretrained(folder)


NYSTROMFORMER = {"segment_means_seq_len": 64, "num_landmarks": 8}


@pytest.mark.parametrize(
    "kind, settings, flags, refused",
    [
        ("nystromformer", NYSTROMFORMER, ["--do_train"], []),
        (
            "nystromformer",
            NYSTROMFORMER,
            ["--do_train", "--length_buckets", "48", "56", "64"],
            ["48 train", "56 train"],
        ),
        ("reformer", {"axial_pos_shape": [8, 8]}, ["--do_train", "--do_eval"], []),
        ("reformer", {"axial_pos_shape": [8, 16]}, ["--do_eval"], []),
        ("reformer", {"axial_pos_shape": [8, 16]}, ["--do_train", "--do_eval"], ["64 train"]),
        ("longformer", {"sep_token_id": 4}, ["--do_eval"], ["64 validation"]),
    ],
)
def test_shapes_that_an_architecture_demands(tokenizers, squad_files, tmp_path, kind, settings, flags, refused):
    """Each of those refused would end the run in a traceback in its first step."""
    prepare(tmp_path, "ForQuestionAnswering", config_of(kind, **settings), tokenizers["bert"])
    flags += ["--train_file", squad_files / "train.json", "--validation_file", squad_files / "dev.json"]
    if not refused:
        return check(run_qa, tmp_path, tmp_path / "out", *flags)
    with pytest.raises(UserError) as error:
        check(run_qa, tmp_path, tmp_path / "out", *flags)
    found = [problem.partition(" part: the model does not take it (")[0] for problem in error.value.problems]
    assert found == [f"a batch of {length} tokens of the {split}" for length, split in map(str.split, refused)]


@pytest.mark.parametrize(
    "kind, settings, refused", [("albert", {}, False), ("reformer", {"axial_pos_shape": [8, 8]}, True)]
)
def test_gradient_checkpointing_needs_a_model_that_supports_it(
    tokenizers, squad_files, tmp_path, kind, settings, refused
):
    """transformers supports it for neither, which it reports in a traceback when the training begins."""
    prepare(tmp_path, "ForQuestionAnswering", config_of(kind, **settings), tokenizers["bert"])
    flags = ["--do_train", "--train_file", squad_files / "train.json", "--gradient_checkpointing"]
    if not refused:
        return check(run_qa, tmp_path, tmp_path / "out", *flags)
    with pytest.raises(UserError) as error:
        check(run_qa, tmp_path, tmp_path / "out", *flags)
    (problem,) = error.value.problems
    assert problem.startswith("--gradient_checkpointing: ReformerForQuestionAnswering does not support it; omit it")


def test_a_tokenizer_with_more_token_types_than_the_model_omits_them(tokenizers, squad_files, tmp_path, caplog):
    """RoBERTa with BERT's tokenizer, which ended in an IndexError."""
    prepare(tmp_path, "ForMaskedLM", config_of("roberta", type_vocab_size=1), tokenizers["bert"])
    flags = ["--do_train", "--train_file", squad_files / "train.json", "--max_steps", "1", "--check", "False"]
    check(run_qa, tmp_path, tmp_path / "out", *flags, "--disable_tqdm", "True")
    assert "The tokenizer has token types that the model, with 1, does not know; they are omitted" in caplog.text
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_padding_token_past_the_embeddings_is_not_used(tokenizers, squad_files, tmp_path):
    """The first Llama 2 tokenizers have one."""
    tokenizer = copy.deepcopy(tokenizers["llama"])
    config = config_of("llama", vocab_size=len(tokenizer), pad_token_id=0)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    prepare(tmp_path, "ForCausalLM", config, tokenizer)
    check(run_qa, tmp_path, tmp_path / "out", "--do_eval", "--validation_file", squad_files / "dev.json")
    named = ModelArguments(model_name_or_path=str(tmp_path))
    assert qa.models.load_config_and_tokenizer(named)[1].pad_token == "</s>"
    tokenizer.add_tokens(["Zürich"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokens, but the model embeds only"):
        check(run_qa, tmp_path, tmp_path / "out", "--do_eval", "--validation_file", squad_files / "dev.json")


def test_answers_longer_than_the_decoders_table_are_an_error(writers, squad_files, tmp_path):
    prepare(tmp_path, "ForSeq2SeqLM", config_of("bart", max_position_embeddings=64), writers["bart"])
    flags = ["--do_eval", "--validation_file", squad_files / "dev.json", "--predict_with_generate"]
    check(run_seq2seq_qa, tmp_path, tmp_path / "out", *flags, "--val_max_answer_length", "64")
    with pytest.raises(UserError) as error:
        check(run_seq2seq_qa, tmp_path, tmp_path / "out", *flags, "--val_max_answer_length", "65")
    (problem,) = error.value.problems
    assert "model.decoder.embed_positions.weight has 66 rows, row 66 is asked for" in problem


# ---------------------------------------------------------------------------------------------------------------------
# Which tokens a model sees
# ---------------------------------------------------------------------------------------------------------------------


SEEING_SIZES = {
    **{"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    **{
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
GPT_NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2}
MOE = {"num_local_experts": 2, "num_experts": 2, "moe_intermediate_size": 32}
MOE |= {"shared_expert_intermediate_size": 32, "num_experts_per_tok": 1, "decoder_sparse_step": 1}
BART = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")} | {
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64
}  # fmt: skip
XLNET = {"vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
T5 = {"d_kv": 16, "d_ff": 64, "decoder_start_token_id": 0}
DECODERS = [
    ("gpt2", {}), ("gptj", {"rotary_dim": 8}), ("gpt_neo", GPT_NEO), ("gpt_neox", {}), ("falcon", {}), ("bloom", {}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}), ("mpt", {}), ("llama", {}), ("mistral", {}), ("mixtral", MOE),
    ("qwen2", {}), ("qwen2_moe", MOE), ("qwen3", {"head_dim": 16}), ("qwen3_moe", MOE | {"head_dim": 16}),
    ("nemotron", {}), ("arcee", {}), ("smollm3", {}), ("diffllama", {}), ("exaone4", {}),
    ("bert", {"is_decoder": True}), ("electra", {"is_decoder": True}), ("xlnet", {"attn_type": "uni"}),
]  # fmt: skip
ENCODERS = [
    ("bert", {}), ("roberta", {}), ("distilbert", {}), ("albert", {"embedding_size": 16}), ("electra", {}),
    ("deberta", {}), ("deberta-v2", {}), ("mpnet", {}), ("modernbert", {"reference_compile": False}), ("big_bird", {}), ("rembert", {}),
    ("convbert", {}), ("xlnet", {}), ("fnet", {}), ("bart", BART), ("mbart", BART), ("t5", T5), ("mt5", T5),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, settings, causal", [(*case, True) for case in DECODERS] + [(*case, False) for case in ENCODERS]
)
def test_a_causal_model_does_not_see_later_tokens(kind, settings, causal):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(XLNET if kind == "xlnet" else SEEING_SIZES), **settings)
    model = transformers.AutoModelForQuestionAnswering.from_config(config).eval()
    ids = torch.randint(5, 40, (1, 16))
    changed = ids.clone()
    changed[0, -2] = 3
    with torch.no_grad():
        before, after = (model(input_ids=inputs).start_logits[0, :14] for inputs in (ids, changed))
    assert torch.allclose(before, after, atol=1e-6) == causal
    assert is_causal(config) == causal
