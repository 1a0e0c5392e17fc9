"""The page of the report: its texts, plots and figures, the same page from the files of a folder, and several runs."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from helpers import load
from made_up_answers import COUNT, answers_and_golds, table_of

from qa.answer_files import write_table
from qa.answers import decide, write_answers
from qa.arguments import DataArguments
from qa.comparison import compare, comparison_lines
from qa.errors import UserError
from qa.files import write_json
from qa.report import build_report, main, run_facts, write_report
from qa.settings import SETTINGS_FILE, make_settings, write_settings


HISTORY = [{"loss": 3 - step / 100, "learning_rate": 1e-5, "step": step} for step in range(0, 200, 20)]
RESULTS = {"train_runtime": 12.5, "train_padding_share": 0.25, "eval_runtime": 2.0}
HARMFUL = [
    "<script>document.title = 'ran'</script>",
    "<img src=x onerror=\"document.title = 'ran'\">",
    "\"'><svg onload=\"document.title = 'ran'\">&lt;b&gt;",
    "</style><script>document.title = 'ran'</script><style>",
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONTENT_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def write_run(folder: Path, negatives: bool = True, count: int = COUNT, **changes) -> dict:
    """Write the files of a run that evaluated, and return its report."""
    folder.mkdir(parents=True, exist_ok=True)
    answers, rows, golds = answers_and_golds(negatives, count)
    for row in rows:
        row |= changes
    table = table_of(answers, rows, golds)
    write_answers(answers, str(folder), "eval")
    write_table(folder, "eval", table)
    write_json(folder / "trainer_state.json", [{"log_history": HISTORY}])
    write_json(folder / "train_results.json", [{name: RESULTS[name] for name in RESULTS if name.startswith("train")}])
    write_json(folder / "eval_results.json", [{"eval_runtime": 2.0}])
    report = build_report(
        table, {"model": "tiny"}, threshold=0.0, results=RESULTS | {"host_memory": 1.5}, history=HISTORY
    )
    write_report(folder, report)
    return report


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / HARMFUL[0].replace("/", "\N{FRACTION SLASH}")
    write_run(folder, question=HARMFUL[1], columns={HARMFUL[2]: HARMFUL[3]})
    return folder


class Texts(HTMLParser):
    """The texts of a page outside its style, its elements, and their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.texts, self.tags, self.style = [], [], False
        self.feed(page)
        self.elements = [tag for tag, _ in self.tags]
        self.attributes = [attribute for _, attributes in self.tags for attribute in attributes]
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.style = tag == "style"
        self.tags.append((tag, attributes))

    def handle_endtag(self, tag):
        self.style = self.style and tag != "style"

    def handle_data(self, data):
        if not self.style:
            self.texts.append(data)


def test_the_page_has_every_part_and_needs_nothing_else(folder):
    page = (folder / "eval_report.html").read_text()
    found, report = Texts(page), load(folder / "eval_report.json")
    for part in (
        "Scores", "Questions without an answer", "Scores by kind of question", "Probabilities and candidates", "Training",
        "Speed and memory", "The 50 worst answers", report["no_answer"]["best_flag"], "Words of the answer",
        "Place of the answer in the context", "padding", "25.0 %", "12.5 s", "memory of the process, at most",
        "learning rate", "1.00e-05", "Expected calibration error",
    ):  # fmt: skip
        assert part in found.text, part
    assert found.elements.count("svg") == 6 and "script" not in found.elements
    loading = [value for name, value in found.attributes if name in ("src", "href", "action", "data", "poster")]
    assert (
        not [value for value in loading if not re.fullmatch(r"#[\w-]+", value)]
        and "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
        and "@import" not in page
    )
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert set(re.findall(r": (#\w+)", plots)) <= {"#000000"} and "var(--first)" in plots  # the page's colours
    used = {value[1:] for name, value in found.attributes if name == "xlink:href"}
    used |= {value[1:] for value in loading} | {match for match in re.findall(r"url\(#([\w-]+)\)", page)}
    assert used <= {value for name, value in found.attributes if name == "id"}


def test_texts_are_shown_and_not_run(folder):
    """Of questions, columns of the data, their names, and the folder."""
    found = Texts((folder / "eval_report.html").read_text())
    for text in HARMFUL[1:]:
        assert text in found.text
    assert not {"img", "script"} & set(found.elements) and not [
        name for name, _ in found.attributes if name[:2] == "on"
    ]


