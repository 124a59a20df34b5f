"""The files of a checkpoint folder. Does not import torch, which processes that only tokenise do not need."""

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from scgpt_ray.errors import CheckpointError
from scgpt_ray.network.checkpoint_cache import cached, is_cached_name, local_copy
from scgpt_ray.network.published import FILES, WEIGHTS
from scgpt_ray.object_store import ObjectStore, current
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import Vocabulary

ARGS_FILE, VOCABULARY_FILE = FILES
WEIGHTS_FILE, SAFETENSORS_FILE = WEIGHTS

COMPONENTS_FILE = "pca.safetensors"
"""The weights of principal components; see `components`."""

DEMO = "demo"
"""Name of the shipped checkpoint; write ./demo for a folder of that name."""

N_COMPONENTS = 50
"""Components of the checkpoint pca."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the files of a checkpoint are, and what is in them. It pickles, and means the same in every process.

    Attributes:
        uri: Path or URI of their folder, or demo.
        sha256: Pairs of a file's name and the SHA-256 (hex) of its content, of those that are known. What is read is
            checked against them; from an object store it is read once per machine.
        store: How an object store is reached.
    """

    uri: str
    sha256: tuple[tuple[str, str], ...] = ()
    store: ObjectStore = field(default_factory=current)

    @classmethod
    def at(cls, name: "CheckpointName") -> "CheckpointFiles":
        """Find a checkpoint; a published one, and one on a hub, is downloaded if the cache does not have it.

        Args:
            name: Path or URI, demo, a name of `published.PUBLISHED`, or hf://owner/repo[@revision][/subfolder].

        Raises:
            CheckpointError: If it can neither be found nor downloaded.
        """
        if isinstance(name, CheckpointFiles):
            return name
        text = str(name)
        if n_components(text):
            raise CheckpointError(
                f"{text} stands for components that are yet to be fitted, which only embed and nightly do",
                expected="the components that the reference was embedded with",
                remedy="give the folder checkpoint/ in the output folder of that embed",
            )
        if is_cached_name(text):
            folder, sums = cached(text)
            return cls(str(folder), tuple(sums.items()))
        return cls(DEMO if text == DEMO else Folder.at(name).uri)

    @property
    def folder(self) -> Folder:
        """Their folder, on this machine where it is the one in the package."""
        return replace(checkpoint_place(self.uri), store=self.store)

    def weights(self) -> str:
        """Name of the file of the weights.

        Raises:
            CheckpointError: If a file is missing, or there are two of weights.
        """
        place = self.folder
        try:
            names = set(place.names())
        except (OSError, pa.ArrowException) as error:
            raise incomplete(f"{place.uri} cannot be listed ({error})") from error
        weights = [name for name in (WEIGHTS_FILE, SAFETENSORS_FILE, COMPONENTS_FILE) if name in names]
        missing = [name for name in FILES if name not in names] + [WEIGHTS_FILE] * (not weights)
        if missing:
            raise incomplete(f"{place.uri} has no {' and no '.join(missing)}")
        if len(weights) > 1:
            raise CheckpointError(
                f"{place.uri} has both {' and '.join(weights)}",
                expected="one weights file",
                remedy="remove one of them",
            )
        return weights[0]

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            CheckpointError: If it is missing, cannot be read, or has another content than it should.
        """
        place, expected = self.folder, dict(self.sha256).get(name)
        try:
            if expected is None:
                return place.read(name)
            is_here = place.is_local
            content = place.read(name) if is_here else local_copy(place, name, expected).read_bytes()
        except (OSError, pa.ArrowException) as error:
            raise incomplete(f"{place.where(name)} cannot be read ({error})") from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise CheckpointError(
                f"{place.where(name)} has sha256 {found[:12]}",
                expected=f"{expected[:12]}, as at the start of the run or when it was downloaded",
                remedy="restore the file, or delete it if it is in the cache",
            )
        return content


CheckpointName = str | Path | CheckpointFiles
"""What names a checkpoint."""


def n_components(name: str) -> int | None:
    """How many components are asked for; None if the name is not pca or pca:N."""
    asked = re.fullmatch(r"pca(?::([1-9]\d*))?", name)
    return int(asked[1] or N_COMPONENTS) if asked else None


def checkpoint_place(name: str | Path) -> Folder:
    """The folder of a checkpoint that is a path, a URI or demo."""
    return Folder.at(Path(__file__).parent / DEMO if str(name) == DEMO else name)


def read_vocabulary(name: CheckpointName) -> Vocabulary:
    """Read only the vocabulary of a checkpoint, which is enough to tokenise.

    Raises:
        CheckpointError: If vocab.json is missing or unusable.
    """
    files = CheckpointFiles.at(name)
    return Vocabulary.from_json(files.read(VOCABULARY_FILE), files.folder.where(VOCABULARY_FILE))


def incomplete(found: str) -> CheckpointError:
    """The error for a missing or unreadable file."""
    return CheckpointError(
        found,
        expected=f"a folder with {ARGS_FILE}, {VOCABULARY_FILE} and {WEIGHTS_FILE} (or {SAFETENSORS_FILE})",
        remedy="give --checkpoint a folder that has all three, or a name that scgpt-ray checkpoints lists",
    )
