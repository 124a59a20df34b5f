"""The manifest: written last, it proves that every planned cell is in exactly one part."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scgpt_ray.atlas.plan import Plan
from scgpt_ray.errors import CoverageError, OutputError, ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.parts import PARTS, Part, committed
from scgpt_ray.storage import Folder

PLAN = "plan.json"
MANIFEST = "manifest.json"
GENES = "genes.parquet"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """A finished set of embeddings.

    Attributes:
        fingerprint: What made the numbers.
        n_cells: Cells planned, and therefore rows in all parts together.
        n_empty: Cells without an embedding: no count of a gene in the vocabulary.
        n_tokens: Tokens that went through the network.
        dimension: Width of the embedding.
        obs_columns: Columns carried along.
        parts: File name -> rows, in order of partition.
        coverage: The gene coverage report.
        versions: Package -> version of the run that finished it.
        actors: What the actors of that run computed with, each different description once; see `Embedder.describe`.
    """

    fingerprint: Fingerprint
    n_cells: int
    n_empty: int
    n_tokens: int
    dimension: int
    obs_columns: list[str]
    parts: dict[str, int]
    coverage: dict[str, Any]
    versions: dict[str, str]
    actors: list[dict[str, str | int]] = field(default_factory=list)

    def to_json(self) -> bytes:
        """The content of manifest.json."""
        values = asdict(self) | {"format": _FORMAT, "digest": self.fingerprint.digest}
        return json.dumps(values, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Manifest":
        """Read manifest.json.

        Raises:
            ReferenceSetError: If it is not one of this format.
        """
        try:
            values = json.loads(content)
            _require_format(values.pop("format"))
            values.pop("digest")
            return cls(**(values | {"fingerprint": Fingerprint.from_dict(values["fingerprint"])}))
        except (ValueError, KeyError, TypeError) as error:
            raise ReferenceSetError(
                f"{where} cannot be read: {error}",
                expected=f"a manifest of format {_FORMAT}",
                remedy="run embed again into a new folder",
            ) from error


def _require_format(found: int) -> None:
    if found != _FORMAT:
        raise ValueError(f"it has format {found}")


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a finished run, or None."""
    if not folder.has(MANIFEST):
        return None
    return Manifest.from_json(folder.read(MANIFEST), folder.where(MANIFEST))


def require_manifest(folder: Folder) -> Manifest:
    """The manifest of a run that others build on.

    Raises:
        ReferenceSetError: If the folder is not one, or its run is not finished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        unfinished = folder.has(PLAN)
        raise ReferenceSetError(
            f"{folder.uri} has no {MANIFEST}",
            expected="the output folder of a finished embed",
            remedy="run the same embed command again to finish it" if unfinished else "give its path to --embeddings",
        )
    return manifest


def read_plan(folder: Folder) -> Plan | None:
    """The plan of a run that began here, or None."""
    return Plan.from_json(folder.read(PLAN), folder.where(PLAN)) if folder.has(PLAN) else None


def committed_parts(folder: Folder, fingerprint: Fingerprint) -> dict[int, Part]:
    """The parts of a run that are committed, by partition.

    Raises:
        OutputError: If a part carries another fingerprint.
    """
    parts = committed(folder.folder(PARTS))
    digest = fingerprint.digest
    for part in parts.values():
        if part.fingerprint != digest:
            raise OutputError(
                f"{folder.where(PARTS)}/{part.name} has fingerprint {part.fingerprint[:12]}",
                expected=f"{digest[:12]}, as {PLAN} says",
                remedy="give --output another folder, or delete that part",
            )
    return parts


def prove_coverage(plan: Plan, parts: Mapping[int, Part]) -> None:
    """Compare what was planned with what the footers say.

    Raises:
        CoverageError: If a planned partition has no part, a part has other cells, or nobody planned it.
    """
    problems = [f"part-{number:05d} was never planned" for number in parts if number >= len(plan.partitions)]
    for partition in plan.partitions:
        part = parts.get(partition.number)
        if part is None:
            problems.append(f"partition {partition.number} ({partition.n_cells} cells) has no part")
        elif (part.joinids, part.n_cells) != (partition.digest, partition.n_cells):
            problems.append(f"{part.name} holds other cells than planned")
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004 - enough to see
        raise CoverageError("; ".join(problems[:3]) + rest)
