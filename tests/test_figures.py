"""The figures of a report against other programs: SciPy's and scikit-learn's, the oracle's scores, and plain loops."""

import numpy as np
import oracle
import pytest
import scipy.optimize
import scipy.stats
from made_up_answers import COUNT, answers_and_golds, table_of
from sklearn.calibration import calibration_curve

from qa.answer_table import AnswerTable, Choices
from qa.answers import decide
from qa.calibration import calibration, calibration_error, fit_temperature, padded, probability_at, reliability, top_n
from qa.curves import chosen_and_best, odds_histogram, precision_recall, threshold_curve, training_curves
from qa.groups import group_parts, groupings, score_parts
from qa.intervals import mean_intervals, with_intervals
from qa.report import no_answer_figures
from qa.worst import worst_examples


@pytest.fixture(scope="module", params=[False, True], ids=["answered", "negatives"])
def case(request) -> tuple:
    answers, rows, golds = answers_and_golds(request.param)
    return table_of(answers, rows, golds), answers, rows, golds


@pytest.fixture(scope="module")
def negatives() -> tuple:
    answers, rows, golds = answers_and_golds(True)
    return table_of(answers, rows, golds), answers, golds


def test_scores_and_their_intervals(case):
    """The interval is that of SciPy's bootstrap with another seed, within its error; the means are the oracle's."""
    table, answers, rows, golds = case
    texts = {row["id"]: gold["text"] for row, gold in zip(rows, golds)}
    found = {(part["of"], part["name"]): part for part in with_intervals(score_parts(table))}
    if answers.null_odds:
        expected = oracle.squad_v2(answers.texts, texts, dict.fromkeys(texts, 0.0))
        names = {"": "", "with an answer": "HasAns_", "without an answer": "NoAns_"}
        assert {of for of, _ in found} == set(names)
        for (of, name), part in found.items():
            assert part["value"] == pytest.approx(expected[names[of] + name.replace("_match", "")])
    else:
        expected = oracle.squad_v1(answers.texts, texts)
        assert {name: part["value"] for (_, name), part in found.items()} == pytest.approx(expected)
    for name in ("exact_match", "f1"):
        other = scipy.stats.bootstrap((table.numbers(name),), np.mean, n_resamples=20_000, method="percentile", rng=7)
        low, high = other.confidence_interval
        assert [found["", name]["low"], found["", name]["high"]] == pytest.approx([low, high], abs=0.07 * (high - low))


def test_groups_are_the_questions_in_parts(case):
    table = case[0]
    parts, names = (
        with_intervals(group_parts(table)),
        {grouping.title: grouping.names for grouping in groupings(table)},
    )
    titles = ["Question word", "Words of the answer", "Place of the answer in the context"]
    titles += ["Column topic", "Column year"]
    assert list(names) == titles  # one context, in one window
    assert set(names["Question word"]) == {"where", "how many", "what", "which", "is"}
    assert names["Column year"] == ["1900 to 1909", "1910 to 1919", "1920 to 1929", "1930 or more"]
    f1 = dict(zip(table.columns["id"], table.columns["f1"]))
    for title in titles:
        of_title = [part for part in parts if part["title"] == title]
        assert sum(part["questions"] for part in of_title) == COUNT
        total = sum(part["questions"] * part["value"] for part in of_title)
        assert total / COUNT == pytest.approx(np.mean(table.columns["f1"]))
        many = [part for part in of_title if part["low"] is not None]
        assert many and all(part["low"] <= part["value"] <= part["high"] for part in many)
    (topic,) = [part for part in parts if part["group"] == "a"]
    assert topic["value"] == pytest.approx(np.mean([f1[str(number)] for number in range(0, COUNT, 2)]))


def test_an_interval_of_a_group_is_that_of_a_ratio():
    """A group that few resamples hold, and one of all equal values."""
    values, counted = np.array([[5.0, 7.0]] * 30), np.zeros((30, 2), dtype=bool)
    counted[0], counted[:, 1] = True, True
    assert mean_intervals(values, counted).tolist() == [[5.0, 7.0], [5.0, 7.0]]


def test_a_few_questions_have_no_interval():
    values, ends = np.arange(30.0), {}
    for number in (9, 10):
        (part,) = with_intervals([{"values": values, "counted": values < number}])
        ends[number] = part["low"], part["high"]
        assert part["questions"] == number and part["value"] == (number - 1) / 2
    assert ends[9] == (None, None) and 0 < ends[10][0] < 4.5 < ends[10][1] < 9


def test_the_curve_of_thresholds_is_that_of_the_answers_at_each(negatives):
    table, answers, golds = negatives
    texts = {name: gold["text"] for name, gold in zip(answers.texts, golds)}
    none, curves = dict.fromkeys(texts, 0.0), threshold_curve(table)

    def scores_at(threshold: float) -> list[float]:
        scores = oracle.squad_v2(decide(answers.best_texts, answers.null_odds, threshold), texts, none)
        return [scores["exact"], scores["f1"]]

    expected = np.array([scores_at(threshold) for threshold in curves["threshold"]])
    just_below = [float(np.nextafter(threshold, -np.inf)) for threshold in curves["threshold"]]
    tried = sorted([0.0, *curves["threshold"], *just_below], key=abs)
    scores = np.array([scores_at(threshold) for threshold in tried])
    assert np.transpose([curves["exact_match"], curves["f1"]]) == pytest.approx(expected)
    for threshold in (-100.0, 0.0, curves["threshold"][40], 0.05, 100.0):
        chosen, best_exact, best_f1 = chosen_and_best(curves, threshold)
        assert chosen["threshold"] == threshold
        assert [chosen["exact_match"], chosen["f1"]] == pytest.approx(scores_at(threshold))
        for point, index in ((best_exact, 0), (best_f1, 1)):
            assert [point["exact_match"], point["f1"]] == pytest.approx(scores_at(point["threshold"]))
            best = expected[:, index].max()
            assert point[("exact_match", "f1")[index]] == pytest.approx(best)
            assert point["threshold"] == tried[np.argmax(scores[:, index] > best - 1e-9)]  # the one closest to 0
    pasted = float(no_answer_figures(table, 0.0)["best_flag"].split()[1])
    assert pasted < 0 and scores_at(pasted)[1] == pytest.approx(best)


