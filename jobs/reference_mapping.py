"""Zero-shot reference mapping: query cells get the labels of their nearest reference cells.

python reference_mapping.py --experiment covid --reference R --query Q --checkpoint C --output O
python reference_mapping.py --reference R --query Q --checkpoint C --label-column L --output O

The first form repeats a published experiment: columns, genes and values are those of the authors' notebook, and the
results are printed together with theirs. R and Q are .h5ad files or SOMA experiments, both with the column L: the
labels to transfer, and the true labels. Runs `scgpt-ray embed`, `index` and `map`. Run it again to resume.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import scgpt_ray
from scgpt_ray.errors import ConfigError, InputError
from scgpt_ray.pipelines.mapping_result import REPORT, MappingResult
from scgpt_ray.storage import Folder

K = 10


@dataclass(frozen=True)
class Published:
    """Results that the authors report for a data set, with exact search, 10 neighbours and a majority vote."""

    checkpoint: str
    cells: str
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Experiment:
    """An experiment as Tutorial_ZeroShot_Reference_Mapping of github.com/bowang-lab/scGPT does it.

    Attributes:
        label_column: obs column of cell types.
        gene_columns: var columns of gene names; none for those of `embed`.
        baseline_values: Values that PCA + kNN is made of, which the authors do not report.
        published: None where the authors report no zero-shot mapping.
    """

    label_column: str
    gene_columns: tuple[str, ...]
    baseline_values: Literal["log1p", "stored"]
    published: Published | None


GENES = ("gene_name",)

EXPERIMENTS = {
    "covid": Experiment(
        "celltype", GENES, "stored", Published("whole-human", "COVID-19, 15,997 -> 4,003 cells", 0.8668, 0.4835)
    ),
    "lung_kim": Experiment("cell_type", GENES, "log1p", Published("whole-human", "Lung-Kim", 0.9694, 0.9515)),
    "ms": Experiment("celltype", GENES, "stored", None),
}
"""covid is batch_covid_subsampled_train.h5ad -> .._test.h5ad, lung_kim sample_proc_lung_train.h5ad -> .._test.h5ad, and
ms c_data.h5ad -> filtered_ms_adata.h5ad."""


def map_cells(options: argparse.Namespace, how: Experiment) -> MappingResult:
    """Embed the reference, index it, and map the query onto it.

    Raises:
        InputError: If a file lacks what is named, or, in a published experiment, what the baseline needs.
    """
    output = Folder.at(options.output)
    read: dict[str, Any] = {"gene_columns": how.gene_columns} if how.gene_columns else {}
    if options.experiment:
        read["layer"] = "X"  # as the notebooks do, also where a layer has counts
    scgpt_ray.embed(
        atlas=options.reference,
        checkpoint=options.checkpoint,
        output=output.where("reference"),
        obs_columns=[how.label_column],
        max_length=options.max_length,
        **read,
    )
    scgpt_ray.build_index(embeddings=output.where("reference"), output=output.where("index"), factory="Flat")
    mapped = scgpt_ray.map_query(
        query=options.query,
        index=output.where("index"),
        checkpoint=options.checkpoint,
        output=output.where("mapped"),
        truth_column=how.label_column,
        label_columns=[how.label_column],
        k=K,
        baseline_values=how.baseline_values,
        **read,
    )
    if options.experiment and isinstance(mapped.baseline, str):
        raise InputError(mapped.baseline, expected="values for PCA + kNN", remedy="map with scgpt-ray map instead")
    return mapped


def summary(mapped: MappingResult, published: Published | None) -> str:
    """The results as a table, the path of the report, and the results as a line of JSON."""
    assert mapped.evaluation is not None, "a truth column is named"
    n, methods = mapped.evaluation.scores.n, mapped.evaluation.methods
    rows = [(method.name, method.scores.accuracy, method.scores.macro_f1) for method in methods]
    values: dict[str, Any] = {name: {"accuracy": accuracy, "macro_f1": f1} for name, accuracy, f1 in rows}
    if published:
        rows.append((f"published, {published.checkpoint}, {published.cells}", published.accuracy, published.macro_f1))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{f'{n:,} query cells, {K} neighbours':<{width}}  accuracy  macro-F1"]
    lines += [f"{name:<{width}}  {accuracy:8.4f}  {macro_f1:8.4f}" for name, accuracy, macro_f1 in rows]
    result = {"recipe": "reference_mapping", "output": mapped.output.uri, "n": n, "methods": values}
    result |= {"published": asdict(published) if published else None}
    return "\n".join([*lines, mapped.output.where(REPORT), json.dumps(result)])


def experiment_of(options: argparse.Namespace) -> Experiment:
    """The experiment that the options name or describe.

    Raises:
        ConfigError: If they do both, or neither.
    """
    if options.experiment is None:
        if not options.label_column:
            raise ConfigError("no --experiment", expected="--label-column", remedy="name the column of labels")
        return Experiment(options.label_column, tuple(options.gene_columns or ()), "log1p", None)
    if options.label_column or options.gene_columns:
        raise ConfigError(
            f"--label-column or --gene-columns with --experiment {options.experiment}",
            expected="one of them: an experiment has its own columns",
            remedy="leave one out",
        )
    return EXPERIMENTS[options.experiment]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, map, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EXPERIMENTS, help="published experiment to repeat")
    parser.add_argument("--reference", required=True, help="labelled cells")
    parser.add_argument("--query", required=True, help="cells to label")
    parser.add_argument("--checkpoint", required=True, help="see scgpt-ray embed")
    parser.add_argument("--output", required=True, help="folder for all results")
    parser.add_argument("--label-column", help="obs column of labels in both")
    parser.add_argument("--gene-columns", nargs="+", help="see scgpt-ray embed")
    parser.add_argument("--max-length", type=int, default=1200, help="see scgpt-ray embed; published: 1200")
    options = parser.parse_args(arguments)
    try:
        how = experiment_of(options)
        mapped = map_cells(options, how)
    except InputError as error:
        parser.error(str(error))
    sys.stdout.write(summary(mapped, how.published) + "\n")


if __name__ == "__main__":
    main()
