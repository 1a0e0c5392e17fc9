"""What is known of a model from its configuration, against how the model itself behaves."""

import pytest
import torch
import transformers

from qa.models import is_causal


SIZES = {
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
CAUSAL = [
    ("gpt2", {}), ("gptj", {"rotary_dim": 8}), ("gpt_neo", GPT_NEO), ("gpt_neox", {}), ("falcon", {}), ("bloom", {}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}), ("mpt", {}), ("llama", {}), ("mistral", {}), ("mixtral", MOE),
    ("qwen2", {}), ("qwen2_moe", MOE), ("qwen3", {"head_dim": 16}), ("qwen3_moe", MOE | {"head_dim": 16}),
    ("nemotron", {}), ("arcee", {}), ("smollm3", {}), ("diffllama", {}), ("exaone4", {}),
    ("bert", {"is_decoder": True}), ("electra", {"is_decoder": True}), ("xlnet", {"attn_type": "uni"}),
]  # fmt: skip
SEEING = [
    ("bert", {}), ("roberta", {}), ("distilbert", {}), ("albert", {"embedding_size": 16}), ("electra", {}),
    ("deberta", {}), ("deberta-v2", {}), ("mpnet", {}), ("modernbert", {"reference_compile": False}), ("big_bird", {}), ("rembert", {}),
    ("convbert", {}), ("xlnet", {}), ("fnet", {}), ("bart", BART), ("mbart", BART), ("t5", T5), ("mt5", T5),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, settings, causal", [(*case, True) for case in CAUSAL] + [(*case, False) for case in SEEING]
)
def test_a_causal_model_does_not_see_what_follows(kind, settings, causal):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(XLNET if kind == "xlnet" else SIZES), **settings)
    model = transformers.AutoModelForQuestionAnswering.from_config(config).eval()
    ids = torch.randint(5, 40, (1, 16))
    changed = ids.clone()
    changed[0, -2] = 3
    with torch.no_grad():
        before, after = (model(input_ids=inputs).start_logits[0, :14] for inputs in (ids, changed))
    assert torch.allclose(before, after, atol=1e-6) == causal
    assert is_causal(config) == causal
