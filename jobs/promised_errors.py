"""Promised against observed errors of mappings among labelled sets of blood cells.

python jobs/promised_errors.py --data ../shared/data --output promised-errors [--cells 800]

Each set is mapped onto each other set, and onto every three or four of the others, by coarse cell types. The reference
is calibrated by its datasets (kang_ctrl_12k alone by its donors, pbmc_facs alone by its sorted batches); then the error
among the accepted cells of the query, of types that the reference has, is compared with the target. Embeddings are
those of the checkpoint `demo` and principal components of the reference. Each set is embedded once. Prints a Markdown
table of the mappings and one of sums, and writes `promised_errors.json`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import pyarrow as pa

import scgpt_ray
from scgpt_ray.errors import InputError
from scgpt_ray.evaluation.components import fit_components, log1p_cp10k
from scgpt_ray.index.search import Neighbors, exact_search
from scgpt_ray.mapping.calibration import Targets, calibrate
from scgpt_ray.mapping.calibration_sample import Sample, calibration_sample, one_group_labels
from scgpt_ray.mapping.calibrator import fit_calibrator
from scgpt_ray.mapping.promise import Promise
from scgpt_ray.mapping.votes import LabelVotes, VoteRules, label_votes
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.schema import JOINID, Float32Matrix
from scgpt_ray.storage import Folder

SETS = ("pbmc_facs", "pbmc3k", "pbmc4k_sub", "zheng_sorted", "kang_ctrl_12k")
STIMULATED = "kang_stim"
"""The stimulated cells of kang_ctrlstim: a query of two of kang's donors, and never mapped onto kang_ctrl_12k."""
LABEL, GENES = "cell_type_coarse", ("feature_name", "symbol_gencode44")
GROUP = {"kang_ctrl_12k": "donor", "pbmc_facs": "batch"}
"""Column to calibrate by where a set is the whole reference; the others have one donor."""
TARGETS = (0.05, 0.1)
K, N_COMPONENTS, MAX_LENGTH = 10, 30, 300
DEMO, COMPONENTS = "demo", "components"
PROMISED, WITHDRAWN, REFUSED, IMPOSSIBLE = "promised", "withdrawn", "refused", "impossible"
"""Outcomes; a target is refused, a calibration of unsuitable groups is impossible."""

Texts: TypeAlias = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Cells:
    """Labelled cells of one set or several."""

    counts: ad.AnnData
    vectors_ND: Float32Matrix
    label_N: Texts
    dataset_N: Texts
    group_N: Texts
    """Within its set."""

    @classmethod
    def joined(cls, cells: Sequence["Cells"]) -> "Cells":
        """Cells of several sets, with the genes that all have."""
        together = ad.concat([part.counts for part in cells], join="inner")
        arrays = [np.concatenate([getattr(part, name) for part in cells]) for name in
                  ("vectors_ND", "label_N", "dataset_N", "group_N")]  # fmt: skip
        return cls(together, *arrays)


@dataclass(frozen=True)
class Mapping:
    """What a mapping promised, and what was observed."""

    query: str
    reference: str
    embedding: str
    target: float
    outcome: str
    """promised, withdrawn, or why the target was refused or the calibration impossible."""
    groups: int
    held_out: float | None = None
    """Error among accepted cells of held-out groups."""
    observed: float | None = None
    """Error among accepted query cells of types that the reference has."""
    observed_all: float | None = None
    """The same with types that the reference lacks, whose labels are always wrong."""
    kept: float | None = None
    """Share of query cells that are accepted."""
    unbounded: float | None = None
    """Observed error with a threshold fitted to pooled cells, without bound."""


def read(data: Path, output: Path, name: str, n_cells: int) -> Cells:
    """Draw labelled cells of a set, embed them, and keep both."""
    drawn = output / "cells" / f"{name}.h5ad"
    if not drawn.exists():
        drawn.parent.mkdir(parents=True, exist_ok=True)
        draw(data, name, n_cells).write_h5ad(drawn)
    scgpt_ray.embed(
        atlas=str(drawn), checkpoint="demo", output=str(output / "embeddings" / name), obs_columns=[LABEL],
        gene_columns=list(GENES), max_length=MAX_LENGTH,
    )  # fmt: skip
    cells = ad.read_h5ad(drawn)
    published, current = (cells.var[column].astype(object) for column in GENES)
    cells.var_names = current.where(current.notna(), published).astype(str)
    cells = cells[:, ~cells.var_names.duplicated()].copy()
    _, vectors_ND = vectors_of(read_embeddings(Folder.at(output / "embeddings" / name)).sort_by(JOINID))
    groups = cells.obs[GROUP.get(name, "dataset")].astype(str).to_numpy(object)
    return Cells(cells, vectors_ND, cells.obs[LABEL].to_numpy(object), np.full(len(cells), name, object), groups)


