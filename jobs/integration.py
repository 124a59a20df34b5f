"""Zero-shot integration: does an embedding separate cell types and mix batch keys?

python integration.py --cells F --checkpoint C [C ...] --label-column L --batch-column B --output O [--published covid]

F is an .h5ad file or a SOMA experiment. Several checkpoints, such as whole-human and the continual-pretrained scGPT_CP,
are compared on the same cells. Runs `scgpt-ray embed` for each of them and `integrate`, and prints the results together
with those that scGPT's authors report. Finished embeddings are reused.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import scgpt_ray
from scgpt_ray.errors import InputError
from scgpt_ray.pipelines.embedding_sets import short_names
from scgpt_ray.pipelines.integration_result import REPORT, Integrated
from scgpt_ray.storage import Folder

COMPONENTS = "40 PCs of HVGs"
PUBLISHED = {
    "lung_kim": {"whole-human": (0.7752, 0.9500), COMPONENTS: (0.6789, 0.8084)},
    "covid": {"whole-human": (0.4888, 0.8741), COMPONENTS: (0.3804, 0.6743)},
    "ms": {"whole-human": (0.4525, 0.9129), COMPONENTS: (0.5062, 0.9075)},
    "pancreas": {"scGPT_CP": (0.6348, 0.9236), "whole-human": (0.5299, 0.9012), COMPONENTS: (0.5401, 0.8823)},
}
"""Data set -> embedding -> AvgBIO and AvgBATCH that the authors report; pancreas (scIB) with 1,800 variable genes."""


def integrate_cells(options: argparse.Namespace) -> Integrated:
    """Embed the cells with each checkpoint, and evaluate the embeddings."""
    output = Folder.at(options.output)
    read = {"gene_columns": options.gene_columns} if options.gene_columns else {}
    places = [output.where(f"embeddings/{name}") for name in short_names(options.checkpoint)]
    for checkpoint, place in zip(options.checkpoint, places, strict=True):
        scgpt_ray.embed(
            atlas=options.cells,
            checkpoint=checkpoint,
            output=place,
            obs_columns=[options.label_column, options.batch_column],
            max_length=options.max_length,
            **read,
        )
    return scgpt_ray.integrate(
        embeddings=places,
        label_column=options.label_column,
        batch_column=options.batch_column,
        output=output.where("integration"),
    )


def summary(integrated: Integrated, published: dict[str, tuple[float, float]]) -> str:
    """The results as a table, the path of the report, and the results as a line of JSON."""
    n, scores = integrated.integration.n, integrated.integration.scores
    rows = [(each.name, each.avg_bio, each.avg_batch) for each in scores]
    rows += [(f"published, {name}", bio, batch) for name, (bio, batch) in published.items()]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{f'{n:,} cells':<{width}}    AvgBIO  AvgBATCH"]
    lines += [f"{name:<{width}}  {_shown(bio)}  {_shown(batch)}" for name, bio, batch in rows]
    result = {"recipe": "integration", **integrated.to_dict(), "published": published or None}
    return "\n".join([*lines, integrated.output.where(REPORT), json.dumps(result)])


def _shown(value: float | None) -> str:
    return "       -" if value is None else f"{value:8.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, evaluate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", required=True, help="cells to embed")
    parser.add_argument("--checkpoint", required=True, nargs="+", help="checkpoints, see scgpt-ray embed")
    parser.add_argument("--label-column", required=True, help="obs column of cell types")
    parser.add_argument("--batch-column", required=True, help="obs column of batch keys")
    parser.add_argument("--output", required=True, help="folder for all results")
    parser.add_argument("--gene-columns", nargs="+", help="see scgpt-ray embed")
    parser.add_argument("--max-length", type=int, default=1200, help="see scgpt-ray embed")
    parser.add_argument("--published", choices=PUBLISHED, help="data set of these cells, for the published results")
    options = parser.parse_args(arguments)
    try:
        integrated = integrate_cells(options)
    except InputError as error:
        parser.error(str(error))
    sys.stdout.write(summary(integrated, PUBLISHED.get(options.published, {})) + "\n")


if __name__ == "__main__":
    main()
