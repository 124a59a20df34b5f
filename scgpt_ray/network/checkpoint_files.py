"""The files of a checkpoint's folder; without torch, which a process that only makes tokens has no use for."""

from pathlib import Path

import pyarrow as pa

from scgpt_ray.errors import CheckpointError
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import Vocabulary

ARGS_FILE = "args.json"
VOCABULARY_FILE = "vocab.json"
WEIGHTS_FILE = "best_model.pt"
SAFETENSORS_FILE = "model.safetensors"

DEMO = "demo"
"""Name of the checkpoint that ships with the package; a folder that is called so is ./demo."""


def checkpoint_place(name: str | Path) -> Folder:
    """The folder of a checkpoint, on this machine where it is the one in the package."""
    return Folder.at(Path(__file__).parent / DEMO if str(name) == DEMO else name)


def portable_name(name: str | Path) -> str:
    """What names the same checkpoint in every process, also where the package is installed elsewhere."""
    return DEMO if str(name) == DEMO else checkpoint_place(name).uri


def read_vocabulary(folder: str | Path) -> Vocabulary:
    """Read only the vocabulary of a checkpoint, which is all that making tokens needs.

    Raises:
        CheckpointError: If vocab.json is missing or unusable.
    """
    place = checkpoint_place(folder)
    return Vocabulary.from_json(file_content(place, VOCABULARY_FILE), place.where(VOCABULARY_FILE))


def file_content(place: Folder, name: str) -> bytes:
    """Read a file of a checkpoint.

    Raises:
        CheckpointError: If it is missing or cannot be read.
    """
    try:
        return place.read(name)
    except (OSError, pa.ArrowException) as error:
        raise incomplete(f"{place.where(name)} cannot be read ({error})") from error


def incomplete(found: str) -> CheckpointError:
    """Tell which files a checkpoint should have."""
    return CheckpointError(
        found,
        expected=f"a folder with {ARGS_FILE}, {VOCABULARY_FILE} and {WEIGHTS_FILE} (or {SAFETENSORS_FILE})",
        remedy="point --checkpoint at a folder that has all three",
    )