def draw(data: Path, name: str, n_cells: int) -> ad.AnnData:
    """Cells with a coarse type; of kang_ctrl_12k as many of each donor."""
    cells = ad.read_h5ad(data / ("kang_ctrlstim.h5ad" if name == STIMULATED else f"{name}.h5ad"))
    usable = ~cells.obs[LABEL].isin(["unknown", "Other"]).to_numpy()
    if name == STIMULATED:
        usable &= (cells.obs["condition"] == "stim").to_numpy()
    random = np.random.default_rng(0)
    strata = cells.obs["donor"].astype(str).to_numpy(object)
    each = n_cells // len(set(strata))
    rows = [random.permutation(np.flatnonzero(usable & (strata == stratum)))[:each] for stratum in sorted(set(strata))]
    return cells[np.sort(np.concatenate(rows))].copy()


def components(reference: Cells, query: Cells) -> tuple[Float32Matrix, Float32Matrix]:
    """Principal components of the reference, of unit length, and the query projected onto them."""
    genes = reference.counts.var_names.intersection(query.counts.var_names)
    logs, projected = (log1p_cp10k(cells.counts[:, genes].X.tocsr()) for cells in (reference, query))
    fitted, reference_NC = fit_components(logs, N_COMPONENTS, seed=0)
    both = [np.asarray(found, np.float32) for found in (reference_NC, fitted.transform(projected))]
    return both[0] / np.linalg.norm(both[0], axis=1, keepdims=True), both[1] / np.linalg.norm(
        both[1], axis=1, keepdims=True
    )


def votes(found: Neighbors, label_N: Texts) -> LabelVotes:
    """The plain vote of neighbours, which are rows of the reference."""
    labels = pa.table({JOINID: np.arange(len(label_N)), "label": label_N.tolist()})
    return label_votes(*found, labels, "label", VoteRules(), {})


def votes_without(
    vectors_ND: Float32Matrix, label_N: Texts, group_N: Texts, queries_QD: Float32Matrix, left_out_Q: Texts
) -> LabelVotes:
    """The votes on each query without the reference cells of a group."""
    ids, scores = np.zeros((len(queries_QD), K), np.int64), np.zeros((len(queries_QD), K), np.float32)
    for group in sorted(set(group_N)):
        own_N, own_Q = group_N == group, left_out_Q == group
        ids[own_Q], scores[own_Q] = exact_search([(np.flatnonzero(~own_N), vectors_ND[~own_N])], queries_QD[own_Q], K)
    return votes((ids, scores), label_N)


def texts(values_N: Texts) -> pa.ChunkedArray:
    """Values as a column."""
    return pa.chunked_array([pa.array(values_N.tolist(), pa.string())])


def mappings(
    reference: Cells, query: Cells, group_N: Texts, about: tuple[str, str], embedding: str
) -> Iterator[Mapping]:
    """Map one query; a mapping for each target."""
    vectors_ND, queries_QD = reference.vectors_ND, query.vectors_ND
    if embedding == COMPONENTS:
        vectors_ND, queries_QD = components(reference, query)
    n_groups = len(set(group_N))
    labels, groups = texts(reference.label_N), texts(group_N)
    try:
        alone = one_group_labels(labels, groups, np.ones(len(group_N), np.int64))
        held_out = votes_without(vectors_ND, reference.label_N, group_N, vectors_ND, group_N)
        sample = calibration_sample(held_out, labels, groups, None)
    except InputError as error:
        yield from (Mapping(*about, embedding, target, f"{IMPOSSIBLE}: {error.found}", n_groups) for target in TARGETS)
        return
    mapped = votes(exact_search([(np.arange(len(vectors_ND)), vectors_ND)], queries_QD, K), reference.label_N)
    wrong_Q, known_Q = mapped.top_labels != query.label_N, np.isin(query.label_N, list(set(reference.label_N)))
    # As a held-out cell, each cell of the query lacks the neighbours of one group.
    left_out_Q = np.resize(np.array(sorted(set(group_N)), object), len(queries_QD))
    compared = votes_without(vectors_ND, reference.label_N, group_N, queries_QD, left_out_Q)
    for target in TARGETS:
        unbounded = error_of(wrong_Q, accepted_without_bound(sample, mapped, target) & known_Q)
        try:
            calibration = calibrate(sample, Targets(target), alone)
        except InputError as error:
            reason = f"{REFUSED}: {error.expected.partition(': ')[2]}"
            yield Mapping(*about, embedding, target, reason, n_groups, unbounded=unbounded)
            continue
        promise = Promise.of(calibration, calibration.shift(compared.names, compared.tally), None)
        accepted_Q = np.array(calibration.evaluate(mapped.names, mapped.tally)[1], object) == ""
        yield Mapping(
            *about, embedding, target, WITHDRAWN if promise.withdrawn else PROMISED, n_groups,
            calibration.held_out.error_accepted, error_of(wrong_Q, accepted_Q & known_Q), error_of(wrong_Q, accepted_Q),
            float(accepted_Q.mean()), unbounded,
        )  # fmt: skip


