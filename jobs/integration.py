"""Zero-shot integration: does an embedding separate cell types and mix batch keys?

python integration.py --experiment lung_kim --cells Kim2020_Lung.h5ad --checkpoint C [C ...] --output O
python integration.py --cells F [F ...] --checkpoint C [C ...] --label-column L --batch-column B --output O

The first form repeats a published experiment: columns, genes, values and cells are those of the authors' notebook, and
the results are printed together with theirs. In the second, F is an .h5ad file or a SOMA experiment. Several .h5ad
files are joined by gene name. Several checkpoints, such as whole-human and the continual-pretrained scGPT_CP, are
compared on the same cells. Runs `scgpt-ray embed` for each of them and `integrate`. Finished embeddings are reused.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

import scgpt_ray
from scgpt_ray.errors import AtlasError, ConfigError, InputError
from scgpt_ray.identity import digest_of
from scgpt_ray.pipelines.embedding_sets import short_names
from scgpt_ray.pipelines.integration_result import REPORT, IntegrationResult
from scgpt_ray.storage import Folder

COMPONENTS = "40 PCs of HVGs"


@dataclass(frozen=True)
class Experiment:
    """An experiment as a notebook in tutorials/zero-shot of github.com/bowang-lab/scGPT does it.

    Attributes:
        label_column: obs column of cell types.
        batch_column: obs column of batch keys.
        embed: Options of `embed`: genes and cells.
        integrate: Options of `integrate`: the baseline, and where raw counts are.
        published: Embedding -> AvgBIO and AvgBATCH that the authors report.
        n_files: Files to be joined.
    """

    label_column: str
    batch_column: str
    embed: dict[str, Any]
    integrate: dict[str, Any]
    published: dict[str, tuple[float, float]]
    n_files: int = 1


# The notebooks embed X, also where a layer has counts. scib evaluates all cells; components are those of X as it is.
_AS_STORED = {"baseline_values": "stored", "flavor": "seurat_v3", "max_cells": 100_000}

EXPERIMENTS = {
    "lung_kim": Experiment(
        label_column="cell_type",
        batch_column="sample",
        # Cells without annotation are removed first.
        embed={"layer": "X", "gene_columns": ["gene_name"], "highly_variable": 3000, "obs_filter": "cell_type != ''"},
        integrate={"highly_variable": 3000, **_AS_STORED},
        published={"whole-human": (0.7752, 0.9500), COMPONENTS: (0.6789, 0.8084)},
    ),
    "covid": Experiment(
        label_column="celltype",
        batch_column="str_batch",
        embed={"layer": "X", "gene_columns": ["gene_name"]},
        integrate={"highly_variable": 0, **_AS_STORED},
        published={"whole-human": (0.4888, 0.8741), COMPONENTS: (0.3804, 0.6743)},
    ),
    "ms": Experiment(
        label_column="celltype",
        batch_column="Sample Characteristic[individual]",
        embed={"layer": "X", "gene_columns": ["gene_name"]},
        integrate={"highly_variable": 0, **_AS_STORED},
        published={"whole-human": (0.4525, 0.9129), COMPONENTS: (0.5062, 0.9075)},
        n_files=2,
    ),
    # X is log-normalised, and counts are in a layer. The notebook scales X once more before it ranks genes for scGPT,
    # but not for the components.
    "pancreas": Experiment(
        label_column="celltype",
        batch_column="tech",
        embed={"layer": "X", "gene_columns": ["index"], "highly_variable": 1800, "rank_by": "log1p"},
        integrate={"highly_variable": 1800, "counts_layer": "counts", **_AS_STORED},
        published={"scGPT_CP": (0.6348, 0.9236), "whole-human": (0.5299, 0.9012), COMPONENTS: (0.5401, 0.8823)},
    ),
}
"""What is published; lung_kim is Kim2020_Lung.h5ad, covid covid_subsampled.h5ad, ms c_data.h5ad and
filtered_ms_adata.h5ad, pancreas scIB's human_pancreas_norm_complexBatch.h5ad."""


def integrate_cells(options: argparse.Namespace, how: Experiment) -> IntegrationResult:
    """Embed the cells with each checkpoint, and evaluate the embeddings.

    Raises:
        InputError: If a file lacks what is named.
    """
    output, cells, checkpoints = Folder.at(options.output), options.cells, options.checkpoint
    replicates = [options.replicate_column] if options.replicate_column else []
    columns = list(dict.fromkeys([how.label_column, how.batch_column, *replicates]))
    gene_column = how.embed.get("gene_columns", ["index"])[0]
    atlas = cells[0] if len(cells) == 1 else joined(cells, gene_column, columns, output)
    places = [output.where(f"embeddings/{name}") for name in short_names(checkpoints)]
    for checkpoint, place in zip(checkpoints, places, strict=True):
        scgpt_ray.embed(
            atlas=atlas,
            checkpoint=checkpoint,
            output=place,
            obs_columns=columns,
            max_length=options.max_length,
            **how.embed,
        )
    return scgpt_ray.integrate(
        embeddings=places,
        label_column=how.label_column,
        batch_column=how.batch_column,
        replicate_column=options.replicate_column,
        output=output.where("integration"),
        **how.integrate,
    )


