"""The slow, obviously right versions of features, answers and scores, to compare the fast ones with.

Everything here follows its source one example, one window and one pair of tokens at a time:

- features: `prepare_train_features` and `prepare_validation_features` of the Hugging Face example `run_qa.py`;
- answers: `postprocess_qa_predictions` of the Hugging Face example `utils_qa.py`;
- scores: the official SQuAD evaluators 1.1 and 2.0, as the Hugging Face metrics `squad` and `squad_v2` call them.
"""

import copy
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


Row = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------------------------


def features(
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Row | None] | None,
    max_seq_length: int,
    doc_stride: int,
    *,
    stay_in_context: bool = False,
    causal: bool = False,
) -> list[Row]:
    """Return the windows of every example, in order (rule: run_qa.py, both `prepare_*_features`, without padding).

    `answers` holds one {"text": [...], "answer_start": [...]} an example; None, or empty lists, is no answer.
    `stay_in_context` keeps the labels inside the context, where the source's can leave it: see `answer_positions`.

    Two corrections to the source: the name of a special token in a text is text; and `causal` is for models whose tokens
    see only those before them. Their question comes first, and the last token of a window is special and means "no answer":
    the tokenizer's own, else its end-of-text token.
    """
    rows = []
    reader = with_private_names(tokenizer)
    unclosed = causal and tokenizer("a", "b").sequence_ids()[-1] is not None
    question_first = causal or tokenizer.padding_side == "right"
    for example_index, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        gold = answers[example_index] if answers is not None else None
        length = max_seq_length - 1 if unclosed else max_seq_length
        for window in encode(reader, question.lstrip(), context, length, doc_stride, question_first):
            if unclosed:
                window = closed(window, tokenizer.eos_token_id)
            row = window_feature(tokenizer, window, gold, stay_in_context, causal)
            rows.append({"example_index": example_index, **row})
    return rows


