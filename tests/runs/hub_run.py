"""Check models and load datasets by name from one hub, all at the same time, since most of that is waiting.

    python tests/runs/hub_run.py RESULT_JSON ARGUMENTS_JSON

`ARGUMENTS_JSON` is {title: {argument: value}}, of the model's or the data's arguments. The result is
{title: {"problems": [...], "log": [...]}}; the problems are those of a `UserError`, none where it was loaded.
"""

import json
import logging
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import qa.upstream  # noqa: E402, F401  isort: skip
import huggingface_hub  # noqa: E402
from transformers import AutoModelForQuestionAnswering  # noqa: E402

from qa.arguments import DataArguments, ModelArguments  # noqa: E402
from qa.data import load_rows  # noqa: E402
from qa.errors import UserError  # noqa: E402
from qa.models import check_model, load_config_and_tokenizer  # noqa: E402


STAGES = SimpleNamespace(do_train=False, do_eval=True, do_predict=False)
STAGES.disable_tqdm = STAGES.should_log = True


class Lines(logging.Handler):
    """Keeps the lines of each thread."""

    def __init__(self):
        super().__init__()
        self.lines = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[record.threadName].append(record.getMessage())


def load(title: str, arguments: dict, log: Lines, results: dict) -> None:
    token = {"token": arguments.pop("token", None)}
    problems = []
    try:
        if "dataset_name" in arguments:
            load_rows(DataArguments(**arguments), ModelArguments(model_name_or_path="none", **token), STAGES)
        else:
            model_args = ModelArguments(**arguments, **token)
            config, tokenizer = load_config_and_tokenizer(model_args)
            check_model(AutoModelForQuestionAnswering, config, tokenizer, model_args, remote=True)
    except UserError as error:
        problems = error.problems
    results[title] = {"problems": list(problems), "log": log.lines[title]}


def main() -> None:
    log, results = Lines(), {}
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = (
        1000  # a file of these tests has several pieces, as one of 10 MB has
    )
    logging.getLogger("huggingface_hub").handlers[:] = [log]
    logging.getLogger("huggingface_hub").propagate = False
    logging.getLogger("qa").addHandler(log)
    jobs = json.loads(Path(sys.argv[2]).read_text())
    threads = [
        threading.Thread(target=load, name=title, args=(title, values, log, results)) for title, values in jobs.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
