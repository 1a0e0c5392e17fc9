"""Texts that are taken literally, and the special tokens around them."""

import copy

import pytest
from helpers import as_dicts, rows_of
from test_utils_qa import KINDS
from tokenizers import AddedToken

import qa.seq2seq
import qa.windows
import utils_qa


WRITERS = ("t5", "t5_old", "bart")
NO_ANSWER = {"text": [], "answer_start": []}
HTML = "The old price was <s>20 euros</s>, [SEP] the new one is <pad>15 euros</pad> <extra_id_0> [CLS]<mask>."
ANSWER = {"text": ["<s>20 euros</s>"], "answer_start": [HTML.index("<s>")]}


def special_ids(tokenizer) -> set[int]:
    """Ids of all special tokens except that for unknown text."""
    return {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}


def every_name(tokenizer) -> str:
    """Return a text that names each special token, next to a word and alone."""
    return " ".join(f"{name} word{name}word" for name in tokenizer.all_special_tokens)


@pytest.fixture(scope="module")
def all_tokenizers(tokenizers, writers):
    """With a token each that a user added to the vocabulary, and T5's with extra ids."""
    made = copy.deepcopy(tokenizers | writers)
    for tokenizer in made.values():
        tokenizer.add_tokens(["<unit>"])
    made["t5"].add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    return made


@pytest.mark.parametrize("kind", KINDS + WRITERS)
def test_names_of_special_tokens_in_a_text_are_text(all_tokenizers, kind):
    """On both paths; a Longformer crashed in the middle of training on an <s> of the text."""
    tokenizer = all_tokenizers[kind]
    before = tokenizer.backend_tokenizer.to_str()
    names = every_name(tokenizer)
    rows = rows_of([names, "Which price?"], [f"{names} {HTML}", HTML], [NO_ANSWER, ANSWER])
    features = utils_qa.prepare_features(rows, tokenizer, 384, 0)
    assert isinstance(features, utils_qa.Features)
    literal = qa.windows.literal_tokenizer(tokenizer)
    spec = qa.windows.WindowSpec(literal, features.template, 384, 0)
    dicts = as_dicts(features)
    assert dicts == list(utils_qa.own_features(rows, spec, labelled=True))
    for feature in dicts:
        special = [token for token in feature["input_ids"] if token in special_ids(tokenizer)]
        assert len(special) == features.template.special_tokens
    last = dicts[-1]
    (begin, _), (_, end) = (last["offset_mapping"][last[f"{side}_positions"]] for side in ("start", "end"))
    assert HTML[begin:end].strip() == ANSWER["text"][0]
    assert tokenizer.backend_tokenizer.to_str() == before and not tokenizer.split_special_tokens


@pytest.mark.parametrize("kind", WRITERS)
def test_names_of_special_tokens_in_inputs_and_targets_are_text(all_tokenizers, kind):
    tokenizer = all_tokenizers[kind]
    rows = rows_of([every_name(tokenizer)], [HTML], [ANSWER])
    before = tokenizer.backend_tokenizer.to_str()
    (feature,) = qa.seq2seq.prepare_seq2seq_features(rows, tokenizer, 384, 64, 30)
    own = len(tokenizer("")["input_ids"])
    for name in ("input_ids", "labels"):
        assert sum(token in special_ids(tokenizer) for token in feature[name].tolist()) == own
    assert tokenizer.decode(feature["labels"], skip_special_tokens=True).replace("<unk>", "") != ""
    assert tokenizer.backend_tokenizer.to_str() == before and not tokenizer.split_special_tokens


@pytest.mark.parametrize("kind", KINDS + WRITERS)
def test_tokens_that_a_user_added_are_still_found_in_texts(all_tokenizers, kind):
    tokenizer = all_tokenizers[kind]
    number = tokenizer.convert_tokens_to_ids("<unit>")
    rows = rows_of(["How many <unit>?"], ["It is 5 <unit> long."], [NO_ANSWER])
    (feature,) = as_dicts(utils_qa.prepare_features(rows, tokenizer, 96, 16))
    assert feature["input_ids"].count(number) == 2 and number >= tokenizer.vocab_size
    place = [
        token == number and span is not None for token, span in zip(feature["input_ids"], feature["offset_mapping"])
    ].index(True)
    begin, end = feature["offset_mapping"][place]
    assert rows[0]["context"][begin:end].strip() == "<unit>"


def test_a_special_token_that_its_file_does_not_list_as_special(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["qwen2"])
    tokenizer.add_tokens([AddedToken("<|end|>", special=False)])
    tokenizer.eos_token = "<|end|>"
    rows = rows_of(["Where?"], ["Here <|end|> there"], [NO_ANSWER])
    (feature,) = as_dicts(utils_qa.prepare_features(rows, tokenizer, 96, 16))
    assert tokenizer.eos_token_id not in feature["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "xlnet", "llama"])
def test_a_tokenizer_is_saved_as_it_was(tokenizers, kind, tmp_path):
    tokenizer = copy.deepcopy(tokenizers[kind])
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    tokenizer.save_pretrained(tmp_path / "before")
    rows = rows_of(["Where?"], [HTML], [ANSWER])
    utils_qa.prepare_features(rows, tokenizer, 96, 16)
    qa.seq2seq.prepare_seq2seq_features(rows, tokenizer, 96, 16, 30)
    tokenizer.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "bert"])
def test_a_causal_model_reads_the_question_first_and_has_a_place_for_no_answer(tokenizers, kind, side):
    """On either padding side, also without a question, and without a special token of the tokenizer's own."""
    tokenizer = copy.deepcopy(tokenizers[kind])
    tokenizer.padding_side = side
    context = "the river and the bridge of the old city " * 3
    rows = rows_of(["where is the bridge", ""], [context] * 2, [{"text": ["the"], "answer_start": [0]}, NO_ANSWER])
    features = utils_qa.prepare_features(rows, tokenizer, 32, 8, causal=True)
    assert isinstance(features, utils_qa.Features)
    dicts = as_dicts(features)
    end = tokenizer.sep_token_id if kind == "bert" else tokenizer.eos_token_id
    for feature in dicts:
        places = [place for place, span in enumerate(feature["offset_mapping"]) if span is not None]
        length = len(feature["input_ids"])
        assert feature["cls_index"] == length - 1 and feature["input_ids"][-1] == end and length <= 32
        assert places == [*range(places[0], length - 1)]
    labels = [
        (feature["start_positions"], feature["end_positions"]) for feature in dicts if feature["example_id"] == "q1"
    ]
    assert labels == [(len(feature["input_ids"]) - 1,) * 2 for feature in dicts if feature["example_id"] == "q1"]
    first = dicts[0]["offset_mapping"].index((0, 3))
    assert (dicts[0]["start_positions"], dicts[0]["end_positions"]) == (first, first)
