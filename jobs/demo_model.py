"""Train the checkpoint that ships with the package, and evaluate it on cells that it was not trained on.

python -m jobs.demo_model --data ../shared/data --output demo-model [--seeds 0 1 2] [--ship scgpt_ray/network/demo]
python -m jobs.demo_model --data ../shared/data --output evaluated --checkpoint scgpt_ray/network/demo

For each seed, a network is trained on masked values, and then continued with cell-type labels; or a checkpoint is
given. They are compared with principal components, and with an untrained network of the first seed. Prints one line of
JSON per network, seed and task, and writes all of them to `evaluated.json`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import scanpy as sc

import scgpt_ray
from jobs.training_cells import NAMES, monocytes, training_files
from scgpt_ray.evaluation.labels.baseline import nearest_labels, pca_knn
from scgpt_ray.evaluation.labels.metrics import score_labels
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint, write_checkpoint
from scgpt_ray.network.checkpoint_files import ARGS_FILE, read_vocabulary
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.demo_cells import LABEL, SPLIT, blood_cells
from scgpt_ray.schema import JOINID
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.kernels import N_BINS

GENES = ("feature_name", "symbol_gencode44")
K = 10
SIZE: dict[str, Any] = {"embsize": 128, "nheads": 4, "d_hid": 128, "nlayers": 4}
BIN_VARIANCE = ((N_BINS - 1) ** 2 - 1) / 12
"""Variance of uniform bins: divided by it, predicting the mean bin costs 1."""
COMMON: dict[str, Any] = {
    "executor": "serial",
    "objective": "masked",
    "gene_columns": GENES,
    "dropout": 0.0,
    "cells_per_step": 64,
    "min_length": 64,
    "max_length": 256,
    "learning_rate": 1e-3,
    "steps_per_checkpoint": 500,
}
MASKED: dict[str, Any] = {
    "steps": 200,
    "warmup_steps": 50,
    "value_weight": 1 / BIN_VARIANCE,
    "cell_weight": 1 / BIN_VARIANCE,
}
SUPERVISED: dict[str, Any] = {
    "steps": 2000,
    "mask_ratios": (0.1,),
    "warmup_steps": 100,
    "value_weight": 0.3 / BIN_VARIANCE,
    "cell_weight": 0.3 / BIN_VARIANCE,
}

COMPONENTS = "principal components"

COARSE = "cell_type_coarse"
PURE = "pbmc_facs without monocytes among CD34+ -> pbmc3k"
MAPPINGS = {
    "pbmc_facs -> pbmc3k": ("pbmc_facs", "pbmc3k", ("T", "B", "NK", "Monocyte")),
    PURE: ("pbmc_facs", "pbmc3k", ("T", "B", "NK", "Monocyte")),
    "pbmc3k -> pbmc4k_sub": ("pbmc3k", "pbmc4k_sub", ("T", "B", "NK", "Monocyte", "DC", "Platelet")),
}
"""Name -> reference, query, and the types of the query cells to map, which the reference has."""
UNSEEN = "pbmc3k -> pbmc4k_sub"

MIXED = "kang_ctrlstim"
"""Data set whose control and stimulated cells should mix."""
LABELS, CONDITION = "cell_type", "condition"


def train(seed: int, files: list[str], data: Path, output: Path) -> dict[str, Path]:
    """Train both networks of a seed; name -> checkpoint folder."""
    masked, supervised = output / f"masked-{seed}", output / f"supervised-{seed}"
    scgpt_ray.pretrain(
        atlas=files,
        vocabulary=str(data / "default_census_vocab.json"),
        output=str(masked),
        seed=seed,
        **SIZE,
        **COMMON,
        **MASKED,
    )
    scgpt_ray.pretrain(
        atlas=files,
        checkpoint=str(masked / "checkpoint"),
        label_column="cell_type",
        output=str(supervised),
        seed=seed,
        **COMMON,
        **SUPERVISED,
    )
    return {"masked": masked / "checkpoint", "supervised": supervised / "checkpoint"}


def evaluate(checkpoint: Path, data: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Accuracy and macro-F1 of each mapping."""
    blood = folder.parent / "blood.h5ad"
    if not blood.exists():
        blood_cells(0).write_h5ad(blood)
    places = {name: data / f"{name}.h5ad" for name in ("pbmc_facs", "pbmc3k", "pbmc4k_sub")}
    found = {name: embedded(place, checkpoint, folder / name, (COARSE,), GENES) for name, place in places.items()}
    scores = {}
    for name, (reference, query, types) in MAPPINGS.items():
        labelled, mapped = usable(places[reference], name), np.isin(found[query][1], types)
        pairs = [(vectors[rows], labels[rows]) for (vectors, labels), rows in
                 ((found[reference], labelled), (found[query], mapped))]  # fmt: skip
        scores[name] = knn(*pairs[0], *pairs[1])
    vectors, labels = embedded(blood, checkpoint, folder / "blood", (LABEL,), ("index",))
    is_query = (ad.read_h5ad(blood).obs[SPLIT] == "query").to_numpy()
    scores["demo cells"] = knn(vectors[~is_query], labels[~is_query], vectors[is_query], labels[is_query])
    embedded(data / f"{MIXED}.h5ad", checkpoint, folder / MIXED, (LABELS, CONDITION), GENES)
    return scores


