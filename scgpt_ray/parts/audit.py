"""Audit of an embeddings folder, without the code that wrote it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scgpt_ray.atlas.plan import Partition, digest_joinids
from scgpt_ray.errors import CompletenessError, ReferenceSetError
from scgpt_ray.parts.manifest import committed_parts, prove_complete, require_manifest
from scgpt_ray.parts.parts import PARTS, data_digest, part_name, read_part, vectors_of
from scgpt_ray.records import Manifest, Plan, Quarantine
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, Int64Array
from scgpt_ray.storage import Folder

_NORM_TOLERANCE = 1e-5  # float32 rounding of a unit vector of 512 numbers


def audit_embeddings(folder: Folder) -> list[str]:
    """Check an output folder of `embed`.

    Every planned cell must be in exactly one part, rows in order, embeddings finite unit vectors (missing only for
    cells without tokens), and the fingerprint the same throughout.

    Returns:
        Problems, one per line; empty if there are none.

    Raises:
        ReferenceSetError: If the folder is not that of a finished run.
        OutputError: If parts have different fingerprints.
    """
    manifest = require_manifest(folder)
    plan = Plan.read(folder)
    if plan is None:
        return ["plan.json is missing"]
    problems = list(_audit_records(folder, manifest, plan))
    parts = folder.folder(PARTS)
    digests = dict(zip(manifest.parts, manifest.digests, strict=True))
    n_cells = n_empty = 0
    quarantine = Quarantine.read(folder) or Quarantine(cells=())
    for partition in plan.partitions:
        name, lost = part_name(partition.number), quarantine.ids(partition.number)
        if len(lost) == partition.n_cells and not parts.has(name):
            continue
        try:
            table = read_part(parts, name)
            digest = data_digest(parts.read(name))
        except (OSError, ReferenceSetError) as error:
            problems.append(f"{name} cannot be read: {' '.join(str(error).split())}")
            continue
        if digest != digests.get(name, digest):
            problems.append(f"{name} holds other data than were committed")
        problems.extend(f"{name}: {problem}" for problem in _audit_part(table, partition, manifest, lost))
        n_cells += table.num_rows
        n_empty += table[EMBEDDING].null_count if EMBEDDING in table.column_names else 0
    if (n_cells, n_empty) != (manifest.n_cells, manifest.n_empty):
        problems.append(
            f"parts hold {n_cells} cells, {n_empty} of them empty; "
            f"the manifest says {manifest.n_cells} and {manifest.n_empty}"
        )
    return problems


def _audit_records(folder: Folder, manifest: Manifest, plan: Plan) -> Iterator[str]:
    """Plan, manifest and footers against each other."""
    if plan.fingerprint != manifest.fingerprint:
        yield "plan.json and manifest.json have different fingerprints"
    quarantine = Quarantine.read(folder) or Quarantine(cells=())
    if quarantine.n_cells != manifest.n_quarantined:
        yield f"{quarantine.n_cells} cells in quarantine; the manifest says {manifest.n_quarantined}"
    elif quarantine.cells:
        yield f"{quarantine.n_cells} of {plan.n_cells} cells are not embedded; {Quarantine.file} says why"
    try:
        if not quarantine.cells:
            prove_complete(plan, committed_parts(folder, manifest.fingerprint))
    except CompletenessError as error:
        yield str(error)
    planned = [part_name(partition.number) for partition in plan.partitions]
    if list(manifest.parts) != [name for name in planned if name in manifest.parts or not quarantine.cells]:
        yield "manifest.json lists other parts than were planned"


def _audit_part(table: pa.Table, partition: Partition, manifest: Manifest, lost: Int64Array) -> Iterator[str]:
    missing = {JOINID, N_GENES, EMBEDDING, *manifest.obs_columns} - set(table.column_names)
    if missing:
        yield f"columns {', '.join(sorted(missing))} are missing"
        return
    joinids = table[JOINID].to_numpy()
    if digest_joinids(np.sort(np.concatenate([joinids, lost]))) != partition.digest:
        yield "holds other cells than planned"
    if np.any(np.diff(joinids) <= 0):
        yield "soma_joinid is not strictly ascending"
    if table[EMBEDDING].type != pa.list_(pa.float32(), manifest.dimension):
        yield f"embedding is {table[EMBEDDING].type}, not {manifest.dimension} floats"
        return
    if not table[EMBEDDING].is_null().equals(pc.equal(table[N_GENES], 0)):
        yield "the cells without an embedding are not those without genes"
    ids, vectors = vectors_of(table)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = ids[~(np.abs(norms - 1) <= _NORM_TOLERANCE)]  # the negation also catches NaN
    if len(wrong):
        yield f"{len(wrong)} embeddings are not unit vectors, the first of soma_joinid {wrong[0]}"