def with_private_names(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a copy whose special tokens begin with a character for private use, which no text of the tests has."""
    settings = tokenizer.backend_tokenizer.to_str()
    for token in tokenizer.all_special_tokens:
        settings = settings.replace(
            json.dumps(token, ensure_ascii=False), json.dumps(f"\ue000{token}", ensure_ascii=False)
        )
    private = copy.deepcopy(tokenizer)
    private._tokenizer = Tokenizer.from_str(settings)
    return private


def encode(
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    context: str,
    max_seq_length: int,
    doc_stride: int,
    question_first: bool,
) -> list[Row]:
    """All windows of one example; the source puts the context first with left padding (rule: run_qa.py)."""
    encoding = tokenizer(
        question if question_first else context,
        context if question_first else question,
        truncation="only_second" if question_first else "only_first",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
    )
    windows = []
    for number in range(len(encoding["input_ids"])):
        window = {name: encoding[name][number] for name in encoding if name != "overflow_to_sample_mapping"}
        window["sequence_ids"] = encoding.sequence_ids(number)
        window["in_context"] = [sequence_id == int(question_first) for sequence_id in window["sequence_ids"]]
        windows.append(window)
    return windows


def closed(window: Row, token: int) -> Row:
    """Return the window with a special token after its last token, and of that token's type."""
    last = {"input_ids": token, "attention_mask": 1, "offset_mapping": (0, 0), "in_context": False}
    last["token_type_ids"] = window.get("token_type_ids", [0])[-1]
    return {name: [*values, last.get(name)] for name, values in window.items()}


def window_feature(
    tokenizer: PreTrainedTokenizerFast, window: Row, gold: Row | None, stay_in_context: bool, causal: bool
) -> Row:
    """Return one window of one example as a row."""
    input_ids, offsets, in_context = window["input_ids"], window["offset_mapping"], window["in_context"]
    cls_index = len(input_ids) - 1 if causal else cls_position(tokenizer, input_ids, window["sequence_ids"])
    start, end = answer_positions(offsets, in_context, gold, cls_index, stay_in_context)
    row = {"input_ids": input_ids, "attention_mask": window["attention_mask"]}
    if "token_type_ids" in window:
        row["token_type_ids"] = window["token_type_ids"]
    row["offset_mapping"] = [offset if inside else None for offset, inside in zip(offsets, in_context, strict=True)]
    return {**row, "cls_index": cls_index, "start_positions": start, "end_positions": end}


def cls_position(tokenizer: PreTrainedTokenizerFast, input_ids: list[int], sequence_ids: list[int | None]) -> int:
    """Where a window says "no answer": its CLS token, else its BOS token, else position 0 (rule: run_qa.py).

    One correction to the source: a CLS that the text itself spells out (XLNet's comes after the texts) is not taken.
    """
    for wanted in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        for position, token_id in enumerate(input_ids):
            if wanted is not None and token_id == wanted and sequence_ids[position] is None:
                return position
    return 0


def answer_positions(
    offsets: list[tuple[int, int]], in_context: list[bool], gold: Row | None, cls_index: int, stay_in_context: bool
) -> tuple[int, int]:
    """Return the labels of one window (rule: run_qa.py, `prepare_train_features`), with its comparisons as they are.

    The source lets both labels leave the context, where the offsets are 0 for a special token and the question's own
    for the question. The start runs on to the right while an offset is not past the answer: an answer that starts in
    the window's last context token gets the last position of the row for a start (right padding), or one in the
    question (left padding). The end runs on to the left the same way when the answer ends in the window's first
    context token and no special token is before it (Qwen2). With `stay_in_context` both stop at the context.

    Two cases the source crashes on: a window without any context token holds no answer here; an end that runs off the
    row's left side is 0, which is also what the source makes of it when there is padding on the right.
    """
    if gold is None or not gold["answer_start"] or not gold["text"] or not any(in_context):
        return cls_index, cls_index
    first_char = gold["answer_start"][0]
    end_char = first_char + len(gold["text"][0])
    first = in_context.index(True)
    last = len(in_context) - 1 - in_context[::-1].index(True)
    if offsets[first][0] > first_char or offsets[last][1] < end_char:
        return cls_index, cls_index
    leftmost, rightmost = (first, last) if stay_in_context else (0, len(offsets) - 1)
    start = first
    while start <= rightmost and offsets[start][0] <= first_char:
        start += 1
    end = last
    while end >= leftmost and offsets[end][1] >= end_char:
        end -= 1
    return start - 1, end + 1


def seq2seq_features(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Row], max_seq_length: int, doc_stride: int
) -> list[Row]:
    """Return the windows of what an encoder-decoder reads, one example and one window at a time.

    A text that fits is the reference's: `question: Q context: C`, both left-stripped (rule: run_seq2seq_qa.py). Of a
    longer one the tokens of the context, those that end after "context:", are cut into windows, and every window gets
    the rest of the text before it and the same special tokens around it. `holds` is whether a window's tokens
    cover the first answer.
    """
    rows = []
    reader = with_private_names(tokenizer)
    for example_index, example in enumerate(examples):
        front = f"question: {example['question'].lstrip()} context:"
        text = f"{front} {example['context'].lstrip()}"
        encoding = reader(text, return_offsets_mapping=True)
        ids, spans, own = encoding["input_ids"], encoding["offset_mapping"], encoding.sequence_ids()
        context = [i for i in range(len(ids)) if own[i] is not None and spans[i][1] > len(front)]
        end = context[-1] + 1 if context else len(ids) - own[::-1].index(0)
        begin = context[0] if context else end
        room = max_seq_length - (len(ids) - len(context))
        first = begin
        while True:
            last = min(first + room, end)
            window = spans[first:last]
            row = {"example_index": example_index, "input_ids": ids[:begin] + ids[first:last] + ids[end:]}
            row["holds"] = False
            if example["answers"]["text"] and window:
                moved = len(text) - len(example["context"])
                answer_begin = example["answers"]["answer_start"][0] + moved
                answer_end = answer_begin + len(example["answers"]["text"][0])
                row["holds"] = window[0][0] <= answer_begin and answer_end <= window[-1][1]
            rows.append(row)
            if last == end:
                break
            first += room - doc_stride
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------


def answers(
    examples: Iterable[Row],
    features: Sequence[Row],
    predictions: tuple[np.ndarray, np.ndarray],
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
) -> tuple[dict[str, str], dict[str, list[Row]], dict[str, float]]:
    """Texts, n-best rows and null odds by example id (rule: utils_qa.py, `postprocess_qa_predictions`).

    A feature names its example by `example_index` or `example_id`. Null odds are empty without negatives.
    One correction to the source: the null score is read at the feature's `cls_index`, not always at 0.
    """
    examples = list(examples)
    windows = windows_by_example(examples, features)
    texts, nbest, null_odds = {}, {}, {}
    for example, indices in zip(examples, windows, strict=True):
        spans, null = example_spans(features, predictions, indices, n_best_size, max_answer_length)
        null_score = null["score"] if version_2_with_negative else None
        rows = ranked_rows(spans, null if version_2_with_negative else None, n_best_size, example["context"])
        if version_2_with_negative:
            texts[example["id"]], null_odds[example["id"]] = text_or_null(rows, null_score, null_score_diff_threshold)
        else:
            texts[example["id"]] = rows[0]["text"]
        nbest[example["id"]] = [plain_floats(row) for row in rows]
    return texts, nbest, null_odds


