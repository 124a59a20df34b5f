"""The manifest of finished embeddings, and the check that every planned cell is in one part or in quarantine."""

import logging
from collections.abc import Mapping, Sequence

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.errors import CompletenessError, OutputError, ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.parts import PARTS, Part, committed
from scgpt_ray.records import Manifest, Plan, Quarantine
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

GENES = "genes.parquet"


def require_manifest(folder: Folder) -> Manifest:
    """Read the manifest of a finished run; warns of cells in quarantine.

    Raises:
        ReferenceSetError: If the folder holds no finished run.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        unfinished = folder.has(Plan.file)
        raise ReferenceSetError(
            f"{folder.uri} has no {Manifest.file}",
            expected="the output folder of a finished embed",
            remedy="run the same embed command again to finish it" if unfinished else "give its path to --embeddings",
        )
    if manifest.n_quarantined:
        planned = manifest.n_cells + manifest.n_quarantined
        logger.warning(
            "%s lacks %d of %d cells, which could not be embedded (%s)",
            folder.uri, manifest.n_quarantined, planned, Quarantine.file,
        )  # fmt: skip
    return manifest


def committed_parts(folder: Folder, fingerprint: Fingerprint) -> dict[int, Part]:
    """The committed parts of a run, by partition.

    Raises:
        OutputError: If a part has another fingerprint.
    """
    parts = committed(folder.folder(PARTS))
    digest = fingerprint.digest
    for part in parts.values():
        if part.fingerprint != digest:
            raise OutputError(
                f"{folder.where(PARTS)}/{part.name} has fingerprint {part.fingerprint[:12]}",
                expected=f"{digest[:12]}, as {Plan.file} says",
                remedy="give --output another folder, or delete that part",
            )
    return parts


def prove_complete(
    plan: Plan, parts: Mapping[int, Part], expected: Mapping[int, Partition | None] | None = None
) -> None:
    """Check, by the footers of the parts, that every planned cell is committed exactly once.

    Args:
        plan: The plan.
        parts: Parts by partition.
        expected: What is committed of the partitions with cells in quarantine; None for nothing.

    Raises:
        CompletenessError: If a planned partition has no part, or a part was not planned or holds other cells.
    """
    problems = [f"part-{number:05d} was never planned" for number in parts if number >= len(plan.partitions)]
    for planned in plan.partitions:
        partition, part = (expected or {}).get(planned.number, planned), parts.get(planned.number)
        if partition is None:
            problems += [f"{part.name} holds cells that are in quarantine"] if part else []
        elif part is None:
            problems.append(f"partition {partition.number} ({partition.n_cells} cells) has no part")
        elif (part.joinids, part.n_cells) != (partition.digest, partition.n_cells):
            problems.append(f"{part.name} holds other cells than planned")
    _refuse(problems)


def require_reported(folder: Folder, reported: Mapping[int, Part], found: Mapping[int, Part]) -> None:
    """Require that a folder holds the parts that workers reported.

    Workers may have written elsewhere, such as to a store of the same name at another endpoint, and files may have been
    deleted or replaced since.

    Args:
        folder: The output folder, for messages.
        reported: Parts by partition, as committed.
        found: Parts by partition, as listed.

    Raises:
        CompletenessError: If it does not.
    """
    where = folder.where(PARTS)
    problems = [
        f"{where} has {'another' if number in found else 'no'} {part.name}, which a worker committed"
        for number, part in reported.items()
        if found.get(number) != part
    ]
    _refuse(problems)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004 - show three
        raise CompletenessError("; ".join(problems[:3]) + rest)
