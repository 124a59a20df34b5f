"""Zero-shot reference mapping: query cells get the labels of their nearest reference cells.

python reference_mapping.py --reference R --query Q --checkpoint C --label-column L --output O [--published lung_kim]

R and Q are .h5ad files or SOMA experiments, both with the column L: the labels to transfer, and the true labels.
Runs `scgpt-ray embed`, `index` and `map`, and prints the results together with those that scGPT's authors report. Run
it again to resume.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import scgpt_ray
from scgpt_ray.errors import InputError
from scgpt_ray.pipelines.mapping_result import REPORT, Mapped
from scgpt_ray.storage import Folder

K = 10


@dataclass(frozen=True)
class Published:
    """Results that the authors report for a data set, with exact search, 10 neighbours and a majority vote."""

    checkpoint: str
    cells: str
    accuracy: float
    macro_f1: float


PUBLISHED = {
    "covid": Published("whole-human", "COVID-19, 15,997 -> 4,003 cells", 0.8668, 0.4835),
    "lung_kim": Published("whole-human", "Lung-Kim", 0.9694, 0.9515),
}


def map_cells(options: argparse.Namespace) -> Mapped:
    """Embed the reference, index it, and map the query onto it."""
    output = Folder.at(options.output)
    read = {"gene_columns": options.gene_columns} if options.gene_columns else {}
    scgpt_ray.embed(
        atlas=options.reference,
        checkpoint=options.checkpoint,
        output=output.where("reference"),
        obs_columns=[options.label_column],
        max_length=options.max_length,
        **read,
    )
    scgpt_ray.build_index(embeddings=output.where("reference"), output=output.where("index"))
    return scgpt_ray.map_query(
        query=options.query,
        index=output.where("index"),
        checkpoint=options.checkpoint,
        output=output.where("mapped"),
        truth_column=options.label_column,
        label_columns=[options.label_column],
        k=K,
        **read,
    )


def summary(mapped: Mapped, published: Published | None) -> str:
    """The results as a table, the path of the report, and the results as a line of JSON."""
    assert mapped.evaluation is not None, "a truth column is named"
    n, methods = mapped.evaluation.scores.n, mapped.evaluation.comparison.methods
    rows = [(method.name, method.accuracy, method.macro_f1) for method in methods]
    values: dict[str, Any] = {name: {"accuracy": accuracy, "macro_f1": f1} for name, accuracy, f1 in rows}
    if published:
        rows.append((f"published, {published.checkpoint}, {published.cells}", published.accuracy, published.macro_f1))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{f'{n:,} query cells, {K} neighbours':<{width}}  accuracy  macro-F1"]
    lines += [f"{name:<{width}}  {accuracy:8.4f}  {macro_f1:8.4f}" for name, accuracy, macro_f1 in rows]
    result = {"recipe": "reference_mapping", "output": mapped.output.uri, "n": n, "methods": values}
    result |= {"published": asdict(published) if published else None}
    return "\n".join([*lines, mapped.output.where(REPORT), json.dumps(result)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, map, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="labelled cells")
    parser.add_argument("--query", required=True, help="cells to label")
    parser.add_argument("--checkpoint", required=True, help="see scgpt-ray embed")
    parser.add_argument("--label-column", required=True, help="obs column of labels in both")
    parser.add_argument("--output", required=True, help="folder for all results")
    parser.add_argument("--gene-columns", nargs="+", help="see scgpt-ray embed")
    parser.add_argument("--max-length", type=int, default=1200, help="see scgpt-ray embed")
    parser.add_argument("--published", choices=PUBLISHED, help="data set of these cells, for the published results")
    options = parser.parse_args(arguments)
    try:
        mapped = map_cells(options)
    except InputError as error:
        parser.error(str(error))
    sys.stdout.write(summary(mapped, PUBLISHED.get(options.published)) + "\n")


if __name__ == "__main__":
    main()