PHONE = """<body><iframe style="width: 360px; height: 800px; border: 0" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const shown = document.querySelector("iframe").contentDocument;
  document.body.dataset.title = shown.title;
  document.body.dataset.surplus = shown.documentElement.scrollWidth - shown.documentElement.clientWidth;
}});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium")
def test_a_browser_runs_nothing_of_the_page_and_it_fits_a_phone(folder, tmp_path):
    """Also without the page's own ban of scripts."""
    page, phone = (folder / "eval_report.html").read_text(), tmp_path / "phone.html"
    assert len(CONTENT_POLICY.findall(page)) == 1
    phone.write_text(PHONE.format(page=html.escape(CONTENT_POLICY.sub("", page))))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", phone.as_uri()]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    ((_, attributes),) = [(tag, attributes) for tag, attributes in Texts(done.stdout).tags if tag == "body"]
    assert dict(attributes) == {"data-title": f"{folder.name}: evaluation", "data-surplus": "0"}


def test_the_figures_of_the_page_are_those_of_the_json(folder):
    report, text = load(folder / "eval_report.json"), Texts((folder / "eval_report.html").read_text()).text
    for part in [*report["scores"], *report["groups"], *report["top_n"]]:
        assert f"{part['value']:.1f}" in text
    for example in report["worst"]:
        assert f"F1 {example['f1']:.1f}" in text and f"id {example['id']}" in text


def test_the_report_is_made_again_from_the_files(folder, tmp_path, capsys):
    """Also without the earlier one, from which memory comes."""
    again = tmp_path / folder.name
    shutil.copytree(folder, again)
    (again / "eval_report.html").unlink()
    main([str(again)])
    assert capsys.readouterr().out == f"written: {again}/eval_report.html\n"
    assert same_but_digits(load(again / "eval_report.json"), load(folder / "eval_report.json"))
    first = (again / "eval_report.html").read_text()
    (again / SETTINGS_FILE).write_text("{")  # nothing of it is needed
    main([str(again)])
    assert (again / "eval_report.html").read_text() == first
    (again / SETTINGS_FILE).unlink()
    for path in again.glob("eval_report.*"):
        path.unlink()
    main([str(again)])
    report = load(again / "eval_report.json")
    assert report["run"] == {} and "host_memory" not in [part["name"] for part in report["speed"]]
    assert same_but_digits(report["groups"], load(folder / "eval_report.json")["groups"])
    reason = r"no answers of an evaluation \(eval_answers.csv: No such file or directory\); name an --output_dir"
    with pytest.raises(UserError, match=reason):
        main([str(tmp_path)])


def test_a_report_made_again_marks_the_threshold_that_chose_the_answers(tmp_path):
    """As after `--tune_null_threshold` with `--eval_report false`: exactly where the settings have it, else nearly."""
    answers, rows, golds = answers_and_golds(True)
    answers.texts = decide(answers.best_texts, answers.null_odds, -1.25)
    write_table(tmp_path, "eval", table_of(answers, rows, golds))
    for saved, threshold in (
        (None, pytest.approx(-1.25, abs=0.1)),
        (-1.25, -1.25),
        (9.0, pytest.approx(-1.25, abs=0.1)),
    ):
        if saved is not None:
            write_settings(
                tmp_path, replace(make_settings(DataArguments(), "span", 384), null_score_diff_threshold=saved)
            )
        (tmp_path / "eval_report.json").unlink(missing_ok=True)
        main([str(tmp_path)])
        report = load(tmp_path / "eval_report.json")
        chosen = report["no_answer"]["thresholds"][0]
        assert chosen["threshold"] == threshold and chosen["exact_match"] == pytest.approx(
            report["scores"][0]["value"]
        )


def same_but_digits(first, second) -> bool:
    """Return whether JSON data is equal, numbers to six digits."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_but_digits(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same_but_digits, first, second))
    return first == pytest.approx(second, rel=1e-5, abs=1e-5) if isinstance(first, float) else first == second


def test_a_page_of_a_few_questions(tmp_path):
    """It has what they can show: scores, the log of the training, and the wrong answers."""
    report = write_run(tmp_path, count=30)
    assert not report["groups"] and not report["top_n"] and report["no_answer"] is report["calibration"] is None
    page = Texts((tmp_path / "eval_report.html").read_text())
    assert "Groups, curves and calibration need 50 questions." in page.text
    assert "without an answer" in page.text and "Scores by kind of question" not in page.text
    main([str(tmp_path)])
    assert same_but_digits(load(tmp_path / "eval_report.json"), json.loads(json.dumps(report)))


def test_a_page_without_matplotlib(tmp_path, monkeypatch, caplog):
    """There is a line about it, and a page without plots."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    write_run(tmp_path, negatives=False)
    assert "pip install matplotlib" in caplog.text
    found = Texts((tmp_path / "eval_report.html").read_text())
    assert "svg" not in found.elements and "Scores by kind of question" in found.text


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_are_none_are_no_reason_to_fail(tmp_path, number):
    """As where a model overflows."""
    answers, rows, golds = answers_and_golds(True)
    answers.null_odds["3"] = number
    answers.nbest[0].start_logit[:30] = number
    answers.nbest[0].probability[:30] = number
    report = build_report(
        table_of(answers, rows, golds), {}, threshold=0.0, results={}, history=[{"loss": None, "step": 1}]
    )
    write_report(tmp_path, report)
    assert "svg" in Texts((tmp_path / "eval_report.html").read_text()).elements


