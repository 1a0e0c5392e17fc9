"""Downloads from the hub: which names are read from a folder instead, and why one could not be loaded, in one line.

huggingface_hub 0.36 tries again where a connection fails, an answer takes too long or the hub has an error of
its own; `qa.upstream.hub.HubAdapter` adds what it lacks. `hub_problem` reports what ends a run.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import requests
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id


logger = logging.getLogger(__name__)

WITHOUT_HUB = "Without the hub, name a local folder, or set HF_HUB_OFFLINE=1 to use what the cache has"
NAMES = ("model_name_or_path", "config_name", "tokenizer_name", "dataset_name", "gaudi_config_name")


def can_be_on_hub(name: str | None) -> bool:
    """Return whether a repository of the hub can have a name; `./bert` and `/models/bert` are the names of folders."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def shadowing_folder(name: str | None) -> Path | None:
    """Return the folder that is read although its name could be one on the hub, else None."""
    return Path(name).resolve() if can_be_on_hub(name) and Path(name).is_dir() else None


def is_hub_name(name: str | None) -> bool:
    """Return whether a name is one on the hub, and no folder here."""
    return can_be_on_hub(name) and not Path(name).exists()


def report_shadowing(*arguments) -> None:
    """Log each flag of some dataclasses whose value could be a name on the hub, but is a folder here."""
    for flag in NAMES:
        for name in {getattr(part, flag, None) for part in arguments}:
            if folder := shadowing_folder(name):
                logger.info(f"--{flag} {name} is read from the folder {folder}, not from the hub")


def loading_problem(error: Exception, flag: str, name: str, model_args, failure: str) -> str:
    """Return in one line why the value of a flag cannot be loaded, and how to go on.

    Args:
        error: of transformers or datasets, whose causes are looked through.
        flag: the flag that names it, as in `model_name_or_path`.
        failure: the line's words where the hub is not the reason.
    """
    if problem := hub_problem(error, flag, name, model_args):
        return f"--{flag} {name}: {problem}"
    folder = shadowing_folder(name)
    place = f" (the folder {folder}, not the hub's)" if folder else ""
    return f"--{flag} {name}{place}: {failure}"


def hub_problem(error: Exception, flag: str, name: str, model_args) -> str | None:
    """Return what keeps the hub from delivering a name, and how to go on; None where the hub is not the reason."""
    links = list(causes_of(error))
    if not model_args.trust_remote_code and "trust_remote_code" in str(error):
        return (
            "it needs Python code of its repository, which is not run; read that code, and add --trust_remote_code if "
            "you trust its authors"
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"it is neither a folder nor in the cache ({cache_of(flag, model_args)}), and HF_HUB_OFFLINE is set; name a "
            "local folder, or download it first without HF_HUB_OFFLINE"
            if holds(links, ConnectionError, LocalEntryNotFoundError)
            else None
        )
    return refusal(links, flag, model_args) or network_problem(links, login_advice(model_args), WITHOUT_HUB)


def refusal(links: list, flag: str, model_args) -> str | None:
    """Return why the hub, which did answer, does not deliver a name.

    datasets 3.6 replaces the hub's errors by a DatasetNotFoundError, with the reason in its text alone.
    """
    hub, status, by_datasets = constants.ENDPOINT, status_of(links), text_of(links, "DatasetNotFoundError")
    if holds(links, GatedRepoError) or status == 403 or "gated" in by_datasets:
        return f"{hub} does not give you access to it; ask for access there, then {login_advice(model_args)}"
    if holds(links, RevisionNotFoundError):
        return (
            f"{hub} has it, but not --model_revision {model_args.model_revision}; name a branch, tag or commit of it"
        )
    if holds(links, RepositoryNotFoundError) or status == 401 or by_datasets:
        kind = "dataset" if flag == "dataset_name" else "model"
        return (
            f"there is no such folder, and {hub} shows you no {kind} of this name; correct it, or if it is private, "
            f"{login_advice(model_args)}"
        )
    return None


def network_problem(links: list, login: str, advice: str = "") -> str | None:
    """Return why the hub does not answer, or was not asked.

    Args:
        login: how to be known to the hub, which limits requests of others more.
        advice: a sentence on how to do without it.
    """
    hub, status, advice = constants.ENDPOINT, status_of(links), advice and f". {advice}"
    if status == 429:
        return f"{hub} still limits your requests (HTTP 429); try again later, or {login}{advice}"
    if status is not None and status >= 500:
        return f"{hub} has a fault of its own (HTTP {status}); try again later{advice}"
    if status is not None:
        return None
    if holds(links, requests.exceptions.InvalidHeader, UnicodeEncodeError):  # whose texts contain the token
        return "the token contains characters that no token has; copy it again, without spaces and line breaks"
    if holds(links, requests.RequestException, ConnectionError):
        return f"{hub} cannot be reached{words_for(links)}; check the network and try again{advice}"
    return None


def login_advice(model_args) -> str:
    return "check --token" if model_args.token else "log in with `hf auth login` or give --token"


def cache_of(flag: str, model_args) -> str:
    """Return the folder that holds earlier downloads."""
    if flag != "dataset_name":
        return model_args.cache_dir or constants.HF_HUB_CACHE
    import datasets

    return model_args.cache_dir or str(datasets.config.HF_DATASETS_CACHE)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, that one's cause, and so on; also causes that were hidden by `from None`."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def holds(links: list, *kinds: type) -> bool:
    return any(isinstance(link, kinds) for link in links)


def status_of(links: list) -> int | None:
    """Return the HTTP status of the hub's answer, if there was one."""
    answers = (getattr(link, "response", None) for link in links)
    return next((answer.status_code for answer in answers if answer is not None), None)


def text_of(links: list, kind: str) -> str:
    """Return the text of the error of a kind; without one, nothing."""
    return next((str(link) for link in links if type(link).__name__ == kind), "")


def words_for(links: list) -> str:
    """Return the operating system's words for the failure, as in ` (Connection refused)`, if there are any."""
    if holds(links, requests.Timeout, TimeoutError):
        return " (no answer in time)"
    return next((f" ({link.strerror})" for link in reversed(links) if getattr(link, "strerror", None)), "")