def write_answers(
    examples: Iterable[Row],
    features: Sequence[Row],
    predictions: tuple[np.ndarray, np.ndarray],
    version_2_with_negative: bool = False,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    null_score_diff_threshold: float = 0.0,
    output_dir: str | Path = ".",
    prefix: str | None = None,
) -> tuple[dict[str, str], dict[str, list[Row]], dict[str, float]]:
    """`answers`, written to files as well (rule: utils_qa.py, the end of `postprocess_qa_predictions`)."""
    texts, nbest, null_odds = answers(
        examples,
        features,
        predictions,
        version_2_with_negative,
        n_best_size,
        max_answer_length,
        null_score_diff_threshold,
    )
    contents = {"predictions.json": texts, "nbest_predictions.json": nbest}
    if version_2_with_negative:
        contents["null_odds.json"] = null_odds
    for name, content in contents.items():
        path = Path(output_dir) / (name if prefix is None else f"{prefix}_{name}")
        path.write_text(json.dumps(content, indent=4) + "\n")
    return texts, nbest, null_odds


def windows_by_example(examples: list[Row], features: Sequence[Row]) -> list[list[int]]:
    """Return the feature indices of each example, in the features' order."""
    index_of_id = {example["id"]: index for index, example in enumerate(examples)}
    windows = [[] for _ in examples]
    for index, feature in enumerate(features):
        example = feature["example_index"] if "example_index" in feature else index_of_id[feature["example_id"]]
        windows[example].append(index)
    return windows


def example_spans(
    features: Sequence[Row],
    predictions: tuple[np.ndarray, np.ndarray],
    indices: list[int],
    n_best_size: int,
    max_answer_length: int,
) -> tuple[list[Row], Row | None]:
    """Return every span the windows of one example offer, and the lowest null score of them (the first of equals)."""
    spans = []
    null = None
    for index in indices:
        start_logits, end_logits = predictions[0][index], predictions[1][index]
        cls_index = features[index].get("cls_index", 0)
        score = start_logits[cls_index] + end_logits[cls_index]
        if null is None or null["score"] > score:
            null = span_row((0, 0), start_logits[cls_index], end_logits[cls_index])
        spans += window_spans(features[index], start_logits, end_logits, n_best_size, max_answer_length)
    return spans, null


def window_spans(
    feature: Row, start_logits: np.ndarray, end_logits: np.ndarray, n_best_size: int, max_answer_length: int
) -> list[Row]:
    """Return the spans that one window allows, from its best starts and its best ends, starts outermost."""
    offsets = feature["offset_mapping"]
    max_context = feature.get("token_is_max_context")
    spans = []
    starts = np.argsort(start_logits)[-1 : -n_best_size - 1 : -1].tolist()
    ends = np.argsort(end_logits)[-1 : -n_best_size - 1 : -1].tolist()
    for start in starts:
        for end in ends:
            if not is_context(offsets, start) or not is_context(offsets, end):
                continue
            if end < start or end - start + 1 > max_answer_length:
                continue
            if max_context is not None and not max_context.get(str(start), False):
                continue
            spans.append(span_row((offsets[start][0], offsets[end][1]), start_logits[start], end_logits[end]))
    return spans


def is_context(offsets: Sequence[Sequence[int] | None], position: int) -> bool:
    """Return whether the token at this position points into the context."""
    return position < len(offsets) and offsets[position] is not None and len(offsets[position]) >= 2


def span_row(offsets: tuple[int, int], start_logit: np.floating, end_logit: np.floating) -> Row:
    """Return one candidate, with its keys in the source's order."""
    return {"offsets": offsets, "score": start_logit + end_logit, "start_logit": start_logit, "end_logit": end_logit}


