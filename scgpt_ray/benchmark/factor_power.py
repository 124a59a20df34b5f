"""How often `integrate` claims effects of a factor on real cells of several donors: planted ones, and none.

python -m scgpt_ray.benchmark.factor_power --cells kang_ctrl_12k.h5ad [--repeats 35]

Prints a Markdown table. Between donors, a factor splits them into halves in every way; within donors, it splits the
cells of each donor at random. An effect is planted in one of the two levels.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scgpt_ray.atlas.source import locate
from scgpt_ray.config import CellSettings
from scgpt_ray.evaluation.components import hvg_pca
from scgpt_ray.evaluation.factors.effects import Factor, FactorEffect, Replicates, explain_factors
from scgpt_ray.pipelines.raw_counts import read_counts
from scgpt_ray.schema import Float32Matrix, Int64Array

Cells = npt.NDArray[np.bool_]
Random = np.random.Generator
Plant = Callable[[sparse.csr_matrix, Cells, Random], sparse.csr_matrix]


def thin(counts_NG: sparse.csr_matrix, changed_N: Cells, random: Random, *, share: float) -> sparse.csr_matrix:
    """Keep each count of the changed cells with a probability: sequencing at lower depth."""
    stored = np.repeat(changed_N, np.diff(counts_NG.indptr))
    fewer_NG = counts_NG.copy()
    fewer_NG.data[stored] = random.binomial(fewer_NG.data[stored].astype(np.int64), share)
    fewer_NG.eliminate_zeros()
    return fewer_NG


def halve_genes(counts_NG: sparse.csr_matrix, changed_N: Cells, random: Random) -> sparse.csr_matrix:
    """Halve the counts of a random tenth of the genes in the changed cells."""
    n_genes = counts_NG.shape[1]
    genes = random.choice(n_genes, n_genes // 10, replace=False)
    stored = np.repeat(changed_N, np.diff(counts_NG.indptr)) & np.isin(counts_NG.indices, genes)
    fewer_NG = counts_NG.copy()
    fewer_NG.data[stored] = random.binomial(fewer_NG.data[stored].astype(np.int64), 0.5)
    fewer_NG.eliminate_zeros()
    return fewer_NG


def add_ambient(counts_NG: sparse.csr_matrix, changed_N: Cells, random: Random) -> sparse.csr_matrix:
    """Replace a tenth of the counts of the changed cells by draws from the sum over all cells: ambient RNA."""
    share = 0.1
    ambient_G = np.asarray(counts_NG.sum(axis=0), np.float64).ravel()
    total_N = np.asarray(counts_NG.sum(axis=1), np.float64).ravel()
    rows = np.repeat(np.flatnonzero(changed_N), random.poisson(share * total_N[changed_N]))
    genes = random.choice(len(ambient_G), len(rows), p=ambient_G / ambient_G.sum())
    added_NG = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, genes)), shape=counts_NG.shape)
    return sparse.csr_matrix(thin(counts_NG, changed_N, random, share=1 - share) + added_NG)


PLANTED: dict[str, Plant] = {
    "nothing": lambda counts_NG, _changed, _random: counts_NG,
    "depth x 0.85": lambda counts_NG, changed_N, random: thin(counts_NG, changed_N, random, share=0.85),
    "depth x 0.7": lambda counts_NG, changed_N, random: thin(counts_NG, changed_N, random, share=0.7),
    "10 % of the genes halved": halve_genes,
    "10 % ambient RNA": add_ambient,
}
"""Name -> what is done to the counts of one level."""


def halves(n_donors: int) -> list[tuple[int, ...]]:
    """Every split of an even number of donors into two halves, by the half that has the first donor."""
    return [half for half in itertools.combinations(range(n_donors), n_donors // 2) if 0 in half]


def splits(donor_N: Int64Array, n_donors: int, repeats: int, *, is_between: bool) -> Iterator[Cells]:
    """The changed cells of each repeat, bool [n], drawn without replacement among all halves if between donors."""
    random = np.random.default_rng(0)
    chosen = halves(n_donors) if is_between else [()] * repeats
    for number in random.permutation(len(chosen))[:repeats]:
        yield np.isin(donor_N, chosen[number]) if is_between else random.random(len(donor_N)) < 0.5  # noqa: PLR2004


def effect_of(
    counts_NG: sparse.csr_matrix,
    components_ND: Float32Matrix,
    changed_N: Cells,
    labels: npt.NDArray[np.str_],
    donors: npt.NDArray[np.str_],
) -> FactorEffect:
    """The effect that `integrate` finds of a factor of two levels, with principal components as the embedding."""
    genes_G = np.array([f"gene {number}" for number in range(counts_NG.shape[1])], object)
    return explain_factors(
        [Factor.of("planted", np.where(changed_N, "changed", "other").tolist())],
        {"components": components_ND},
        labels.tolist(),
        counts_NG=counts_NG,
        genes_G=genes_G,
        replicates=Replicates.of("donor", donors.tolist()),
        seed=0,
    )[0]


def table(
    counts_NG: sparse.csr_matrix, labels: npt.NDArray[np.str_], donors: npt.NDArray[np.str_], repeats: int
) -> Iterator[str]:
    """Lines of a Markdown table of claims, for 8 and 6 donors, or as many as there are, between and within."""
    yield "| design | planted | type I | type II | probe | median depth ratio, threshold | genes found |"
    yield "|---|---|---|---|---|---|---|"
    names, donor_N = np.unique(donors, return_inverse=True)
    largest = np.argsort(-np.bincount(donor_N), kind="stable")
    for is_between, n in ((True, 8), (True, 6), (False, 8), (False, 3)):
        if n > len(names):
            continue
        of_donors = np.isin(donor_N, largest[:n])
        rank_N = np.argsort(largest)[donor_N[of_donors]]
        for planted, plant in PLANTED.items():
            found: list[FactorEffect] = []
            for changed_N in splits(rank_N, n, repeats, is_between=is_between):
                counts = plant(counts_NG[of_donors], changed_N, np.random.default_rng(len(found)))
                kept = np.asarray(counts.sum(axis=1)).ravel() > 0
                counts, (labels_K, donors_K) = counts[kept], (each[of_donors][kept] for each in (labels, donors))
                found.append(effect_of(counts, hvg_pca(counts, seed=0), changed_N[kept], labels_K, donors_K))
            design = f"{n // 2} against {n // 2} donors" if is_between else f"within {n} donors"
            yield _row(design, planted, found)


def _row(design: str, planted: str, found: Sequence[FactorEffect]) -> str:
    shifts = [effect.shift for effect in found if effect.shift]
    claims = [
        f"{sum(map(bool, claimed))} of {len(found)}"
        for claimed in (
            [shift.depth.is_claimed for shift in shifts],
            [shift.genes.is_claimed for shift in shifts if shift.genes],
            [effect.embeddings[0].is_carried for effect in found],
        )
    ]
    figures = [
        (max(shift.depth.ratio, 1 / shift.depth.ratio), shift.depth.threshold or np.nan, shift.genes.n_driven or 0)
        for shift in shifts
        if shift.genes
    ]
    ratio, threshold, n_driven = np.median(figures, axis=0)
    return f"| {design} | {planted} | {' | '.join(claims)} | {ratio:.2f}, {threshold:.2f} | {n_driven:.0f} |"


def read(path: str, *columns: str) -> tuple[sparse.csr_matrix, list[npt.NDArray[np.str_]]]:
    """Counts of all cells of an .h5ad file or SOMA experiment, and obs columns such as labels and donors."""
    source = locate(path, CellSettings(obs_columns=columns))
    values = [np.array(source.column(name).to_pylist(), str) for name in columns]
    return read_counts(source, source.joinids(), None).counts_NG, values


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", required=True, help="an .h5ad file or SOMA experiment of at least three donors")
    parser.add_argument("--label-column", default="cell_type")
    parser.add_argument("--replicate-column", default="donor")
    parser.add_argument("--repeats", type=int, default=35, help="splits per row, at most all of them")
    options = parser.parse_args(arguments)
    counts_NG, (labels, donors) = read(options.cells, options.label_column, options.replicate_column)
    for line in table(counts_NG, labels, donors, options.repeats):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