def usable(place: Path, mapping: str) -> npt.NDArray[np.bool_]:
    """Reference cells of a mapping, bool [n]: those of known type, which in one mapping the markers must not deny."""
    cells = ad.read_h5ad(place)
    known = ~cells.obs[COARSE].isin(["unknown", "Other"]).to_numpy()
    denied = monocytes(cells) & (cells.obs[COARSE] == "HSPC").to_numpy()
    return np.asarray(known & ~denied if mapping == PURE else known)


def evaluate_integration(folders: dict[str, Path], output: Path, seed: int) -> dict[str, dict[str, float | None]]:
    """AvgBIO and AvgBATCH of control and stimulated cells, by network, and of principal components."""
    integrated = scgpt_ray.integrate(
        embeddings=[str(folder / MIXED) for folder in folders.values()],
        label_column=LABELS,
        batch_column=CONDITION,
        output=str(output),
        seed=seed,
    )
    names = [*folders, COMPONENTS]
    scores = zip(names, integrated.integration.scores, strict=True)
    return {name: {"avg_bio": found.avg_bio, "avg_batch": found.avg_batch} for name, found in scores}


def embedded(
    place: Path, checkpoint: Path, output: Path, columns: tuple[str, ...], genes: tuple[str, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.object_]]:
    """Embed the cells of a file; returns embeddings [n, d], and the labels of the first column [n]."""
    scgpt_ray.embed(
        atlas=str(place),
        checkpoint=str(checkpoint),
        output=str(output),
        obs_columns=columns,
        gene_columns=genes,
        executor="serial",
    )
    table = read_embeddings(Folder.at(output)).sort_by(JOINID)
    return vectors_of(table)[1], np.array(table[columns[0]].to_pylist(), object)


def knn(
    reference: npt.NDArray[np.float32],
    reference_labels: npt.NDArray[np.object_],
    query: npt.NDArray[np.float32],
    truth: npt.NDArray[np.object_],
) -> tuple[float, float]:
    """Accuracy and macro-F1 of the majority vote of nearest neighbours by cosine similarity."""
    predicted, share = nearest_labels(reference, reference_labels, query, K)
    evaluated = score_labels(truth, predicted, share, set(reference_labels))
    return evaluated.accuracy, evaluated.macro_f1


def evaluate_components(data: Path, seed: int) -> dict[str, tuple[float, float]]:
    """Accuracy and macro-F1 of each mapping by 30 principal components of log1p counts per 10,000."""
    scores = {}
    for name, (reference, query, types) in MAPPINGS.items():
        labelled, mapped = (log1p_cells(data / f"{which}.h5ad") for which in (reference, query))
        labelled = labelled[usable(data / f"{reference}.h5ad", name)]
        mapped = mapped[mapped.obs[COARSE].isin(types)]
        genes = labelled.var_names.intersection(mapped.var_names)
        labels = labelled.obs[COARSE].to_numpy(object)
        predicted, share = pca_knn(labelled[:, genes].X, labels, mapped[:, genes].X, k=K, seed=seed)
        truth = mapped.obs[COARSE].to_numpy(object)
        evaluated = score_labels(truth, predicted, share, set(labels))
        scores[name] = evaluated.accuracy, evaluated.macro_f1
    return scores


