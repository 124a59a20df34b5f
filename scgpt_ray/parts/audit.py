"""Audit of an embeddings folder, by plain pyarrow and numpy: none of the code that wrote it."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scgpt_ray.atlas.plan import Partition
from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.manifest import GENES, require_manifest
from scgpt_ray.parts.parts import PARTS, Part
from scgpt_ray.progress import note
from scgpt_ray.records import Manifest, Plan, Quarantine
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, Int64Array
from scgpt_ray.storage import Folder

_NORM_TOLERANCE = 1e-5  # float32 rounding of a unit vector of 512 numbers
_TRAILER = 8  # bytes after the footer of a Parquet file: its length, PAR1


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file of an output folder.

    Attributes:
        file: Its name, relative to the folder.
        found: What is wrong, such as "is missing".
        mends: Whether the file can be deleted and made again from what else is there.
    """

    file: str
    found: str
    mends: bool = True

    def __str__(self) -> str:
        """The line for people."""
        return f"{self.file} {self.found}"


def audit_embeddings(folder: Folder) -> list[Problem]:
    """Check an output folder of `embed`.

    Every planned cell must be in exactly one part, rows in order, embeddings finite unit vectors (missing only for
    cells without tokens), the data those of the digests, and the fingerprint the same throughout.

    Returns:
        Problems; empty if there are none.

    Raises:
        ReferenceSetError: If the folder is not that of a finished run.
    """
    if not folder.has(Manifest.file):
        require_manifest(folder)
    problems: list[Problem] = []
    plan, manifest = _record(folder, Plan, problems), _record(folder, Manifest, problems)
    if plan is None:
        return problems
    problems += _audit_genes(folder, plan.fingerprint)
    lost = _quarantine(folder, plan, manifest, problems)
    footers: dict[str, Part] = {}
    planned = []
    for partition in plan.partitions:
        name, lost_here = f"part-{partition.number:05d}.parquet", lost.ids(partition.number)
        if len(lost_here) == partition.n_cells:
            continue
        planned.append(name)
        note(name)
        try:
            part = _read_part(folder.read(f"{PARTS}/{name}"), name, footers)
            found = list(_audit_part(*part, partition, plan, lost_here))
        except FileNotFoundError:
            found = [f"is missing, with {partition.n_cells} cells"]
        except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
            found = [f"cannot be read: {' '.join(str(error).split())}"]
        problems += [Problem(f"{PARTS}/{name}", problem) for problem in found]
    unplanned = sorted(set(folder.folder(PARTS).names()) - set(planned))
    problems += [Problem(f"{PARTS}/{name}", "was never planned") for name in unplanned if name.startswith("part-")]
    return problems + (list(_audit_manifest(manifest, plan, planned, footers)) if manifest else [])


def _record(folder: Folder, kind: Any, problems: list[Problem]) -> Any:
    """Plan or manifest; None, and a problem, if it cannot be used. The plan cannot be made again."""
    mends = kind is not Plan
    try:
        record = kind.read(folder)
    except ReferenceSetError as error:
        problems.append(Problem(kind.file, error.found.removeprefix(f"{folder.where(kind.file)} "), mends=mends))
        return None
    if record is None:
        problems.append(Problem(kind.file, "is missing", mends=mends))
    return record


def _quarantine(folder: Folder, plan: Plan, manifest: Manifest | None, problems: list[Problem]) -> Quarantine:
    """The cells that were given up, which are a problem, too."""
    found = _record(folder, Quarantine, problems) if folder.has(Quarantine.file) else None
    quarantine = found or Quarantine(cells=())
    if quarantine.cells:
        said = f"has {quarantine.n_cells} of {plan.n_cells} cells, which are not embedded; embed tries them again"
        problems.append(Problem(Quarantine.file, said))
    if manifest is not None and manifest.n_quarantined != quarantine.n_cells:
        said = f"says n_quarantined {manifest.n_quarantined}, {Quarantine.file} {quarantine.n_cells}"
        problems.append(Problem(Manifest.file, said))
    return quarantine


