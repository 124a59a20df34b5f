"""Recipes as jobs on the job server of a Ray cluster."""

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from scgpt_ray import config
from scgpt_ray.config import Settings, SubmitSettings
from scgpt_ray.config.settings import read_yaml
from scgpt_ray.errors import ConfigError, OutputError, WorkerError
from scgpt_ray.identity import digest_of
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

_ADDRESS = "http://127.0.0.1:8265"
"""Ray's default."""

_POLL_S = 1.0
_KEPT_CHARACTERS = 100_000
_STOPPED = 143  # as after SIGTERM, which `ray job stop` sends


@dataclass(frozen=True)
class Submitted:
    """A job, as far as it was followed.

    Attributes:
        job: Its submission id.
        address: The job server.
        state: As Ray calls it.
        exit_code: That of the verb, where Ray's own command line has 1 for all but 0; 0 if the job was not followed.
        message: Ray's message about it.
        result: The JSON line of the verb; None if there was none.
    """

    job: str
    address: str
    state: str
    exit_code: int
    message: str
    result: dict[str, Any] | None

    def text(self) -> str:
        """A line for people."""
        return f"job {self.job} at {self.address}: {self.state}, exit code {self.exit_code}. {self.message}".strip()

    def to_dict(self) -> dict[str, Any]:
        """The same for programs; `exit_code` is also that of `submit`."""
        values = {name: getattr(self, name) for name in ("job", "address", "state", "exit_code")}
        return {**values, "result": self.result}


def submit(settings: SubmitSettings) -> Submitted:
    """Run a recipe on a cluster, show its log, and end as it ends.

    The id of the job is made from the verb and its options. While a job of the same recipe is waiting or running,
    another one is refused; after that, it is a new attempt, numbered.

    Raises:
        ConfigError: If the recipe is wrong, or the server refuses the token.
        OutputError: If the same recipe is running.
        WorkerError: If the job server does not do its part.
    """
    recipe = read_recipe(settings.recipe)
    address = settings.address or os.environ.get("RAY_API_SERVER_ADDRESS", _ADDRESS)
    logging.getLogger("ray").setLevel(logging.WARNING)  # uploads and connections
    with _plain_errors(address):
        client = JobSubmissionClient(address)
        job = _start(client, settings.recipe, recipe)
        logger.info("job %s at %s", job, address)
        if settings.detach:
            return Submitted(job, address, str(client.get_job_status(job)), 0, "It was not followed.", None)
        try:
            log = asyncio.run(_follow(client, job))
            ended = _ended(client, job)
        except KeyboardInterrupt:
            logger.warning("job %s goes on; to end it: ray job stop --address %s %s", job, address, job)
            raise
    return Submitted(job, address, str(ended.status), exit_code(ended), ended.message or "", _result(log))


def read_recipe(path: str) -> Settings:
    """The settings in a file of options that also names their verb.

    Raises:
        ConfigError: If they cannot be used, or the output would be lost with the cluster.
    """
    found = (getattr(config, name) for name in config.__all__)
    kinds: dict[str, type[Settings]] = {each.verb: each for each in found if "verb" in vars(each)}
    verb = read_yaml(path).get("verb")
    kind = kinds.get(str(verb))
    if kind is None:
        raise ConfigError(
            f"{path}: verb is {verb!r}",
            expected=f"one of {', '.join(kinds)}",
            remedy="give the file a line such as `verb: embed`",
        )
    recipe = kind.load(path, {})
    output = getattr(recipe, "output", "/")
    if "://" not in output and not Path(output).expanduser().is_absolute():
        raise ConfigError(
            f"{path}: the output is {output}",
            expected="a URI or an absolute path: a job runs in a folder that is deleted",
            remedy="write the whole path",
        )
    return recipe


def job_id(recipe: Settings) -> str:
    """The submission id of a recipe, without the number of the attempt; the same for the same options."""
    return f"scgpt-ray-{recipe.verb}-{digest_of({'verb': recipe.verb, **recipe.model_dump(mode='json')})[:12]}"


def next_attempt(name: str, known: dict[str, JobStatus]) -> str:
    """The submission id of the next attempt at a job.

    Args:
        name: Its id without a number.
        known: Submission id -> state, of all jobs of the cluster.

    Raises:
        OutputError: If an attempt has not ended.
    """
    attempts = {job: state for job, state in known.items() if job == name or job.rpartition("-try")[0] == name}
    for job, state in attempts.items():
        if not state.is_terminal():
            raise OutputError(
                f"job {job} of the same recipe is {state}",
                expected="one job per recipe at a time",
                remedy=f"follow it (ray job logs --follow {job}) or end it (ray job stop {job})",
            )
    return f"{name}-try{len(attempts) + 1}" if attempts else name


def exit_code(job: JobDetails) -> int:
    """The exit code of the program of a job that has ended; of a signal as shells have it."""
    code = job.driver_exit_code
    if code is None:  # it never started, or was gone before Ray could ask
        return _STOPPED if job.status == JobStatus.STOPPED else int(job.status != JobStatus.SUCCEEDED)
    return int(code) if code >= 0 else 128 - int(code)


def _start(client: JobSubmissionClient, path: str, recipe: Settings) -> str:
    known = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    job = next_attempt(job_id(recipe), known)
    folder, name = Folder.of_file(path)
    with tempfile.TemporaryDirectory() as sent:
        # Only the recipe is sent: the package is in the image.
        (Path(sent) / "recipe.yaml").write_bytes(folder.read(name))
        command = f"scgpt-ray {recipe.verb} --config recipe.yaml"
        return str(client.submit_job(entrypoint=command, submission_id=job, runtime_env={"working_dir": sent}))


async def _follow(client: JobSubmissionClient, job: str) -> str:
    """Copy the log of a job to stderr until it ends; returns the end of the log."""
    log = ""
    try:
        async for text in client.tail_job_logs(job):
            sys.stderr.write(text)
            sys.stderr.flush()
            log = (log + text)[-_KEPT_CHARACTERS:]
    except RuntimeError as error:  # such as a proxy that ends long connections
        logger.warning("the log of job %s ends here: %s", job, error)
    return log


def _ended(client: JobSubmissionClient, job: str) -> JobDetails:
    while not (details := client.get_job_info(job)).status.is_terminal():
        time.sleep(_POLL_S)
    return details


def _result(log: str) -> dict[str, Any] | None:
    lines = [line for line in log.splitlines() if line.startswith('{"verb"')]
    result: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return result


@contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    """Raise the errors of the job server in one line."""
    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"the job server at {address} refuses this client: {' '.join(str(error).split())[:200]}",
            expected="RAY_AUTH_MODE=token and the token of the cluster",
            remedy="put it into RAY_AUTH_TOKEN, or into the file that RAY_AUTH_TOKEN_PATH names",
        ) from error
    except (ConfigError, OutputError):
        raise
    except (RuntimeError, OSError) as error:  # requests' are OSErrors
        raise WorkerError(f"the job server at {address} failed: {' '.join(str(error).split())}") from error
