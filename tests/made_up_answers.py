"""Answers of a model that is often right, to made-up questions about one context."""

import numpy as np

from qa.answer_table import AnswerTable, make_table
from qa.answers import Answers, RankedSpans, decide, softmax_of_groups


WORDS = "the river Nile floods near old Cairo each year while Giza and Luxor wait for water and sun".split()
CONTEXT = " ".join(WORDS * 4)
PLACES = [(match, match + len(word)) for word in set(WORDS) for match in [CONTEXT.index(word)] if word not in ("the",)]
QUESTIONS = ["Where does it flood?", "How many towns wait?", "In what year?", "Which river is long?", "Is it old?"]
COUNT, CANDIDATES = 400, 6


def answers_and_golds(negatives: bool, count: int = COUNT) -> tuple[Answers, list[dict], list[dict]]:
    """Return answers of a model that is often right to made-up questions, their rows and gold answers."""
    draw, rows, golds, spans = np.random.default_rng(0), [], [], []
    for number in range(count):
        chosen = draw.choice(len(PLACES), CANDIDATES, replace=False)
        scores = np.round(draw.normal(0, 2, CANDIDATES), 1) + [3, 0, 0, 0, 0, 0]
        span = [(*PLACES[place], score) for place, score in zip(chosen, scores)]
        begin, end = PLACES[chosen[0]]
        answered = not negatives or draw.random() < 0.6
        end = min(len(CONTEXT), end + int(draw.integers(0, 30)) * (draw.random() < 0.3))  # some predict a part of it
        gold = (
            {"text": [CONTEXT[begin:end]], "answer_start": [begin]} if answered else {"text": [], "answer_start": []}
        )
        if negatives:
            span.append((0, 0, np.round(draw.normal(0 if answered else 4, 2), 1)))
        rows.append({"id": str(number), "context": CONTEXT, "question": QUESTIONS[number % 5], "row": number + 1})
        rows[-1]["columns"] = {"topic": "ab"[number % 2], "year": str(1900 + number % 40)}
        golds.append(gold)
        spans.append(sorted(span, key=lambda part: -part[2]))
    return answers_of(spans, rows, negatives), rows, golds


def answers_of(spans: list, rows: list[dict], negatives: bool) -> Answers:
    bounds = np.cumsum([0, *map(len, spans)])
    begin, end, scores = (np.array(column) for column in zip(*(part for parts in spans for part in parts)))
    scores = scores.astype(np.float32)
    best = [next(part for part in parts if part[1]) for parts in spans]
    answers = Answers(best_texts={row["id"]: CONTEXT[part[0] : part[1]] for row, part in zip(rows, best)})
    answers.texts = answers.best_texts
    if negatives:
        null = [next(part for part in parts if not part[1]) for parts in spans]
        answers.null_odds = {row["id"]: float(n[2] - b[2]) for row, n, b in zip(rows, null, best)}
        answers.texts = decide(answers.best_texts, answers.null_odds, 0.0)
    halves = {"start_logit": scores / 2, "end_logit": scores / 2, "probability": softmax_of_groups(scores, bounds)}
    answers.nbest = [RankedSpans([row["id"] for row in rows], [CONTEXT] * len(rows), bounds, begin, end, **halves)]
    return answers


def table_of(answers: Answers, rows: list[dict], golds: list[dict]) -> AnswerTable:
    return make_table(answers, rows, np.ones(len(rows), dtype=int), golds, language="off")
