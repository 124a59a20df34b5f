"""The exceptions of scgpt_ray.

ScgptRayError
|-- InputError (ValueError)        the user's mistake: exit code 2, one line
|   |-- ConfigError                an option or a YAML key
|   |-- AtlasError                 cells that cannot be read, or are not counts
|   |   `-- DamagedError           stored bytes of some cells that cannot be decoded: costs these, not the run
|   |-- GeneCoverageError          too few counts belong to genes of the vocabulary
|   |-- CheckpointError            a checkpoint folder that is not what it says
|   |-- OutputError                an output folder that cannot or must not be written
|   `-- ReferenceSetError          an embeddings or index folder that cannot be used
`-- RunError (RuntimeError)        work that failed: exit code 1
    |-- CompletenessError          planned cells and committed parts do not agree
    `-- WorkerError                a partition that could not be finished
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_SECRET = r"secret|token|passw|signature|credential|api[-_]?key|access[-_]?key"
_PASSWORD = re.compile(
    rf"(://[^/\s:@]*:)[^/\s]+(?=@)|([?&](?:[^=&\s]*(?:{_SECRET})[^=&\s]*|sig)=)[^&\s]+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """Replace the passwords in URIs (`//user:password@`, `?token=...`, signatures) by asterisks."""
    return _PASSWORD.sub(lambda found: f"{found[1] or found[2]}***", text)


class ScgptRayError(Exception):
    """Everything scgpt_ray raises on purpose."""


class InputError(ScgptRayError, ValueError):
    """A mistake in what the user gave, said in one line.

    Args:
        found: What was met, with its place, as the start of a sentence.
        expected: What would have been right.
        remedy: What to do about it.
    """

    def __init__(self, found: str, *, expected: str, remedy: str) -> None:
        self.found, self.expected, self.remedy = (" ".join(part.split()) for part in (found, expected, remedy))
        super().__init__(f"{self.found}; expected {self.expected}; {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by parts, because Ray carries errors between processes."""
        return _rebuild, (type(self), self.found, self.expected, self.remedy)


def _rebuild(kind: type[InputError], found: str, expected: str, remedy: str) -> InputError:
    return kind(found, expected=expected, remedy=remedy)


class ConfigError(InputError):
    """An option or YAML key that is unknown, missing or out of range."""


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that an error stands for, as what ended a run; None for other errors.

    One in the middle of compiled code that calls Python, such as numba's, comes out as the cause of a SystemError, and
    one while an error is handled, or handled by code that fails, as part of its chain.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def optional(purpose: str, packages: str) -> Iterator[None]:
    """Import packages of the extra `eval`, of which an installation may lack some.

    Args:
        purpose: What needs them.
        packages: Their names.

    Raises:
        ConfigError: If one is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs a package that is not installed: {error.name or error}",
            expected=packages,
            remedy="pip install 'scgpt-ray[eval]'",
        ) from None


class AtlasError(InputError):
    """Cells that cannot be opened, selected or read, or that are not counts."""


class DamagedError(AtlasError):
    """Stored bytes of some cells that cannot be read, in an atlas that can be opened."""


class GeneCoverageError(InputError):
    """Too few of the counts belong to genes of the vocabulary."""


class CheckpointError(InputError):
    """A checkpoint folder that is incomplete or contradicts itself."""


class OutputError(InputError):
    """An output folder that cannot be written or holds another run."""


class ReferenceSetError(InputError):
    """An embeddings or index folder that cannot be used as a reference."""


class RunError(ScgptRayError, RuntimeError):
    """Work that failed although its input was accepted."""


class CompletenessError(RunError):
    """Planned cells and committed parts do not agree."""


class WorkerError(RunError):
    """A partition that could not be finished."""
