"""One's own file: tables as Excel writes them in Germany, and the model to start from where questions are few."""

import re
import shutil

import pytest
from helpers import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import run_qa
from qa.advice import FEW, FINE_TUNED, MANY_LANGUAGES, advise_start
from qa.arguments import ModelArguments


TEXTS = {
    "en": "The lease of the flat was signed by the tenant and the landlord in the spring of that year.",
    "de": "Der Vertrag über die Wohnung ist von der Mieterin und dem Vermieter im Mai unterschrieben worden.",
    "fr": "Le bail de cet appartement a été signé au printemps par le locataire et son propriétaire.",
}
TABLE = "Kontext;Frage;Antwort;Seite\r\n" + "".join(
    f'"Die Miete für Wohnung {number}; hell, mit Balkon\n– beträgt {number}.250,50 €, fällig am 3. Mai.";'
    f'"Wie hoch ist die ""Miete"" ({number})?";{number}.250,50 €;{number},5\r\n;;;\r\n'
    for number in range(1, 13)
)
COLUMNS = "--context_column Kontext --question_column Frage --answer_column Antwort".split()


@pytest.fixture(scope="module")
def headless(tiny_model, tmp_path_factory):
    """Return the folder of the tiny model without its answer head."""
    folder = tmp_path_factory.mktemp("headless") / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("qa_outputs")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "language, questions, named",
    [("en", 200, FINE_TUNED["en"]), ("de", 200, FINE_TUNED["de"]), ("fr", 1, MANY_LANGUAGES), ("en", FEW, None)],
)
def test_few_questions_start_from_a_fine_tuned_model(headless, tiny_model, caplog, language, questions, named):
    config = AutoConfig.from_pretrained(headless)
    rows = [{"context": TEXTS[language]}] * questions
    for rank in (None, 4):  # of adapters; this model has a head
        advise_start(config, ModelArguments(str(tiny_model), lora_r=rank), rows)
    assert not caplog.text
    advise_start(config, ModelArguments(str(headless)), rows)
    assert (f"such as --model_name_or_path {named}" in caplog.text) == (named is not None) == bool(caplog.text)


def test_the_models_of_the_advice_are_in_the_readme():
    table = re.findall(r"^\| `([^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {*FINE_TUNED.values(), MANY_LANGUAGES} <= set(table)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig"])
def test_a_table_of_excel_in_german_is_checked_with_advice(headless, tmp_path, caplog, capsys, encoding):
    """Semicolons, decimal commas, line breaks and quotes in cells, empty rows, names of columns in German."""
    path = tmp_path / "Fragen.csv"
    path.write_bytes(TABLE.encode(encoding))
    flags = ["--model_name_or_path", headless, "--train_file", path, "--validation_split", 0.1, *COLUMNS]
    flags += ["--do_train", "--do_eval", "--pad_to_max_length", False, "--max_seq_length", 128, "--doc_stride", 32]
    run_qa.main(list(map(str, [*flags, "--output_dir", tmp_path / "out", "--check"])))
    assert "checked, a run could start: 10 train features, 2 validation features" in capsys.readouterr().out
    assert "10 questions are few for training an answer head" in caplog.text and FINE_TUNED["de"] in caplog.text
    assert ("read as cp1252" in caplog.text) == (encoding == "cp1252")
