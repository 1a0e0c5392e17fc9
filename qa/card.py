"""The model card, `README.md` in the output folder: how to ask the model, how it was trained, and its scores.

All of it is read from the files of the folder. It is written after a training, and again once there are scores. From
then on it is as it is: an evaluation or a prediction alone changes nothing, nor does a run change a card of a person.
"""

import json
import logging
import os
import re
import shlex
from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from qa.answer_files import read_csv_columns, table_name
from qa.answer_table import AnswerTable, Choices
from qa.earlier import has_results, is_generated, replaced_stages, signed
from qa.errors import printable, tracebacks_are_shown, unexpected
from qa.files import read_object, write_whole
from qa.groups import score_parts
from qa.hub import is_hub_name
from qa.identity import RUN_FILE
from qa.intervals import with_intervals
from qa.lora import ADAPTER_CONFIG
from qa.settings import SETTINGS_FILE


logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
# Flags that the card shows if they are set, in this order.
SETTINGS = (
    "optim learning_rate lr_scheduler_type warmup_ratio warmup_steps weight_decay max_grad_norm num_train_epochs max_steps "
    "per_device_train_batch_size gradient_accumulation_steps bf16 fp16 fp8 seed data_seed max_seq_length doc_stride "
    "max_answer_length length_buckets version_2_with_negative null_score_diff_threshold label_smoothing_factor "
    "early_stopping_patience load_best_model_at_end metric_for_best_model"
).split()
ANYWHERE = re.compile(r"""(?<![^\s=,"'\[({])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s"',;\])}]*""")  # a path within a word


def write_card(folder: Path, name: str, config) -> None:
    """Write the card of the model in an output folder, unless a person wrote or changed the one that is there.

    Without the record of a training, as of earlier versions, there is nothing to write.

    Args:
        name: of the model, on the hub where it is pushed to it.
        config: the model's.
    """
    path = folder / CARD_FILE
    if path.exists() and not is_generated(path):
        logger.info(f"{path} stays as it is: a person wrote or changed it")
    elif record := read_object(folder / RUN_FILE):
        try:
            text = make_card(folder, record, name, config).encode()
        except Exception as error:  # a defect of the card is no reason to lose a training
            logger.warning(f"There is no model card: {unexpected(error)}", exc_info=tracebacks_are_shown())
            return
        if not path.exists() or path.read_bytes() != text:
            write_whole(path, [text])


def make_card(folder: Path, record: dict, name: str, config) -> str:
    """Return the text of a card.

    Args:
        record: of the training, see `qa.identity`.

    Raises:
        ValueError: huggingface_hub cannot read it.
    """
    from qa.models import is_causal

    arguments, scores, marks = record["arguments"], read_scores(folder), not config.is_encoder_decoder
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    has_pipeline = marks and not is_adapter and not is_causal(config)
    card = ModelCard.from_template(
        card_data(record, name.rpartition("/")[2], scores, library="peft" if is_adapter else "transformers"),
        template_str=(files("qa") / "templates" / "card.md").read_text(encoding="utf-8"),
        title=plain(name.rpartition("/")[2]),
        verb="marks" if marks else "writes",
        negatives=arguments["version_2_with_negative"],
        is_adapter=is_adapter,
        base=code(base_model(record)),
        questions=f"{record['data']['train']['questions']:,}",
        ask=code_block("bash", shlex.join(["python", "-m", "qa.ask", name, "--context", "text.txt", "Your question?"])),
        pipeline=code_block("python", pipeline_lines(name, folder, arguments)) if has_pipeline else "",
        scores=table([score_row(score) for score in scores]),
        data=table([data_row(split, part) for split, part in record["data"].items() if split != "test"]),
        settings=table([[label.replace("_", " "), code(text)] for label, text in settings_of(folder, record).items()]),
        command=code_block("bash", shlex.join(["python", *map(without_path, record["command"])])),
        has_report=(folder / "eval_report.html").exists(),
    )  # fmt: skip
    return signed(str(card).rstrip() + "\n\n")


