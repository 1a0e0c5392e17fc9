"""The oracle against values worked out by hand, small enough to check by eye."""

import json

import numpy as np
import oracle
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "q", "a", "b", "c", "d", "e", "f", "ab", "##c"]
CONTEXT = "abc d e f"  # tokens ab 0-2, ##c 2-3, d 4-5, e 6-7, f 8-9


def tokenizer(padding_side: str = "right") -> BertTokenizerFast:
    """Return a WordPiece tokenizer that knows WORDS."""
    made = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(tokenizer_object=made, padding_side=padding_side)


def labels(text: str | None, start: int = 0, size: int = 20, stride: int = 0, **options) -> list[tuple[int, int]]:
    """Return the labels of the windows of "q" and CONTEXT for one gold answer."""
    gold = [{"text": [text], "answer_start": [start]}] if text is not None else None
    side = options.pop("side", "right")
    rows = oracle.features(tokenizer(side), ["q"], [CONTEXT], gold, size, stride, **options)
    return [(row["start_positions"], row["end_positions"]) for row in rows]


# Features


def test_feature_has_every_field():
    assert oracle.features(tokenizer(), [" \tq"], ["abc d"], None, 20, 0) == [
        {
            "example_index": 0,
            "input_ids": [2, 5, 3, 12, 13, 9, 3],
            "attention_mask": [1] * 7,
            "token_type_ids": [0, 0, 0, 1, 1, 1, 1],
            "offset_mapping": [None, None, None, (0, 2), (2, 3), (4, 5), None],
            "cls_index": 0,
            "start_positions": 0,
            "end_positions": 0,
        }
    ]


def test_context_comes_first_with_left_padding():
    (row,) = oracle.features(tokenizer("left"), ["q"], ["d"], [{"text": ["d"], "answer_start": [0]}], 20, 0)
    assert row["input_ids"] == [2, 9, 3, 5, 3]
    assert row["offset_mapping"] == [None, (0, 1), None, None, None]


def test_windows_overlap_and_count_up_their_example():
    rows = oracle.features(tokenizer(), ["q", "q"], [CONTEXT, "d"], None, 7, 1)
    assert [row["input_ids"][3:-1] for row in rows] == [[12, 13, 9], [9, 10, 11], [9]]
    assert [row["example_index"] for row in rows] == [0, 0, 1]


def test_labels_on_the_grid():
    assert labels("d e", 4) == [(5, 6)]
    assert labels("abc", 0) == [(3, 4)]


def test_labels_inside_a_token_take_the_whole_token():
    assert labels("b", 1) == [(3, 3)]
    assert labels("bc d", 1) == [(3, 5)]
    assert labels(" d", 3) == [(4, 5)]  # from the space: the last token that starts before it


def test_no_answer_is_cls():
    assert labels(None) == [(0, 0)]
    assert oracle.features(tokenizer(), ["q"], ["d"], [None], 20, 0)[0]["start_positions"] == 0
    empty = [{"text": [], "answer_start": []}]
    assert oracle.features(tokenizer(), ["q"], ["d"], empty, 20, 0)[0]["end_positions"] == 0


def test_a_cls_spelled_out_by_the_text_is_not_taken():
    assert oracle.cls_position(tokenizer(), [5, 2, 3, 2], [0, 0, None, None]) == 3
    assert oracle.cls_position(tokenizer(), [5, 9, 3], [0, 1, None]) == 0


def test_a_window_without_the_whole_answer_is_cls():
    # Windows of three context tokens: ab ##c d, and d e f.
    assert labels("d e", 4, size=7, stride=1) == [(0, 0), (3, 4)]
    assert labels("c d e", 2, size=7, stride=1) == [(0, 0), (0, 0)]


def test_an_empty_context_holds_no_answer():
    (row,) = oracle.features(tokenizer(), ["q"], [" "], [{"text": [" "], "answer_start": [0]}], 20, 0)
    assert (row["start_positions"], row["end_positions"]) == (0, 0)