def accepted_without_bound(sample: Sample, mapped: LabelVotes, target: float) -> npt.NDArray[np.bool_]:
    """Query cells above the threshold that accepts most pooled calibration cells with the target error among them."""
    calibrator = fit_calibrator(sample.tally, sample.right)
    probability_N = calibrator.probability(sample.tally)
    levels = [level for level in np.unique(probability_N) if (~sample.right[probability_N >= level]).mean() <= target]
    return np.asarray(calibrator.probability(mapped.tally) >= min(levels, default=np.inf))


def error_of(wrong_Q: npt.NDArray[np.bool_], accepted_Q: npt.NDArray[np.bool_]) -> float | None:
    """Share of wrong cells among some; None for no cells."""
    return float(wrong_Q[accepted_Q].mean()) if accepted_Q.any() else None


def all_mappings(cells: dict[str, Cells]) -> Iterator[Mapping]:
    """Every query onto each set, and onto each three or four sets."""
    for query, size in itertools.product((*SETS, STIMULATED), (1, 3, 4)):
        own = {query} | ({"kang_ctrl_12k"} if query == STIMULATED else set())
        for names in itertools.combinations([name for name in SETS if name not in own], size):
            reference = Cells.joined([cells[name] for name in names])
            groups = reference.dataset_N if size > 1 else reference.group_N
            for embedding in (DEMO, COMPONENTS):
                yield from mappings(reference, cells[query], groups, (query, " + ".join(names)), embedding)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def shown(value: float | None) -> str:
    """A share as a percentage."""
    return "" if value is None else f"{100 * value:.1f}"


def details(found: Sequence[Mapping]) -> str:
    """A row for each query and reference that could be calibrated, a column for each embedding and target."""
    columns = list(itertools.product((DEMO, COMPONENTS), TARGETS))
    by_pair: dict[tuple[str, str], dict[tuple[str, float], Mapping]] = {}
    for one in found:
        if not one.outcome.startswith(IMPOSSIBLE):
            by_pair.setdefault((one.query, one.reference), {})[one.embedding, one.target] = one
    rows = [
        (*pair, *(entry(mapped[column]) if column in mapped else "" for column in columns))
        for pair, mapped in by_pair.items()
    ]
    return table([("query", "reference", *(f"{name}, {shown(target)} %" for name, target in columns)), *rows])


def entry(one: Mapping) -> str:
    """Held-out and observed error with the share that is kept, and a mark if the promise is withdrawn."""
    if one.outcome.startswith(REFUSED):
        return REFUSED
    mark = "" if one.outcome == PROMISED else "(withdrawn) "
    return f"{mark}{shown(one.held_out)}, {shown(one.observed)} ({shown(one.kept)})"


def sums(found: Sequence[Mapping]) -> str:
    """A row for each embedding, target and outcome of the mappings that were calibrated by three groups or more."""
    head = ("embedding", "target", "outcome", "mappings", "observed: mean", "largest", "above target", "kept",
            "no bound: mean", "above target")  # fmt: skip
    rows = []
    for embedding, target, outcome in itertools.product((DEMO, COMPONENTS), TARGETS, (PROMISED, WITHDRAWN, REFUSED)):
        some = [one for one in found if (one.embedding, one.target) == (embedding, target)
                and one.outcome.startswith(outcome)]  # fmt: skip
        observed = [one.observed for one in some if one.observed is not None]
        unbounded = [one.unbounded for one in some if one.unbounded is not None]
        kept = [one.kept for one in some if one.kept is not None]
        rows.append((
            embedding, shown(target), outcome, str(len(some)), shown(float(np.mean(observed)) if observed else None),
            shown(max(observed, default=None)), f"{sum(error > target for error in observed)}" if observed else "",
            shown(float(np.mean(kept)) if kept else None), shown(float(np.mean(unbounded)) if unbounded else None),
            f"{sum(error > target for error in unbounded)}",
        ))  # fmt: skip
    return table([head, *rows])


def main() -> None:
    """Read, map, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the .h5ad files")
    parser.add_argument("--output", type=Path, required=True, help="folder for cells, embeddings and results")
    parser.add_argument("--cells", type=int, default=800, help="cells of each set [default: 800]")
    options = parser.parse_args()
    cells = {name: read(options.data, options.output, name, options.cells) for name in (*SETS, STIMULATED)}
    found = list(all_mappings(cells))
    (options.output / "promised_errors.json").write_text(json.dumps([asdict(one) for one in found], indent=1))
    sys.stdout.write(f"{details(found)}\n\n{sums(found)}\n")


if __name__ == "__main__":
    main()
