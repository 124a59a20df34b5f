"""What a finished `embed` leaves, with simulated vectors: for measurements of what comes after it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from scgpt_ray.atlas.plan import cut
from scgpt_ray.identity import Fingerprint
from scgpt_ray.parts.parts import PARTS, Part, write_part
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, Float32Matrix, Int64Array, matrix_array
from scgpt_ray.storage import Folder

LABELS = ("cell_type", "dataset_id")
"""The obs columns: 100 types of cells, 40 data sets."""

_TYPES, _DATASETS, _PLANE = 100, 40, 16
_GENES = 500  # per cell


def write_run(folder: Folder, n_cells: int, *, width: int, cells_per_part: int, seed: int) -> Manifest:
    """Write plan, parts and manifest, unless they are there.

    Args:
        folder: Output folder.
        n_cells: Number of cells; their joinids are 0, 1, ...
        width: Width of the vectors: each type is a random 16-dimensional subspace around a centre, with noise.
        cells_per_part: Cells of a part.
        seed: Seed of the cells; the types are always the same.
    """
    there = Manifest.read(folder)
    if there is not None:
        return there
    fingerprint = Fingerprint(model={"weights": f"simulated {width}"}, cells={"uri": f"simulated/{seed}"})
    partitions = cut(np.arange(n_cells), cells_per_part)
    parts = []
    for partition, cells in zip(partitions, _cells([each.n_cells for each in partitions], width, seed), strict=True):
        table = cells.add_column(0, JOINID, pa.array(np.arange(partition.first, partition.last + 1)))
        n_tokens = _GENES * len(table)
        parts.append(
            write_part(folder.folder(PARTS), table, partition, fingerprint=fingerprint.digest, n_tokens=n_tokens)[0]
        )
    plan = Plan(
        created="2020-01-01",
        fingerprint=fingerprint,
        settings={"atlas": "simulated"},
        coverage={"fraction": 1.0, "genes_matched": _GENES, "genes_total": _GENES, "missing": []},
        partitions=partitions,
    )
    plan.write(folder)
    manifest = _manifest(plan, parts)
    manifest.write(folder)
    return manifest


def _cells(sizes: list[int], width: int, seed: int) -> Iterator[pa.Table]:
    """Labels and embeddings of each part."""
    fixed = np.random.default_rng(0)
    centre_TD = fixed.standard_normal((_TYPES, width), np.float32)
    plane_TPD = fixed.standard_normal((_TYPES, _PLANE, width), np.float32) / np.float32(2 * np.sqrt(_PLANE))
    random = np.random.default_rng([seed, 1])
    types, datasets = (pa.array([f"{name} {n}" for n in range(many)])
                       for name, many in (("type", _TYPES), ("data set", _DATASETS)))  # fmt: skip
    for n in sizes:
        type_N = random.integers(0, _TYPES, n)
        yield pa.table({
            LABELS[0]: pa.DictionaryArray.from_arrays(pa.array(type_N, pa.int32()), types),
            LABELS[1]: pa.DictionaryArray.from_arrays(pa.array(random.integers(0, _DATASETS, n), pa.int32()), datasets),
            N_GENES: pa.array(np.full(n, _GENES, np.int32)),
            EMBEDDING: matrix_array(_vectors(type_N, centre_TD, plane_TPD, random)),
        })  # fmt: skip


def _vectors(
    type_N: Int64Array, centre_TD: Float32Matrix, plane_TPD: Float32Matrix, random: np.random.Generator
) -> Float32Matrix:
    vectors_ND = centre_TD[type_N] + np.float32(0.05) * random.standard_normal((len(type_N), centre_TD.shape[1]), "f4")
    for number in np.unique(type_N):
        rows = np.flatnonzero(type_N == number)
        vectors_ND[rows] += random.standard_normal((len(rows), _PLANE), np.float32) @ plane_TPD[number]
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.float32)


def _manifest(plan: Plan, parts: list[Part]) -> Manifest:
    return Manifest(
        fingerprint=plan.fingerprint,
        n_cells=plan.n_cells,
        n_quarantined=0,
        n_empty=0,
        n_tokens=sum(part.n_tokens for part in parts),
        dimension=parts[0].dimension,
        obs_columns=list(LABELS),
        parts={part.name: part.n_cells for part in parts},
        digests=[part.data for part in parts],
        coverage=plan.coverage,
        versions={},
    )