def _audit_genes(folder: Folder, fingerprint: Fingerprint) -> Iterator[Problem]:
    """The gene table against the fingerprint; embeddings that are not made by `embed` have none."""
    expected = fingerprint.cells.get("genes")
    if expected is None:
        return
    try:
        genes = pq.read_table(pa.BufferReader(folder.read(GENES)))
        tokens = np.full(max(genes[JOINID].to_pylist(), default=-1) + 1, -1, "<i4")
        tokens[genes[JOINID].to_numpy()] = genes["token"].fill_null(-1).to_numpy()
    except FileNotFoundError:
        yield Problem(GENES, "is missing")
    except (OSError, pa.ArrowException, ValueError, LookupError) as error:
        yield Problem(GENES, f"cannot be read: {' '.join(str(error).split())}")
    else:
        if hashlib.sha256(tokens.tobytes()).hexdigest() != expected:
            yield Problem(GENES, "holds other tokens than the cells were embedded with")


def _read_part(content: bytes, name: str, footers: dict[str, Part]) -> tuple[pa.Table, Part, str]:
    """A part, its footer (also entered in `footers`), and the SHA-256 of the data that are there."""
    file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    table, footer = file.read(), Part(**json.loads(file.metadata.metadata[b"scgpt_ray.part"]))
    footers[name] = footer
    length = int.from_bytes(content[-_TRAILER:-4], "little")
    return table, footer, hashlib.sha256(memoryview(content)[: -_TRAILER - length]).hexdigest()


def _audit_part(
    table: pa.Table, footer: Part, sha256: str, partition: Partition, plan: Plan, lost: Int64Array
) -> Iterator[str]:
    fingerprint = plan.fingerprint
    if footer.fingerprint != fingerprint.digest:
        yield f"has fingerprint {footer.fingerprint[:12]}, the plan {fingerprint.digest[:12]}"
    if footer.data != sha256:
        yield "holds other data than were committed"
    missing = {JOINID, N_GENES, EMBEDDING, *fingerprint.cells.get("obs_columns", ())} - set(table.column_names)
    if missing:
        yield f"lacks columns {', '.join(sorted(missing))}"
        return
    joinids = table[JOINID].to_numpy()
    planned = np.sort(np.concatenate([joinids, lost])).astype("<i8")
    digest = hashlib.sha256(planned.tobytes()).hexdigest()[: len(partition.digest)]
    if digest != partition.digest:
        yield "holds other cells than planned"
    if np.any(np.diff(joinids) <= 0):
        yield "has joinids that do not ascend"
    if (table.num_rows, table[EMBEDDING].null_count) != (footer.n_cells, footer.n_empty):
        yield f"holds {table.num_rows} cells, {table[EMBEDDING].null_count} of them empty; its footer says otherwise"
    yield from _audit_vectors(table, footer.dimension)


def _audit_vectors(table: pa.Table, dimension: int) -> Iterator[str]:
    stored = table[EMBEDDING]
    lengths = pc.list_value_length(stored.drop_null())
    if stored.type.value_type != pa.float32() or not pc.all(pc.equal(lengths, dimension), min_count=0).as_py():
        yield f"has an embedding that is not {dimension} float32"
        return
    if not stored.is_null().equals(pc.equal(table[N_GENES], 0)):
        yield "has other cells without an embedding than those without genes"
    vectors_ND = pc.list_flatten(stored).to_numpy().reshape(-1, dimension).astype(np.float64)
    is_wrong_N = ~(np.abs(np.linalg.norm(vectors_ND, axis=1) - 1) <= _NORM_TOLERANCE)  # NaN, too
    if is_wrong_N.any():
        first = table[JOINID].filter(stored.is_valid())[int(np.argmax(is_wrong_N))]
        yield f"has {is_wrong_N.sum()} embeddings that are not unit vectors, the first of soma_joinid {first}"


def _audit_manifest(
    manifest: Manifest, plan: Plan, planned: list[str], footers: Mapping[str, Part]
) -> Iterator[Problem]:
    """The manifest against plan and footers."""
    if manifest.fingerprint != plan.fingerprint:
        yield Problem(Manifest.file, f"has another fingerprint than {Plan.file}")
    if list(manifest.parts) != planned:
        yield Problem(Manifest.file, "lists other parts than were planned")
    digests = dict(zip(manifest.parts, manifest.digests, strict=True))
    foreign = [name for name, footer in footers.items() if digests.get(name, footer.data) != footer.data]
    for name in foreign:
        yield Problem(f"{PARTS}/{name}", f"is not the part that {Manifest.file} lists")
    if len(footers) == len(planned) and not foreign:
        for key in ("n_cells", "n_empty", "n_tokens"):
            held = sum(getattr(footer, key) for footer in footers.values())
            if held != getattr(manifest, key):
                yield Problem(Manifest.file, f"says {key} {getattr(manifest, key)}, the parts {held}")
