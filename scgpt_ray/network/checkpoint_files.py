"""The files of a checkpoint folder. Does not import torch, which processes that only tokenise do not need."""

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
"""Name of the shipped checkpoint; write ./demo for a folder of that name."""


def checkpoint_place(name: str | Path) -> Folder:
    """The folder of a checkpoint; for `demo`, the one in the installed package."""
    return Folder.at(Path(__file__).parent / DEMO if str(name) == DEMO else name)


def portable_name(name: str | Path) -> str:
    """A name of the checkpoint that is valid on every node: an absolute URI, or `demo`."""
    return DEMO if str(name) == DEMO else checkpoint_place(name).uri


def read_vocabulary(folder: str | Path) -> Vocabulary:
    """Read only the vocabulary of a checkpoint, which is enough to tokenise.

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
    """The error for a missing or unreadable file."""
    return CheckpointError(
        found,
        expected=f"a folder with {ARGS_FILE}, {VOCABULARY_FILE} and {WEIGHTS_FILE} (or {SAFETENSORS_FILE})",
        remedy="point --checkpoint at a folder that has all three",
    )