def ranked_rows(spans: list[Row], null: Row | None, n_best_size: int, context: str) -> list[Row]:
    """Return the n-best rows of one example; `null` is its null candidate, or None without negatives."""
    spans = spans + [null] if null is not None else spans
    rows = sorted(spans, key=span_score, reverse=True)[:n_best_size]
    if null is not None and not any(row["offsets"] == (0, 0) for row in rows):
        rows.append(null)
    for row in rows:
        begin, end = row.pop("offsets")
        row["text"] = context[begin:end]
    only_empty = all(row["text"] == "" for row in rows)
    # The source inserts this row when at most one row is left. With negatives it then looks for the first row that
    # has a text and runs off the list when several are left and none has one: the row is inserted there too.
    if only_empty and (len(rows) <= 1 or null is not None):
        rows.insert(0, {"text": "empty", "start_logit": 0.0, "end_logit": 0.0, "score": 0.0})
    add_probabilities(rows)
    return rows


def span_score(row: Row) -> np.floating:
    """Return the score that candidates are sorted by."""
    return row["score"]


def add_probabilities(rows: list[Row]) -> None:
    """Trade every row's score for its probability: a softmax in whatever type numpy chooses for the list of scores."""
    scores = np.array([row.pop("score") for row in rows])
    weights = np.exp(scores - np.max(scores))
    for row, probability in zip(rows, weights / weights.sum(), strict=True):
        row["probability"] = probability


def text_or_null(rows: list[Row], null_score: np.floating, threshold: float) -> tuple[str, float]:
    """Return the best text, or "" when the null score beats it by more than the threshold; and by how much it does."""
    best = 0
    while rows[best]["text"] == "":
        best += 1
    difference = float(null_score - rows[best]["start_logit"] - rows[best]["end_logit"])
    return "" if difference > threshold else rows[best]["text"], difference