def test_facts_name_no_path(tmp_path):
    (tmp_path / "dev.json").touch()
    flags = {"max_seq_length": 384, "doc_stride": 128, "max_answer_length": 30, "model_name_or_path": str(tmp_path)}
    facts = run_facts(flags | {"validation_file": str(tmp_path / "dev.json")})
    assert facts == {
        "model": tmp_path.name,
        "questions": "dev.json",
        "longest input": "384 tokens, overlap 128",
        "longest answer": "30 tokens",
    }
    assert run_facts(flags | {"dataset_name": "squad", "validation_split": 0.1})["questions"] == "0.1 of squad"


# ---------------------------------------------------------------------------------------------------------------------
# Several runs


def write_scores(folder: Path, scores: list[float], arguments: dict | None, first: int = 0) -> Path:
    """Write the table of a run that scored so on questions numbered from `first`."""
    folder.mkdir()
    lines = [f"{number},q,c,g,p,{score},{score},1" for number, score in enumerate(scores, first)]
    header = "id,question,context,gold,predicted,exact_match,f1,row"
    (folder / "eval_answers.csv").write_text("\n".join([header, *lines]), encoding="utf-8-sig")
    if arguments is not None:
        write_json(
            folder / "run.json", [{"arguments": arguments | {"output_dir": str(folder)}, "model": {"weights": "w"}}]
        )
    return folder


def test_runs_of_one_model_and_the_difference_to_another(tmp_path):
    draw = np.random.default_rng(0)
    base = draw.random(300) * 60
    scores = {"a": base, "b": base + 10, "c": base + draw.normal(6, 30, 300)}
    flags = {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"seed": 0, "learning_rate": 1e-4}}
    folders = [write_scores(tmp_path / name, scores[name].tolist(), flags[name]) for name in scores]
    found = compare(folders)
    model, other = found["models"]
    runs = [*model["runs"], *other["runs"]]
    assert [run["f1"] for run in runs] == pytest.approx([part.mean() for part in scores.values()])
    assert len(model["runs"]) == 2 and model["f1"] == pytest.approx(base.mean() + 5)
    assert model["f1_deviation"] == pytest.approx(np.std([0, 10], ddof=1)) and other["f1_deviation"] is None
    (pair,) = found["differences"]
    expected = scores["c"] - base - 5
    assert pair["questions"] == 300 and pair["f1"]["value"] == pytest.approx(expected.mean())
    interval = scipy.stats.bootstrap((expected,), np.mean, n_resamples=20_000, method="percentile", rng=5)
    low, high = interval.confidence_interval
    assert [pair["f1"]["low"], pair["f1"]["high"]] == pytest.approx([low, high], abs=0.07 * (high - low))
    share = 2 * min((interval.bootstrap_distribution <= 0).mean(), (interval.bootstrap_distribution >= 0).mean())
    assert 0.2 < share < 0.8
    assert pair["f1"]["p"] == pytest.approx(share, abs=0.08)
    lines = comparison_lines(found)
    assert len(lines) == 6 and f"{base.mean() + 5:.2f} ± 7.07" in lines[3] and "300 questions: EM " in lines[5]


def test_runs_without_a_record_or_without_common_questions(tmp_path):
    folders = [write_scores(tmp_path / name, [50.0] * 12, None, first=10 * (name == "c")) for name in "abc"]
    found = compare(folders)
    assert [len(model["runs"]) for model in found["models"]] == [1, 1, 1]
    assert [pair["questions"] for pair in found["differences"]] == [12, 2, 2]
    assert found["differences"][0]["f1"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert comparison_lines(found)[-1].endswith("2 questions in common, too few to compare")


def test_the_command_compares_folders_in_a_page(folder, tmp_path, capsys):
    write_run(tmp_path / "other", negatives=False)
    with pytest.raises(UserError, match="runs.html is for a table of several runs"):
        main([str(folder), "--output", str(tmp_path / "runs.html")])
    main([str(folder), str(tmp_path / "other"), "--output", str(tmp_path / "runs.html")])
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["run", "seed", "questions", "EM", "F1"] and len(printed) == 6
    found = Texts((tmp_path / "runs.html").read_text())
    assert f"{tmp_path / 'other'} compared with {folder}" in found.text and not {"script", "img"} & set(found.elements)
    assert json.dumps(COUNT) in found.text and "\N{MINUS SIGN}" in found.text and not re.search(r" -\d", found.text)