def joined(files: Sequence[str], gene_column: str, columns: list[str], output: Folder) -> str:
    """Write the cells of several .h5ad files as one: X, these obs columns, and all genes, by name.

    A gene that a file lacks has no counts there. The same files are joined once.

    Args:
        files: Paths.
        gene_column: var column of gene names; in a file without it they are its index.
        columns: obs columns.
        output: Where the joined file goes; a local folder.

    Returns:
        Path of the joined file.

    Raises:
        InputError: If a file cannot be read, lacks a column or names a gene twice.
    """
    if not output.is_local:
        raise ConfigError(f"--output {output.uri}", expected="a local folder, to join files in", remedy="name one")
    for file in files:
        if not (file.endswith(".h5ad") and Path(file).is_file()):
            raise AtlasError(f"{file}: no such file", expected=".h5ad files to join", remedy="check the path")
    states = [(str(Path(file).resolve()), (at := Path(file).stat()).st_size, at.st_mtime_ns) for file in files]
    place = Path(output.where(f"cells-{digest_of([states, gene_column, columns])[:12]}.h5ad"))
    if not place.exists():
        names = short_names(list(files))
        parts = {name: _part(file, gene_column, columns) for name, file in zip(names, files, strict=True)}
        cells = ad.concat(parts, join="outer", index_unique="-", fill_value=0)
        cells.var[gene_column if gene_column != "index" else "feature_name"] = cells.var_names.to_numpy()
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(".unfinished")
        cells.write_h5ad(unfinished)
        unfinished.rename(place)
    return str(place)


def _part(file: str, gene_column: str, columns: list[str]) -> ad.AnnData:
    """X and the named columns of a file, with gene names as its index."""
    cells = ad.read_h5ad(file)
    lacking = [column for column in columns if column not in cells.obs]
    if lacking:
        raise AtlasError(
            f"{file}: obs has no column {', '.join(lacking)}",
            expected=f"one of {', '.join(cells.obs)}",
            remedy="name others, or add it to the file",
        )
    genes = pd.Index(cells.var.get(gene_column, cells.var_names.to_series()).astype(str))
    if genes.has_duplicates:
        twice = genes[genes.duplicated()][0]
        raise AtlasError(f"{file} names the gene {twice} twice", expected="each gene once", remedy="merge its rows")
    return ad.AnnData(cells.X, obs=cells.obs[columns], var=pd.DataFrame(index=genes))


def summary(integrated: IntegrationResult, published: dict[str, tuple[float, float]]) -> str:
    """The results as a table, the path of the report, and the results as a line of JSON."""
    n, scores = integrated.integration.n, integrated.integration.scores
    rows = [(each.name, each.avg_bio, each.avg_batch) for each in scores]
    rows += [(f"published, {name}", bio, batch) for name, (bio, batch) in published.items()]
    width = max(len(name) for name, *_ in rows)
    lines = [integrated.selection.text(), f"{f'{n:,} cells':<{width}}    AvgBIO  AvgBATCH"]
    lines += [f"{name:<{width}}  {_shown(bio)}  {_shown(batch)}" for name, bio, batch in rows]
    result = {"recipe": "integration", **integrated.to_dict(), "published": published or None}
    return "\n".join([*lines, integrated.output.where(REPORT), json.dumps(result)])


def _shown(value: float | None) -> str:
    return "       -" if value is None else f"{value:8.4f}"


def experiment_of(options: argparse.Namespace) -> Experiment:
    """The experiment that the options name or describe.

    Raises:
        ConfigError: If they do both, or neither.
    """
    own = ["label_column", "batch_column", "gene_columns"]
    given = [f"--{name.replace('_', '-')}" for name in own if getattr(options, name)]
    if options.experiment is None:
        if not (options.label_column and options.batch_column):
            raise ConfigError("no --experiment", expected="--label-column and --batch-column", remedy="name both")
        embed = {"gene_columns": options.gene_columns} if options.gene_columns else {}
        return Experiment(options.label_column, options.batch_column, embed, {}, {}, len(options.cells))
    found = EXPERIMENTS[options.experiment]
    if given:
        raise ConfigError(
            f"{', '.join(given)} with --experiment {options.experiment}",
            expected="one of them: an experiment has its own columns",
            remedy="leave one out",
        )
    if len(options.cells) != found.n_files:
        raise ConfigError(
            f"{len(options.cells)} files for --experiment {options.experiment}",
            expected=f"{found.n_files}",
            remedy="name them with --cells",
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, evaluate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=EXPERIMENTS, help="published experiment to repeat")
    parser.add_argument("--cells", required=True, nargs="+", help="cells to embed; several .h5ad files are joined")
    parser.add_argument("--checkpoint", required=True, nargs="+", help="checkpoints, see scgpt-ray embed")
    parser.add_argument("--output", required=True, help="folder for all results")
    parser.add_argument("--label-column", help="obs column of cell types")
    parser.add_argument("--batch-column", help="obs column of batch keys")
    parser.add_argument("--replicate-column", help="obs column of donors or samples, see scgpt-ray integrate")
    parser.add_argument("--gene-columns", nargs="+", help="see scgpt-ray embed")
    parser.add_argument("--max-length", type=int, default=1200, help="see scgpt-ray embed; published: 1200")
    options = parser.parse_args(arguments)
    try:
        how = experiment_of(options)
        integrated = integrate_cells(options, how)
    except InputError as error:
        parser.error(str(error))
    sys.stdout.write(summary(integrated, how.published) + "\n")


if __name__ == "__main__":
    main()