@pytest.mark.parametrize("metric, index", [("exact_match", 0), ("f1", 1)])
def test_precision_and_recall_are_those_of_the_official_rule(negatives, metric, index):
    """Worked out question by question: a point of the curve wherever the next question has other null odds."""
    table, answers, golds = negatives
    texts = dict(zip(answers.texts, (gold["text"] for gold in golds)))
    raw = {
        name: (oracle.squad_v2({name: answers.best_texts[name]}, {name: gold}, {name: 0.0}))
        for name, gold in texts.items()
    }
    names = sorted(texts, key=answers.null_odds.get)
    with_answer = sum(bool(gold) for gold in texts.values())
    right, points, area = 0.0, [(100.0, 0.0)], 0.0
    for number, name in enumerate(names, start=1):
        right += raw[name][("exact", "f1")[index]] / 100 if texts[name] else 0.0
        if number == len(names) or answers.null_odds[names[number]] != answers.null_odds[name]:
            precision, recall = 100 * right / number, 100 * right / with_answer
            area += precision * (recall - points[-1][1]) / 100
            points.append((precision, recall))
    found = precision_recall(table, metric)
    assert np.array([found["precision"], found["recall"]]) == pytest.approx(np.transpose(points))
    assert found["average_precision"] == pytest.approx(area)


def test_shares_of_null_odds(negatives):
    found = odds_histogram(negatives[0])
    for name in ("with an answer", "without an answer"):
        assert 90 < sum(found[name]) <= 100.0001


def test_calibration_is_scikit_learns(case):
    table = case[0]
    probability, right = table.numbers("probability"), table.numbers("exact_match") > 0
    share, mean = calibration_curve(right, probability, n_bins=10)
    bins = reliability(probability, right)
    assert [part["right"] for part in bins] == pytest.approx(share)
    assert [part["probability"] for part in bins] == pytest.approx(mean)
    error = 0.0
    for low in range(10):
        inside = [place for place, p in enumerate(probability) if low / 10 < p <= (low + 1) / 10]
        if inside:
            error += len(inside) / COUNT * abs(np.mean(probability[inside]) - np.mean(right[inside]))
    assert calibration(table)["error"] == pytest.approx(error) == calibration_error(bins)


def test_the_temperature_is_the_minimum_that_scipy_finds(case):
    table = case[0]
    scores, rank = padded(table.choices.scores), np.array(table.choices.rank)
    right = table.numbers("exact_match") > 0
    assert probability_at(scores, rank, 1.0) == pytest.approx(table.numbers("probability"), rel=1e-5)

    def loss(logarithm):
        shares = scipy.special.softmax(scores / np.exp(logarithm), axis=1)[np.arange(COUNT), rank]
        return -np.mean(np.log(np.where(right, shares, 1 - shares)))

    expected = np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    assert fit_temperature(scores, rank, right) == pytest.approx(expected, rel=0.01)
    assert calibration(table)["temperature"] == pytest.approx(expected, rel=0.01)
    assert fit_temperature(scores, rank, np.ones(COUNT, dtype=bool)) is None


def test_top_n_counts_questions_with_a_right_candidate(case):
    table, answers, rows, golds = case
    entries = {name: part for ranked in answers.nbest for name, part in ranked.rows().items()}
    for found in top_n(table):
        hits = []
        for row, gold in zip(rows, golds):
            if gold["text"]:
                texts = [entry["text"] for entry in entries[row["id"]] if entry["text"]][: found["n"]]
                hits.append(any(oracle.squad_v1({"": text}, {"": gold["text"]})["exact_match"] for text in texts))
        assert found["value"] == pytest.approx(100 * np.mean(hits))
    assert [found["n"] for found in top_n(table)] == [1, 2, 3, 5]
    for windows, numbers in ((1, []), (3, [1, 2, 3])):  # a model that writes has a candidate for each
        written = AnswerTable(table.columns | {"windows": [windows] * COUNT}, [], Choices())
        assert [found["n"] for found in top_n(written)] == numbers


def test_the_worst_answers_are_wrong_and_sure(case):
    table = case[0]
    worst = worst_examples(table)
    keys = [(example["f1"], -example["probability"]) for example in worst]
    assert keys == sorted(keys) and len(worst) == min(50, sum(exact == 0 for exact in table.columns["exact_match"]))
    for example in worst:
        gold = "".join(part["text"] for part in example["context"] if "gold" in part["marks"])
        predicted = "".join(part["text"] for part in example["context"] if "predicted" in part["marks"])
        assert gold == example["gold"] and predicted == example["predicted"]


def test_curves_of_a_training():
    history = [{"loss": float(step), "step": step, "learning_rate": 0.1, "epoch": 1.0} for step in range(1, 1001)]
    history += [{"eval_f1": 50.0, "eval_runtime": 3.0, "step": 1000}, {"loss": None, "step": 1001}]
    found = training_curves(history)
    assert list(found) == ["loss", "eval_f1", "learning_rate"] and found["eval_f1"] == [[1000, 50.0]]
    assert len(found["loss"]) == 200 and found["loss"][0] == [1, 1.0] and found["loss"][-1] == [1000, 1000.0]