@pytest.mark.parametrize("side, source, inside", [("right", (8, 7), (7, 7)), ("left", (8, 5), (5, 5))])
def test_start_in_the_last_token_leaves_the_context_in_the_source(side, source, inside):
    # right: [CLS] q [SEP] ab ##c d e f [SEP]; left: [CLS] ab ##c d e f [SEP] q [SEP]
    assert labels("f", 8, side=side) == [source]
    assert labels("f", 8, side=side, stay_in_context=True) == [inside]


def test_zero_width_tokens():
    # Offsets as byte-level tokenizers give them when a space is trimmed; the answer is characters 4 to 6.
    offsets = [(0, 0), (0, 3), (4, 4), (4, 6), (6, 6), (7, 9), (0, 0)]
    in_context = [False, True, True, True, True, True, False]
    gold = {"text": ["xx"], "answer_start": [4]}
    assert oracle.answer_positions(offsets, in_context, gold, 0, False) == (3, 3)
    gold = {"text": ["xx"], "answer_start": [3]}  # from the space on
    assert oracle.answer_positions(offsets, in_context, gold, 0, False) == (1, 3)


def test_end_in_the_first_token_leaves_the_context_in_the_source():
    # A question directly before the context, as in Qwen2; the answer is the first character.
    offsets = [(0, 4), (0, 2), (2, 4)]
    gold = {"text": ["x"], "answer_start": [0]}
    assert oracle.answer_positions(offsets, [False, True, True], gold, 0, False) == (1, 0)
    assert oracle.answer_positions(offsets, [False, True, True], gold, 0, True) == (1, 1)


# Answers

EXAMPLES = [{"id": "one", "context": "red fox"}]
OFFSETS = [None, (0, 3), (4, 7), None]


def scores(*rows: tuple[float, ...], dtype: type = np.float64) -> np.ndarray:
    """Logits, one row a window."""
    return np.array(rows, dtype=dtype)


def window(**extra) -> dict:
    """Return a feature of the only example: [CLS] red fox [SEP]."""
    return {"example_index": 0, "offset_mapping": OFFSETS, **extra}


def test_best_span_and_its_rows():
    logits = scores((0, 2, 1, 9)), scores((0, 1, 3, 9))
    texts, nbest, null_odds = oracle.answers(EXAMPLES, [window()], logits)
    assert texts == {"one": "red fox"}
    # red fox 2 + 3, fox 1 + 3, red 2 + 1; the special tokens do not count, and "fox red" is reversed.
    assert [row["text"] for row in nbest["one"]] == ["red fox", "fox", "red"]
    assert list(nbest["one"][0]) == ["start_logit", "end_logit", "text", "probability"]
    parts = np.exp([0, -1, -2])
    assert [row["probability"] for row in nbest["one"]] == pytest.approx(list(parts / parts.sum()))
    assert null_odds == {}


def test_n_best_size_is_per_window_and_in_all():
    logits = scores((0, 2, 1, -1)), scores((0, 1, 3, -1))
    assert [row["text"] for row in oracle.answers(EXAMPLES, [window()], logits, n_best_size=1)[1]["one"]] == [
        "red fox"
    ]
    two = oracle.answers(EXAMPLES, [window()], logits, n_best_size=2)[1]["one"]
    assert [row["text"] for row in two] == ["red fox", "fox"]


def test_spans_are_no_longer_than_allowed():
    logits = scores((0, 2, 1, 9)), scores((0, 1, 3, 9))
    assert oracle.answers(EXAMPLES, [window()], logits, max_answer_length=1)[0] == {"one": "fox"}


def test_starts_without_max_context_are_dropped():
    logits = scores((0, 2, 1, 9)), scores((0, 1, 3, 9))
    feature = window(token_is_max_context={"1": False, "2": True})
    assert [row["text"] for row in oracle.answers(EXAMPLES, [feature], logits)[1]["one"]] == ["fox"]


