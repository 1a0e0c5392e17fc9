"""Downloads from the hub that wait and try again. See the table in `qa.upstream`."""

import logging
import time

import huggingface_hub
import requests
from huggingface_hub import constants
from urllib3.util.retry import Retry

from qa.errors import in_one_line


logger = logging.getLogger(__name__)


class PatientRetry(Retry):
    """Wait, and say so, where the hub limits requests (HTTP 429); other failures are not tried again here."""

    RETRY_AFTER_STATUS_CODES = frozenset({429})
    MOST, LONGEST_WAIT = 5, 60  # times, seconds

    @classmethod
    def on_limits(cls) -> "PatientRetry":
        return cls(cls.MOST, connect=0, read=False, redirect=0, other=0, status_forcelist=[429], raise_on_status=False)

    def sleep(self, response=None) -> None:
        """Wait as long as the hub asks for, but not longer than LONGEST_WAIT; else 1, 2, 4, 8 and 16 s."""
        number = len(self.history)
        asked = self.get_retry_after(response) if response is not None else None
        seconds = min(2 ** (number - 1) if asked is None else asked, self.LONGEST_WAIT)
        logger.warning(f"The hub limits requests (HTTP 429); trying again in {seconds:.0f} s [{number}/{self.MOST}]")
        time.sleep(seconds)


class HubAdapter(requests.adapters.HTTPAdapter):
    """Downloads that huggingface_hub 0.36 tries again, where on its own it would give up at once.

    - HTTP 429: see PatientRetry. huggingface_hub 1.0 waits too: https://github.com/huggingface/huggingface_hub/pull/3437.
    - A connection that breaks in the middle of a file: huggingface_hub goes on from there after a
      `requests.ConnectionError`, but requests raises a ChunkedEncodingError.
    - Questions to the hub without a limit of time, such as those for a list of files: a hub that
      does not answer would hold the run forever. Their callers know a ConnectionError, which a ReadTimeout is not.
    """

    def __init__(self):
        super().__init__(max_retries=PatientRetry.on_limits())

    def send(self, request, *args, timeout=None, **kwargs):
        if timeout is not None or request.method not in ("GET", "HEAD"):  # an upload may take its time
            return super().send(request, *args, timeout=timeout, **kwargs)
        try:
            return super().send(request, *args, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, **kwargs)
        except requests.ReadTimeout as error:
            raise requests.ConnectTimeout(error, request=request) from error

    def build_response(self, request, response):
        built = super().build_response(request, response)
        content = built.iter_content

        def iter_content(*args, **kwargs):
            try:
                yield from content(*args, **kwargs)
            except requests.exceptions.ChunkedEncodingError as error:
                raise requests.ConnectionError(error, request=request) from error

        built.iter_content = iter_content
        return built


# Files and folders in an output folder that are not uploaded: what is being written, and what belongs to this machine
# or to a run that resumes.
LEFT_OUT = ("_*", ".*", "checkpoint-*", "run.json", "trainer_state.json", "training_args.bin")


def choose_uploads() -> None:
    """Let the trainer omit LEFT_OUT where it uploads an output folder during a training.

    transformers 4.55.4 omits only the first and the third of them: checkpoints that are being written would be uploaded,
    and so would be the paths of this machine.
    """
    import transformers.trainer

    def upload(**settings):
        if settings.get("path_in_repo") is None:  # not a checkpoint that --hub_strategy asks for
            settings["ignore_patterns"] = list(LEFT_OUT)
        uploaded = huggingface_hub.upload_folder(**settings)
        if settings.get("run_as_future"):
            uploaded.add_done_callback(report_failure)
        return uploaded

    transformers.trainer.upload_folder = upload


def report_failure(job) -> None:
    """Log why an upload during a training failed; transformers 4.55.4 does not look at it again."""
    if error := job.exception():
        logger.warning(f"An upload of this training failed, and the training goes on: {in_one_line(error)}")


def patient_session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HubAdapter())
    return session


def wait_for_the_hub() -> None:
    """Let all downloads of huggingface_hub use sessions that wait."""
    if not constants.HF_HUB_OFFLINE:
        huggingface_hub.configure_http_backend(patient_session)
