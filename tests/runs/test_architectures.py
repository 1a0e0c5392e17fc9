"""Every architecture that is known to work trains a step, evaluates and predicts: the scripts in process, tiny models."""

import json
import math

import pytest
import torch
from helpers import golds_of, load
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    set_seed,
)

import run_qa
import run_seq2seq_qa


LEARNING_RATE = 1e-3
SETTINGS = ["--max_seq_length", "80", "--doc_stride", "16", "--max_answer_length", "8", "--pad_to_max_length", "False"]
SETTINGS += ["--do_train", "--do_eval", "--do_predict", "--max_steps", "1", "--per_device_train_batch_size", "8"]
SETTINGS += ["--learning_rate", str(LEARNING_RATE), "--save_strategy", "no", "--version_2_with_negative"]
SETTINGS += ["--report_to", "none", "--disable_tqdm", "True", "--log_level", "error"]

# One layer, 16 wide. A configuration ignores the names that it does not know.
ENCODER = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    **{"embedding_size": 16, "max_position_embeddings": 130},
}
BART = {
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 130},
}
LED = BART | {"attention_window": 8, "max_encoder_position_embeddings": 130}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}

# Model type: (kind of tokenizer, configuration).
EXTRACTIVE = {
    "deberta": ("roberta", ENCODER | DISENTANGLED),
    "deberta-v2": ("albert", ENCODER | DISENTANGLED),
    "mpnet": ("bert", ENCODER),
    "big_bird": ("albert", ENCODER | {"block_size": 4, "num_random_blocks": 1}),
    "modernbert": ("bert", ENCODER | {"num_hidden_layers": 2, "global_attn_every_n_layers": 2, "local_attention": 8}),
    "gpt2": ("qwen2", ENCODER),
    "gptj": ("qwen2", ENCODER | {"rotary_dim": 4}),
    "gpt_neo": ("qwen2", ENCODER | {"attention_types": [[["global"], 1]], "num_layers": 1, "num_heads": 2}),
    "falcon": ("qwen2", ENCODER),
    "bloom": ("qwen2", ENCODER),
    "opt": ("qwen2", ENCODER | {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "mpt": ("qwen2", ENCODER),
    "mistral": ("llama", ENCODER | {"num_key_value_heads": 1, "head_dim": 8}),
    "xlm-roberta": ("roberta", ENCODER),
    "xmod": ("roberta", ENCODER | {"languages": ["en_XX"], "default_language": "en_XX"}),
    "rembert": ("albert", ENCODER | {"input_embedding_size": 16, "output_embedding_size": 16}),
    "electra": ("bert", ENCODER),
    "fnet": ("albert", ENCODER),
    "funnel": ("bert", {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1]}),
    "convbert": ("bert", ENCODER),
    "squeezebert": ("bert", ENCODER),
    "mobilebert": ("bert", ENCODER | {"intra_bottleneck_size": 16, "num_feedforward_networks": 1}),
    "camembert": ("roberta", ENCODER),
    "xlnet": ("xlnet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}),
    "mbart": ("bart", BART),
    "led": ("bart", LED),
    "mt5": ("t5", T5),
}
WRITING = {
    "mt5": ("t5", T5),
    "umt5": ("t5", T5),
    "longt5": ("t5", T5 | {"local_radius": 7, "encoder_attention_type": "transient-global", "global_block_size": 4}),
    "switch_transformers": ("t5", T5 | {"num_layers": 2, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}),
    "led": ("bart", LED),
    "bart": ("bart", BART | {"forced_bos_token_id": 0, "forced_eos_token_id": 2}),
    "mbart": ("mbart", BART),
    "pegasus": ("t5", BART),
    "bigbird_pegasus": ("t5", BART | {"block_size": 4, "num_random_blocks": 1}),
    "blenderbot": ("bart", BART),
    "blenderbot-small": ("bart", BART),
    "m2m_100": ("nllb", BART),
    "nllb-moe": ("nllb", BART | {"num_experts": 2, "encoder_sparse_step": 1, "decoder_sparse_step": 1}),
    "prophetnet": ("bert", BART | {"hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}),
    "encoder-decoder": ("bert", {
        "encoder": ENCODER | {"model_type": "bert", "vocab_size": 0},
        "decoder": ENCODER | {"model_type": "bert", "vocab_size": 0, "is_decoder": True, "add_cross_attention": True},
    }),
}  # fmt: skip
CASES = [("run_qa", kind) for kind in EXTRACTIVE] + [("run_seq2seq_qa", kind) for kind in WRITING]

NILE = "The Nile flows through Egypt."
RHINE = "The Rhine rises in the mountains. " * 6 + "Its first bridge was built in 1226."


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Return a SQuAD 2.0 file: two questions about a short context, one without an answer, and one about a longer context."""
    asked = [
        {"id": "land", "question": "Which land?", "answers": [{"text": "Egypt", "answer_start": NILE.index("Egypt")}]},
        {"id": "king", "question": "Which king?", "answers": [], "is_impossible": True},
    ]
    when = {"id": "year", "question": "When?", "answers": [{"text": "1226", "answer_start": RHINE.index("1226")}]}
    paragraphs = [{"context": NILE, "qas": asked}, {"context": RHINE, "qas": [when]}]
    path = tmp_path_factory.mktemp("questions") / "questions.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Rivers", "paragraphs": paragraphs}]}))
    return path


def make_model(script: str, kind: str, tokenizers: dict, folder) -> None:
    """Save a tiny model of a type, and its tokenizer."""
    name, settings = (EXTRACTIVE if script == "run_qa" else WRITING)[kind]
    tokenizer = tokenizers[name]
    settings = json.loads(json.dumps(settings).replace('"vocab_size": 0', f'"vocab_size": {len(tokenizer)}'))
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **settings | special)
    head = AutoModelForQuestionAnswering if script == "run_qa" else AutoModelForSeq2SeqLM
    set_seed(0)
    model = head.from_config(config)
    if kind == "encoder-decoder":  # nothing but its generation's configuration says how it starts
        model.generation_config.decoder_start_token_id = tokenizer.cls_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("script, kind", CASES)
def test_an_architecture_trains_evaluates_and_predicts(tokenizers, writers, questions, tmp_path, script, kind):
    make_model(script, kind, tokenizers | writers, tmp_path / "model")
    argv = ["--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out", *SETTINGS]
    argv += [word for part in ("train", "validation", "test") for word in (f"--{part}_file", questions)]
    argv += ["--n_best_size", "80"] if script == "run_qa" else ["--predict_with_generate", "--num_beams", "2"]
    {"run_qa": run_qa, "run_seq2seq_qa": run_seq2seq_qa}[script].main(list(map(str, argv)))
    check_training(tmp_path / "model", tmp_path / "out")
    check_files(tmp_path / "out", questions)
    if script == "run_qa":
        check_spans(tmp_path / "out")
    else:
        check_written(tmp_path / "out")


def check_training(start, folder) -> None:
    """The weights that were saved are those of the start, most of them one step of Adam further on."""
    before, after = (load_file(each / "model.safetensors") for each in (start, folder))
    assert before.keys() == after.keys()
    moved = torch.tensor([(after[name].float() - before[name].float()).abs().max() for name in before])
    assert moved.max() < 1.1 * LEARNING_RATE and (moved > 0).float().mean() > 0.5
    for stage, loss in (("train", "train_loss"), ("eval", "eval_loss"), ("predict", "test_loss")):
        assert math.isfinite(load(folder / f"{stage}_results.json")[loss])


def check_files(folder, questions) -> None:
    """Every question has an answer, a finite score and n-best answers, the same in evaluation and prediction."""
    files = [[load(folder / f"{stage}_{name}.json") for name in ("predictions", "null_odds", "nbest_predictions")]
             for stage in ("eval", "predict")]  # fmt: skip
    assert files[0] == files[1]
    assert all(list(file) == list(golds_of(questions)) for file in files[0])
    assert all(map(math.isfinite, files[0][1].values()))


def check_spans(folder) -> None:
    """The n-best answers are texts of the question's context, and with negatives the empty one."""
    for identity, rows in load(folder / "eval_nbest_predictions.json").items():
        context = RHINE if identity == "year" else NILE
        texts = {row["text"] for row in rows}
        assert "" in texts and len(texts) > 5 and all(text in context for text in texts)


def check_written(folder) -> None:
    """Text and score of the empty answer are those of the saved model on its own: its `generate`, its own use of labels."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoding = tokenizer(f"question: Which land? context: {NILE}", return_tensors="pt")
    encoding.pop("token_type_ids", None)
    label = tokenizer(text_target="")["input_ids"]
    end = label.index(tokenizer.eos_token_id or tokenizer.sep_token_id)
    with torch.no_grad():
        (written,) = model.generate(**encoding, num_beams=2, max_length=8, min_length=end + 2)
        scores = model(**encoding, labels=torch.tensor([label])).logits[0].log_softmax(-1)[range(len(label)), label]
    (entry,) = load(folder / "eval_nbest_predictions.json")["land"]
    assert entry["text"] == tokenizer.decode(written, skip_special_tokens=True)
    assert entry["null_score"] == pytest.approx(scores[: end + 1].sum().item(), abs=1e-4)