def plain_floats(row: Row) -> Row:
    """Return the row with numpy's numbers as Python's, for JSON."""
    return {key: value if isinstance(value, str) else float(value) for key, value in row.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces, in this order (both official evaluators)."""
    text = text.lower()
    text = "".join(char for char in text if char not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def exact_match(prediction: str, gold: str) -> int:
    """1 when both normalize to the same text (both official evaluators)."""
    return int(normalize(prediction) == normalize(gold))


def f1_v1(prediction: str, gold: str) -> float:
    """Return the F1 of two bags of words; two empty ones score 0 (evaluator 1.1)."""
    return f1_of_bags(normalize(prediction).split(), normalize(gold).split())


def f1_of_bags(predicted: list[str], wanted: list[str]) -> float:
    """Return the harmonic mean of precision and recall of words."""
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0
    precision = common / len(predicted)
    recall = common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def f1_v2(prediction: str, gold: str) -> float:
    """Return the F1 of two bags of words; an empty one scores 1 against an empty one, else 0 (evaluator 2.0)."""
    predicted, wanted = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not wanted:
        return int(predicted == wanted)
    return f1_v1(prediction, gold)


def squad_v1(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """Return the official scores 1.1: a question without a prediction scores 0, one without gold texts is an error."""
    exact = f1 = 0
    for question, golds in references.items():
        if question not in predictions:
            continue
        exact += max(exact_match(predictions[question], gold) for gold in golds)
        f1 += max(f1_v1(predictions[question], gold) for gold in golds)
    return {"exact_match": 100.0 * exact / len(references), "f1": 100.0 * f1 / len(references)}


def squad_v2(
    predictions: dict[str, str],
    references: dict[str, list[str]],
    no_answer_probs: dict[str, float],
    no_answer_threshold: float = 1.0,
) -> dict[str, float]:
    """Return the official scores 2.0 as the metric `squad_v2` runs it; its keys in its order.

    HasAns_* and NoAns_* are absent when there is no such question. A question has an answer when its list of gold
    texts is not empty, whatever the texts are. The metric holds probabilities as 32-bit floats: round them so before
    comparing thresholds with it.
    """
    has_answer = {question: bool(golds) for question, golds in references.items()}
    exact = raw_scores(predictions, references, exact_match)
    f1 = raw_scores(predictions, references, f1_v2)
    exact_kept = with_threshold(exact, has_answer, no_answer_probs, no_answer_threshold)
    f1_kept = with_threshold(f1, has_answer, no_answer_probs, no_answer_threshold)
    scores = averages("", exact_kept, f1_kept, list(exact_kept))
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        questions = [question for question in references if has_answer[question] == wanted]
        if questions:
            scores.update(averages(prefix, exact_kept, f1_kept, questions))
    for name, raw in (("exact", exact), ("f1", f1)):
        best, threshold = best_threshold(predictions, raw, no_answer_probs, has_answer)
        scores.update({f"best_{name}": best, f"best_{name}_thresh": threshold})
    return scores


def raw_scores(
    predictions: dict[str, str], references: dict[str, list[str]], score: Callable[[str, str], float]
) -> dict[str, float]:
    """Each answered question's best score over its gold texts that normalize to something, else over "" alone."""
    scores = {}
    for question, golds in references.items():
        if question not in predictions:
            continue
        golds = [gold for gold in golds if normalize(gold)] or [""]
        scores[question] = max(score(predictions[question], gold) for gold in golds)
    return scores


def with_threshold(
    scores: dict[str, float], has_answer: dict[str, bool], probs: dict[str, float], threshold: float
) -> dict[str, float]:
    """Return the scores as if every prediction above the threshold had been no answer (evaluator 2.0)."""
    kept = {}
    for question, score in scores.items():
        kept[question] = float(not has_answer[question]) if probs[question] > threshold else score
    return kept


def averages(prefix: str, exact: dict[str, float], f1: dict[str, float], questions: list[str]) -> dict[str, float]:
    """Percentages over these questions; a question that was not answered is a KeyError (evaluator 2.0)."""
    total = len(questions)
    return {
        f"{prefix}exact": 100.0 * sum(exact[question] for question in questions) / total,
        f"{prefix}f1": 100.0 * sum(f1[question] for question in questions) / total,
        f"{prefix}total": total,
    }


def best_threshold(
    predictions: dict[str, str], scores: dict[str, float], probs: dict[str, float], has_answer: dict[str, bool]
) -> tuple[float, float]:
    """Return the best score that a threshold can give, and the lowest such threshold (evaluator 2.0).

    It starts from no answer everywhere, and lets the questions answer one by one, the surest first. Questions of one
    probability are let in one by one too, in their order, although a threshold cannot separate them.
    """
    current = sum(1 for answered in has_answer.values() if not answered)
    best, threshold = current, 0.0
    for question in sorted(probs, key=probs.get):
        if question not in scores:
            continue
        if has_answer[question]:
            current += scores[question]
        elif predictions[question]:
            current -= 1
        if current > best:
            best, threshold = current, probs[question]
    return 100.0 * best / len(scores), threshold


def score_with_threshold(
    predictions: dict[str, str],
    references: dict[str, list[str]],
    no_answer_probs: dict[str, float],
    threshold: float,
    score: Callable[[str, str], float],
) -> float:
    """Return the average score in percent when every prediction above the threshold is no answer."""
    has_answer = {question: bool(golds) for question, golds in references.items()}
    kept = with_threshold(raw_scores(predictions, references, score), has_answer, no_answer_probs, threshold)
    return 100.0 * sum(kept.values()) / len(kept)


MLQA_ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "vi": "của là cái chiếc những",
    "de": "ein eine einen einem eines einer der die das den dem des",
}


def normalize_mlqa(text: str, language: str) -> str:
    """Lower case, no punctuation of ASCII or Unicode, no articles, single spaces; Chinese in single characters
    (rule: mlqa_evaluation_v1.py)."""
    kept = ""
    for char in text.lower():
        if not unicodedata.category(char).startswith("P") and char not in string.punctuation:
            kept += char
    if language == "ar":
        kept = kept.replace("\u0627\u0644", " ")
    articles = MLQA_ARTICLES.get(language, "").split()
    words = []
    for piece in re.split(r"(\w+)", kept):  # a run of word characters, or what is between two
        words.append(" " if piece in articles else piece)
    if language == "zh":
        words = [f" {char} " if "\u4e00" <= char <= "\u9fa5" else char for char in "".join(words)]
    return " ".join("".join(words).split())


def mlqa(predictions: dict[str, str], references: dict[str, list[str]], language: str) -> dict[str, float]:
    """MLQA's evaluator: that of SQuAD 1.1 with another `normalize`."""
    exact = f1 = 0
    for question, golds in references.items():
        predicted = normalize_mlqa(predictions[question], language)
        exact += max(int(predicted == normalize_mlqa(gold, language)) for gold in golds)
        f1 += max(f1_of_bags(predicted.split(), normalize_mlqa(gold, language).split()) for gold in golds)
    return {"mlqa_exact_match": 100.0 * exact / len(references), "mlqa_f1": 100.0 * f1 / len(references)}