def test_windows_compete_and_the_lowest_null_score_counts():
    logits = scores((3, 2, 1, 0), (1, 0, 4, 0)), scores((3, 1, 2, 0), (1, 0, 4, 0))
    texts, nbest, null_odds = oracle.answers(EXAMPLES, [window(), window()], logits, True)
    assert texts == {"one": "fox"}
    assert null_odds == {"one": 1 + 1 - 4 - 4}
    assert [row["text"] for row in nbest["one"]].count("") == 1


def test_the_threshold_has_to_be_passed():
    logits = scores((3, 2, 0, 0)), scores((3, 2, 0, 0))  # null 6, red 4
    assert oracle.answers(EXAMPLES, [window()], logits, True, null_score_diff_threshold=2.0)[0] == {"one": "red"}
    assert oracle.answers(EXAMPLES, [window()], logits, True, null_score_diff_threshold=1.9)[0] == {"one": ""}


def test_null_score_is_read_at_the_cls():
    logits = scores((9, 2, 1, 3)), scores((9, 1, 3, 3))
    assert oracle.answers(EXAMPLES, [window(cls_index=3)], logits, True)[2] == {"one": 3 + 3 - 2 - 3}


def test_null_row_comes_back_when_it_falls_out():
    logits = scores((-5, 2, 1, 0)), scores((-5, 1, 3, 0))
    rows = oracle.answers(EXAMPLES, [window()], logits, True, n_best_size=2)[1]["one"]
    assert [row["text"] for row in rows] == ["red fox", "fox", ""]
    assert rows[-1]["start_logit"] == -5


@pytest.mark.parametrize("negatives, expected", [(False, ["empty"]), (True, ["empty", ""])])
def test_without_any_candidate_the_row_is_empty(negatives, expected):
    feature = window() | {"offset_mapping": [None] * 4}
    logits = scores((-2, 0, 0, 0)), scores((-1, 0, 0, 0))
    texts, nbest, null_odds = oracle.answers(EXAMPLES, [feature], logits, negatives)
    assert texts == {"one": "empty"}
    assert [row["text"] for row in nbest["one"]] == expected
    assert list(nbest["one"][0]) == ["text", "start_logit", "end_logit", "probability"]
    assert null_odds == ({"one": -3.0} if negatives else {})


def test_only_empty_texts_with_negatives():
    # Two zero-width spans and the null row: the source runs off the end of such a list.
    feature = window() | {"offset_mapping": [None, (3, 3), None, None]}
    logits = scores((1, 0, 0, 0)), scores((1, 0, 0, 0))
    texts, nbest, null_odds = oracle.answers(EXAMPLES, [feature], logits, True)
    assert (texts, null_odds) == ({"one": ""}, {"one": 2.0})
    assert [row["text"] for row in nbest["one"]] == ["empty", "", ""]


def test_probabilities_are_in_the_type_of_the_logits():
    logits = scores((0, 2, 1, 9), dtype=np.float16), scores((0, 1, 3, 9), dtype=np.float16)
    best = oracle.answers(EXAMPLES, [window()], logits)[1]["one"][0]
    assert type(best["probability"]) is float
    assert best["probability"] == float(np.float16(best["probability"]))


def test_features_may_name_examples_by_id():
    feature = {"example_id": "one", "offset_mapping": [list(offset) if offset else None for offset in OFFSETS]}
    assert oracle.answers(EXAMPLES, [feature], (scores((0, 2, 1, 9)), scores((0, 1, 3, 9))))[0] == {"one": "red fox"}