def log1p_cells(place: Path) -> ad.AnnData:
    """Cells of a file as log1p of counts per 10,000, with current gene symbols."""
    cells = ad.read_h5ad(place)
    current, published = (cells.var[column].astype(object) for column in ("symbol_gencode44", "feature_name"))
    cells.var_names = current.where(current.notna(), published).astype(str)
    cells = cells[:, ~cells.var_names.duplicated()].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells


def genes_of(checkpoint: Path) -> list[str]:
    """Names of a checkpoint's tokens, without the special ones."""
    return [token for token in read_vocabulary(checkpoint).tokens if not token.startswith("<")]


def ship(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint in half precision, as it ships with the package."""
    read = read_checkpoint(checkpoint)
    args = json.loads((checkpoint / ARGS_FILE).read_text())
    halves = {name: tensor.half() for name, tensor in {**read.tensors, **read.heads}.items()}
    more = {name: args[name] for name in ("mask_value", "mask_ratio", "training_tasks", "MVC", "no_cls", "cell_types")}
    more["training_sets"] = list(NAMES)
    write_checkpoint(folder, read.architecture, read.vocabulary, halves, more_args=more, as_safetensors=True)


def figures(seeds: list[int], data: Path, output: Path, given: Path | None) -> Iterator[dict[str, Any]]:
    """Train, unless a checkpoint is given, and evaluate; yields a line per network, seed and task."""
    files = [] if given else training_files(data, output / "cells")
    yield from mapping_lines(COMPONENTS, 0, evaluate_components(data, 0))
    for seed in seeds:
        checkpoints = {"given": given} if given else train(seed, files, data, output)
        if seed == seeds[0]:
            genes = genes_of(next(iter(checkpoints.values())))
            checkpoints["untrained"] = output / f"untrained-{seed}"
            random_checkpoint(checkpoints["untrained"], genes, seed=seed, **SIZE)
        folders = {network: output / f"evaluated-{network}-{seed}" for network in checkpoints}
        for network, checkpoint in checkpoints.items():
            yield from mapping_lines(network, seed, evaluate(checkpoint, data, folders[network]))
        for network, averages in evaluate_integration(folders, output / f"mixed-{seed}", seed).items():
            yield {"network": network, "seed": seed, "task": MIXED, **averages}


def mapping_lines(network: str, seed: int, scores: dict[str, tuple[float, float]]) -> Iterator[dict[str, Any]]:
    """A line per mapping."""
    for task, (accuracy, macro_f1) in scores.items():
        yield {"network": network, "seed": seed, "task": task, "accuracy": accuracy, "macro_f1": macro_f1}


def better(lines: list[dict[str, Any]], seed: int) -> str:
    """The network with the higher accuracy on cells that neither was trained on."""
    trained = [line for line in lines if line["network"] in ("masked", "supervised")]
    unseen = [line for line in trained if line["seed"] == seed and line["task"] == UNSEEN]
    return str(max(unseen, key=lambda line: line["accuracy"])["network"])


def main() -> None:
    """Train, evaluate, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the .h5ad files")
    parser.add_argument("--output", type=Path, required=True, help="folder for all results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a network for each [default: 0]")
    parser.add_argument("--ship", type=Path, help="folder for the better network of the first seed, in half precision")
    parser.add_argument("--checkpoint", type=Path, help="evaluate this checkpoint instead of training")
    options = parser.parse_args()
    if options.checkpoint and options.ship:
        parser.error("--ship is for networks that are trained here")
    lines = []
    for line in figures(options.seeds, options.data, options.output, options.checkpoint):
        lines.append(line)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    (options.output / "evaluated.json").write_text(json.dumps(lines, indent=1))
    if options.ship:
        first = options.seeds[0]
        ship(options.output / f"{better(lines, first)}-{first}" / "checkpoint", options.ship)


if __name__ == "__main__":
    main()