def card_data(record: dict, name: str, scores: list[dict], library: str) -> ModelCardData:
    """Return the metadata of a card; names that the hub does not have are not among them."""
    arguments = record["arguments"]
    language = arguments["answer_language"]
    return ModelCardData(
        language=arguments.get("language") or (None if language in ("off", "auto") else [language]),
        license=arguments.get("license"),
        library_name=library,
        base_model=base_model(record) if is_from_hub(record) else None,
        base_model_relation="adapter" if library == "peft" and is_from_hub(record) else None,
        datasets=[record["data"]["train"]["name"]] if is_dataset_of_hub(record["data"]["train"]) else None,
        metrics=["exact_match", "f1"],
        pipeline_tag="question-answering",
        tags=["generated_from_trainer", "question-answering"],
        model_name=name if scores else None,
        eval_results=[eval_result(score, record["data"]["validation"]) for score in scores] or None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a card


def read_scores(folder: Path) -> list[dict]:
    """Return the scores of the evaluation after the training, as `with_intervals` has them; none where there is none."""
    if not has_results(folder, "eval") or "eval" in replaced_stages(folder):
        return []
    try:
        columns = read_csv_columns(folder / table_name("eval"))
    except (OSError, ValueError):
        return []
    return with_intervals(score_parts(AnswerTable(columns, [], Choices()))) if "exact_match" in columns else []


def title_of(score: dict) -> str:
    return f"{score['label']}, questions {score['of']}" if score["of"] else score["label"]


def score_row(score: dict) -> list[str]:
    interval = "too few questions" if score["low"] is None else f"{score['low']:.2f} to {score['high']:.2f}"
    return [title_of(score), f"{score['value']:.2f}", interval, f"{score['questions']:,}"]


def eval_result(score: dict, part: dict) -> EvalResult:
    """Return a score for the metadata.

    Args:
        part: the record of the validation questions.
    """
    name = source_of(part)
    is_known = score["low"] is not None
    interval = {"interval_95": [round(score["low"], 4), round(score["high"], 4)]} if is_known else {}
    return EvalResult(
        task_type="question-answering",
        task_name="Question answering",
        dataset_type=name
        if is_dataset_of_hub(part)
        else re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "questions",
        dataset_name=printable(name),
        dataset_config=part.get("config"),
        dataset_split="validation",
        metric_type=score["name"].removeprefix("mlqa_"),
        metric_name=title_of(score),
        metric_value=round(score["value"], 4),
        metric_args=interval | {"questions": score["questions"]},
    )


def is_dataset_of_hub(part: dict) -> bool:
    return "file" not in part and is_hub_name(part["name"])


def source_of(part: dict) -> str:
    """Return the name of a dataset on the hub, or that of a file or folder without its place on this machine."""
    return part["name"] if is_dataset_of_hub(part) else Path(part.get("file") or part["name"]).resolve().name


def data_row(split: str, part: dict) -> list[str]:
    name = " ".join(filter(None, (source_of(part), part.get("config"))))
    return [split, code(name), f"{part['questions']:,}", code(part["fingerprint"]), code(part.get("sha256", "-"))]


def is_from_hub(record: dict) -> bool:
    """Return whether a training started with a model of the hub, see `qa.identity.model_record`."""
    name = record["model"]["name"]
    return record["model"]["weights"].startswith(f"{name} at ") and is_hub_name(name)


def base_model(record: dict) -> str:
    name = record["model"]["name"]
    return name if is_from_hub(record) else Path(name).resolve().name


def pipeline_lines(name: str, folder: Path, arguments: dict) -> str:
    """Return how transformers' pipeline answers as the evaluation does."""
    flags = {
        "max_seq_len": read_object(folder / SETTINGS_FILE).get("max_seq_length", arguments["max_seq_length"]),
        "doc_stride": arguments["doc_stride"],
        "max_answer_len": arguments["max_answer_length"],
        "handle_impossible_answer": arguments["version_2_with_negative"],
        "align_to_words": False,
    }
    given = ", ".join(f"{flag}={value}" for flag, value in flags.items())
    return (
        "from transformers import pipeline\n\n"
        f'ask = pipeline("question-answering", model={json.dumps(name)})\n'
        f'ask(question="Your question?", context="Your text.", {given})'
    )


def settings_of(folder: Path, record: dict) -> dict[str, str]:
    """Return what a card shows of how the model was trained, by name."""
    arguments, results = record["arguments"], read_object(folder / "train_results.json")
    given = {name: arguments.get(name) for name in SETTINGS}
    given |= {name: value for name, value in arguments.items() if name.startswith("lora_")}
    tuned = read_object(folder / SETTINGS_FILE)
    given |= {name: tuned[name] for name in ("null_score_diff_threshold", "temperature") if tuned.get("tuned_on")}
    devices = record["ranks"] * record["devices_per_rank"]
    batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * devices
    if (given["max_steps"] or 0) > 0:
        given["num_train_epochs"] = None
    stage = ((arguments["deepspeed"] or {}).get("zero_optimization") or {}).get("stage")
    found = {name: value_text(value) for name, value in given.items() if value not in (None, False, 0, -1, [], "")}
    found |= {"features_in_a_step": f"{batch:,}", "DeepSpeed": stage and f"ZeRO stage {stage}"}
    if "train_loss" in results:
        found |= {"loss": f"{results['train_loss']:.4g}", "time": f"{results['train_runtime']:,.0f} s"}
    found |= {"hardware": record.get("hardware")}
    found["versions"] = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return {name: text for name, text in found.items() if text}


def value_text(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Texts in Markdown


def without_path(word: str) -> str:
    """Return a word of a command line with the names of files and folders alone, without their places on this machine.

    >>> without_path("--train_file=/home/ann/my data/train.json"), without_path("google-bert/bert-base-uncased")
    ('--train_file=train.json', 'google-bert/bert-base-uncased')
    >>> without_path('{"nvme_path": "/local/nvme"}'), without_path("1/2")
    ('{"nvme_path": "nvme"}', '1/2')
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = re.match(r"(~|\.{1,2}|[A-Za-z]:)?[/\\]", value) or (os.sep in value and os.path.exists(value))
    return flag + equals + (last_part(value) if is_path else ANYWHERE.sub(lambda path: last_part(path[0]), value))


def last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def plain(text: str) -> str:
    r"""Return a text that Markdown shows as it is.

    >>> print(plain("a|b <i> *c*"))
    a\|b \<i\> \*c\*
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", printable(text))


def code(text: str) -> str:
    r"""Return a text as code in a cell of a table.

    >>> print(code("a|b`c"))
    `` a\|b`c ``
    """
    text = printable(str(text)).replace("|", r"\|")
    marks = fence(text, 1)
    return f"{marks}{text}{marks}" if len(marks) == 1 else f"{marks} {text} {marks}"


def code_block(language: str, text: str) -> str:
    """Return a text as a block of code."""
    marks = fence(text, 3)
    return f"{marks}{language}\n{text}\n{marks}"


def fence(text: str, least: int) -> str:
    """Return more marks of code than follow each other anywhere in a text."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def table(rows: list[list[str]]) -> str:
    """Return the rows of a table in Markdown; its head is in the template."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
