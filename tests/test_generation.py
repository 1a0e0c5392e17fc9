"""How encoder-decoders start, end and constrain their answers."""

import importlib
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, set_seed
from transformers.training_args_seq2seq import Seq2SeqTrainingArguments

import run_seq2seq_qa
from qa.arguments import Seq2SeqModelArguments
from qa.device import training_arguments
from qa.errors import UserError
from qa.generation import answer_marks, empty_answer, read_generation_config, set_language, shift_right
from qa.seq2seq import tokenize_targets
from trainer_seq2seq_qa import QuestionAnsweringSeq2SeqTrainer


LABELS = torch.tensor([[7, 8, 9, 2, 5], [7, 2, 5, -100, -100], [2, 5, -100, -100, -100]])  # end token 2, language 5


@pytest.mark.parametrize(
    "kind", "bart pegasus blenderbot blenderbot_small m2m_100 nllb_moe led bigbird_pegasus encoder_decoder".split()
)
def test_labels_are_shifted_as_the_model_shifts_them(kind):
    own = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}").shift_tokens_right
    assert shift_right(LABELS, start=3, padding=1).equal(own(LABELS, 1, 3))


def test_labels_are_shifted_as_by_t5_and_mbart():
    """mBART begins with the last token of the labels, which is their language."""
    from transformers.models.mbart.modeling_mbart import shift_tokens_right

    assert shift_right(LABELS, start=5, padding=1).equal(shift_tokens_right(LABELS.clone(), 1))
    t5 = tiny("t5", d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=3, pad_token_id=1)
    assert shift_right(LABELS, start=3, padding=1).equal(t5.prepare_decoder_input_ids_from_labels(LABELS))


def tiny(kind: str, **settings):
    set_seed(0)
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, vocab_size=50, **settings)).eval()


def settings_of(tmp_path, config, tokenizer, generation: dict | None = None, **flags):
    """Return what `read_generation_config` reads from a checkpoint's configuration and its `generation_config.json`."""
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    training_args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
    return read_generation_config(config, tokenizer, Seq2SeqModelArguments(str(tmp_path)), training_args)


def test_generation_starts_with_the_start_token(writers, tmp_path):
    """Bert2bert models often have it in `generation_config.json` alone."""
    bart = AutoConfig.for_model("bart", decoder_start_token_id=2)
    assert settings_of(tmp_path, bart, writers["bart"]).decoder_start_token_id == 2
    found = settings_of(tmp_path, bart, writers["bart"], {"decoder_start_token_id": 4, "bos_token_id": 6})
    assert found.decoder_start_token_id == 4
    bart.decoder_start_token_id = None
    found = settings_of(tmp_path, bart, writers["bart"], {"bos_token_id": 6})
    assert found.decoder_start_token_id == 6
    with pytest.raises(UserError, match="a bart model that has no decoder_start_token_id"):
        settings_of(tmp_path, bart, writers["bart"], {})


def test_the_end_token_is_that_of_the_labels(tokenizers, tmp_path):
    """In addition to those of the checkpoint; a tokenizer that ends no text gets its end token added, in the empty answer too."""
    config = AutoConfig.for_model("bart", decoder_start_token_id=2, eos_token_id=None)
    assert settings_of(tmp_path, config, tokenizers["bert"]).eos_token_id == tokenizers["bert"].sep_token_id
    found = settings_of(tmp_path, config, tokenizers["bert"], {"eos_token_id": [9, 8], "decoder_start_token_id": 2})
    assert found.eos_token_id == [9, 8, tokenizers["bert"].sep_token_id]
    qwen = tokenizers["qwen2"]
    assert qwen("river")["input_ids"][-1] != qwen.eos_token_id and empty_answer(qwen) == [qwen.eos_token_id]
    targets = tokenize_targets(["river", ""], qwen, 30)
    assert targets.ids[targets.splits[1:] - 1].tolist() == [qwen.eos_token_id] * 2


def test_a_tokenizer_without_an_end_token_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="PreTrainedTokenizerFast has no token that ends a text: set its eos_token"):
        answer_marks(PreTrainedTokenizerFast(tokenizer_object=words))