def test_files(tmp_path):
    logits = scores((0, 2, 1, 9)), scores((0, 1, 3, 9))
    results = oracle.write_answers(EXAMPLES, [window()], logits, True, output_dir=tmp_path, prefix="eval")
    names = ["eval_predictions.json", "eval_nbest_predictions.json", "eval_null_odds.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [json.loads((tmp_path / name).read_text()) for name in names] == list(results)
    assert (tmp_path / names[0]).read_text() == '{\n    "one": "red fox"\n}\n'


def test_files_without_prefix_or_negatives(tmp_path):
    oracle.write_answers(EXAMPLES, [window()], (scores((0, 2, 1, 9)), scores((0, 1, 3, 9))), output_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nbest_predictions.json", "predictions.json"]


# Scores


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Quick\nFox.", "quick fox"),
        ("a an the", ""),
        ("The-end", "theend"),  # punctuation goes first, without a space
        ("the end's", "ends"),
        ("Anna and Theo", "anna and theo"),
        ("A.", ""),  # and only then the articles
        ("“the” €5", "“ ” €5"),  # only ASCII punctuation
        ("¿the", "¿"),
        ("the\u00a0cat\u3000", "cat"),  # every Unicode space
        ("thé a1 _a", "thé a1"),  # no word boundary before an accent or a digit; _ is punctuation
        ("İ", "i̇"),
        ("$1,000.50", "100050"),
    ],
)
def test_normalize(text, expected):
    assert oracle.normalize(text) == expected


def test_f1():
    assert oracle.f1_v2("the red fox", "a red red dog") == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert oracle.f1_v2("red", "dog") == 0
    assert (oracle.f1_v1("the", ""), oracle.f1_v2("the", ""), oracle.f1_v2("fox", "")) == (0, 1, 0)


def test_squad_v1():
    references = {"1": ["fox", "The red fox!"], "2": ["dog"], "3": ["cat"], "4": ["a b"]}
    predictions = {"1": "red fox", "2": "dog house", "4": "", "9": "not asked"}  # 3 is missing
    assert oracle.squad_v1(predictions, references) == pytest.approx(
        {"exact_match": 25.0, "f1": 100 * (1 + 2 / 3) / 4}
    )
    with pytest.raises(ValueError):
        oracle.squad_v1({"1": "x"}, {"1": []})


def test_squad_v2():
    references = {"1": ["fox"], "2": ["red dog"], "3": [], "4": []}
    predictions = {"1": "the fox", "2": "dog", "3": "", "4": "cat"}
    probabilities = {"1": 0.1, "2": 0.2, "3": 0.9, "4": 0.8}
    scores_v2 = oracle.squad_v2(predictions, references, probabilities)
    assert list(scores_v2.items()) == [
        ("exact", 50.0),
        ("f1", pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)),
        ("total", 4),
        ("HasAns_exact", 50.0),
        ("HasAns_f1", pytest.approx(100 * (1 + 2 / 3) / 2)),
        ("HasAns_total", 2),
        ("NoAns_exact", 50.0),
        ("NoAns_f1", 50.0),
        ("NoAns_total", 2),
        ("best_exact", 75.0),  # no answer but to question 1
        ("best_exact_thresh", 0.1),
        ("best_f1", pytest.approx(100 * (2 + 1 + 2 / 3) / 4)),  # and to question 2
        ("best_f1_thresh", 0.2),
    ]


def test_squad_v2_threshold_makes_answers_empty():
    references = {"1": ["fox"], "2": []}
    predictions = {"1": "fox", "2": "dog"}
    scores_v2 = oracle.squad_v2(predictions, references, {"1": 0.5, "2": 0.6}, no_answer_threshold=0.5)
    assert (scores_v2["HasAns_exact"], scores_v2["NoAns_exact"]) == (100.0, 100.0)  # above it, not at it


def test_squad_v2_without_one_kind_of_question():
    scores_v2 = oracle.squad_v2({"1": "fox"}, {"1": ["fox"]}, {"1": 0.0})
    assert not [key for key in scores_v2 if key.startswith("NoAns")]
    scores_v2 = oracle.squad_v2({"1": ""}, {"1": []}, {"1": 0.0})
    assert not [key for key in scores_v2 if key.startswith("HasAns")]
    assert (scores_v2["best_exact"], scores_v2["best_exact_thresh"]) == (100.0, 0.0)


def test_squad_v2_gold_texts_that_normalize_to_nothing():
    # Such a question has an answer by its list, and the empty text for gold.
    scores_v2 = oracle.squad_v2({"1": "", "2": "fox"}, {"1": ["the"], "2": ["the", "fox"]}, {"1": 0.0, "2": 0.0})
    assert (scores_v2["HasAns_total"], scores_v2["exact"]) == (2, 100.0)
