"""`--push_to_hub`: what is checked before a run, what is uploaded, and how a failed upload ends.

At its end a run uploads the files of `--output_dir` except those of `LEFT_OUT`.
"""

import logging
import shlex
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import disable_progress_bars

from qa.errors import Stopped, UserError, in_one_line, short
from qa.hub import can_be_on_hub, causes_of, network_problem, status_of
from qa.upstream.hub import LEFT_OUT, choose_uploads


logger = logging.getLogger(__name__)

READ_ONLY = "log in with a token that has write access, from {hub}/settings/tokens"


# ---------------------------------------------------------------------------------------------------------------------
# Before a run


def push_problems(training_args) -> list[str]:
    """Return why `--push_to_hub` cannot work, as far as that shows without the hub.

    Args:
        training_args: the values of the training flags, as a namespace or as training arguments.
    """
    if not training_args.push_to_hub:
        return []
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return ["--push_to_hub needs the hub, and HF_HUB_OFFLINE is set; unset it, or omit --push_to_hub"]
    problems = []
    if not (training_args.hub_token or training_args.push_to_hub_token or huggingface_hub.get_token()):
        problems.append("--push_to_hub needs an access token; run `hf auth login`, or set HF_TOKEN")
    if not can_be_on_hub(repository(training_args)):
        given = training_args.hub_model_id
        flag = (
            f"--output_dir {training_args.output_dir}" if given is None else f"--hub_model_id {given or repr(given)}"
        )
        problems.append(
            f"{flag}: {short(repository(training_args))} cannot be the name of a repository; give --hub_model_id a name of "
            "letters, digits, -, _ and ., as in NAME or OWNER/NAME"
        )
    return problems


def repository(training_args) -> str:
    """Return the name of the repository as the trainer takes it: `--hub_model_id`, else that of the output folder."""
    given = training_args.hub_model_id
    return Path(training_args.output_dir).absolute().name if given is None else given


def check_account(training_args) -> None:
    """Raise a UserError where the hub does not answer, does not know the token, or does not let it write."""
    try:
        account = huggingface_hub.whoami(token=training_args.hub_token)
    except Exception as error:
        raise UserError(f"--push_to_hub: {why_refused(error)}") from error
    if problem := account_problem(account, repository(training_args)):
        raise UserError(problem)


def account_problem(account: dict, name: str) -> str | None:
    """Return why an account cannot write to a repository.

    Args:
        account: the hub's answer to `whoami`.
        name: of the repository; without an owner it is the user's.
    """
    user, token = account.get("name", ""), (account.get("auth") or {}).get("accessToken") or {}
    roles = {org.get("name", "").lower(): org.get("roleInOrg") for org in account.get("orgs") or ()}
    owner = name.rpartition("/")[0] or user
    login = READ_ONLY.format(hub=huggingface_hub.constants.ENDPOINT)
    if token.get("role") == "read":
        return f"--push_to_hub: the access token of {user} is read-only; {login}"
    if owner.lower() not in {user.lower(), *roles}:
        known = " or ".join([user, *sorted(roles)])
        return f"--hub_model_id {name}: {user} is not a member of {owner}; name a repository of {known}"
    if roles.get(owner.lower()) == "read":
        return f"--hub_model_id {name}: {user} has read access only in {owner}; ask its owners for write access"
    if token.get("role") == "fineGrained" and not may_write(token.get("fineGrained") or {}, owner, name):
        return f"--push_to_hub: the access token of {user} may not write to repositories of {owner}; {login}"
    return None


def may_write(rights: dict, owner: str, name: str) -> bool:
    """Return whether a token's rights include to write in a repository, or to all repositories of its owner."""
    places = [
        str((scope.get("entity") or {}).get("name", owner)).lower()
        for scope in rights.get("scoped") or ()
        if "repo.write" in (scope.get("permissions") or ())
    ]
    return bool({owner.lower(), name.lower()}.intersection(places))


def why_refused(error: Exception) -> str:
    """Return in one line why the hub did not do what a push asked for, and what to do."""
    links, hub = list(causes_of(error)), huggingface_hub.constants.ENDPOINT
    login = READ_ONLY.format(hub=hub)
    status = status_of(links)
    if status == 401:
        return f"{hub} does not know the access token (HTTP 401); {login}"
    if status == 403:
        return f"{hub} does not let the access token write there (HTTP 403); {login}"
    return network_problem(links, login="log in with `hf auth login`") or in_one_line(error)


# ---------------------------------------------------------------------------------------------------------------------
# Uploads


class HubUploads:
    """Mixin for a trainer: it uploads whole files of the model and its results, and nothing of this machine."""

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Create the repository, unless it exists.

        Raises:
            UserError: the hub refuses that.
        """
        choose_uploads()
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:
            raise UserError(f"--push_to_hub: {why_refused(error)}") from error

    def push_to_hub(self, commit_message: str = "End of training", **_) -> str | None:
        """Upload the output folder on rank 0, after the uploads of checkpoints; return the address of the commit.

        The base class would save the model again, and write a card of its own.
        """
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        if self.args.disable_tqdm:
            disable_progress_bars()  # transformers 4.55.4 enables them after each training with --push_to_hub
        return huggingface_hub.upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=commit_message,
            token=self.args.hub_token,
            ignore_patterns=list(LEFT_OUT),
            revision=self.args.hub_revision,
        )


def push(trainer) -> None:
    """Upload the output folder of a run.

    Raises:
        Stopped: with exit status 1; everything is on the disk.
    """
    folder = trainer.args.output_dir
    try:
        commit = trainer.push_to_hub()
    except Exception as error:
        command = ["hf", "upload", trainer.hub_model_id, folder, ".", "--exclude", *LEFT_OUT]
        raise Stopped(
            1,
            f"error: --push_to_hub: nothing was uploaded to {trainer.hub_model_id}: {why_refused(error)}. All files are in "
            f"{folder}; start the same command again, which only uploads, or run `{shlex.join(command)}`",
        ) from error
    if commit is not None:
        logger.info(f"Uploaded to {commit}")