def test_answers_are_written_in_the_language_of_the_tokenizer(writers, tmp_path):
    """mBART starts with it; NLLB, which starts with the end token, must write it first."""
    mbart, nllb = writers["mbart"], writers["nllb"]
    for tokenizer in (mbart, nllb):
        set_language(tokenizer, None)
        assert tokenizer.tgt_lang == tokenizer.src_lang
    config = AutoConfig.for_model("mbart", decoder_start_token_id=3)
    assert settings_of(tmp_path, config, mbart).decoder_start_token_id == mbart.convert_tokens_to_ids("de_DE")
    assert empty_answer(mbart) == [mbart.eos_token_id]
    config = AutoConfig.for_model("m2m_100")
    found = settings_of(tmp_path, config, nllb)
    english = nllb.convert_tokens_to_ids("eng_Latn")
    assert (found.decoder_start_token_id, found.forced_bos_token_id) == (2, english)
    assert empty_answer(nllb) == [english, nllb.eos_token_id]


def test_another_language_can_be_named(writers, tmp_path):
    nllb = writers["nllb"]
    set_language(nllb, "deu_Latn")
    german = nllb.convert_tokens_to_ids("deu_Latn")
    found = settings_of(tmp_path, AutoConfig.for_model("m2m_100"), nllb, {"forced_bos_token_id": 9})
    assert (
        found.forced_bos_token_id == nllb("river")["input_ids"][0] == tokenize_targets(["x"], nllb, 9).ids[0] == german
    )
    set_language(nllb, "eng_Latn")  # as it was
    with pytest.raises(
        UserError, match="--language_code xx: the tokenizer NllbTokenizerFast knows ace_Arab, ace_Latn"
    ):
        set_language(nllb, "xx")
    with pytest.raises(
        UserError, match="--language_code de_DE: the tokenizer T5TokenizerFast marks no languages; omit it"
    ):
        set_language(writers["t5"], "de_DE")


def test_the_language_is_checked_before_anything_slow(writers, squad_files, tmp_path):
    AutoConfig.for_model("m2m_100").save_pretrained(tmp_path)
    writers["nllb"].save_pretrained(tmp_path)
    argv = ["--model_name_or_path", tmp_path, "--output_dir", tmp_path / "out", "--check", "--do_train"]
    argv += ["--train_file", squad_files / "train.json", "--language_code", "xx"]
    with pytest.raises(UserError, match="--language_code xx"):
        run_seq2seq_qa.main(list(map(str, argv)))


def test_settings_that_rule_out_short_answers_are_reset(writers, tmp_path, caplog):
    """Those of Blenderbot's checkpoints; a file that --generation_config names is applied as it is."""
    constrained = {"min_length": 20, "encoder_no_repeat_ngram_size": 3, "decoder_start_token_id": 1, "num_beams": 10}
    config = AutoConfig.for_model("blenderbot")
    found = settings_of(tmp_path, config, writers["bart"], constrained)
    assert (found.min_length, found.encoder_no_repeat_ngram_size, found.num_beams) == (0, 0, 10)
    assert "min_length 20, encoder_no_repeat_ngram_size 3 would rule out short answers" in caplog.text
    (tmp_path / "mine.json").write_text(json.dumps(constrained))
    found = settings_of(tmp_path, config, writers["bart"], generation_config=str(tmp_path / "mine.json"))
    assert (found.min_length, found.encoder_no_repeat_ngram_size) == (20, 3)
    with pytest.raises(UserError, match="--generation_config .*gone"):
        settings_of(tmp_path, config, writers["bart"], generation_config=str(tmp_path / "gone"))


def test_the_routers_of_experts_add_to_the_loss(tmp_path):
    """As in the model's own loss; without it nothing keeps the experts evenly used."""
    model = tiny("switch_transformers", d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, num_experts=4,
                 num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0)  # fmt: skip
    with torch.no_grad():
        output = model(input_ids=LABELS.abs() % 50, labels=LABELS)
    args = training_arguments(True)(output_dir=str(tmp_path), report_to="none")
    trainer = QuestionAnsweringSeq2SeqTrainer(model, args)
    assert trainer.token_loss(output, LABELS).item() == pytest.approx(output.loss.item())
    tokens = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), LABELS.flatten())
    assert output.loss - tokens > 0.01
