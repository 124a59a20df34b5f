"""All steps on real cells in two minutes: atlas -> embeddings -> index -> labels -> picture."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from scgpt_ray.atlas.soma_file import write_soma
from scgpt_ray.config import DemoSettings, EmbedSettings, IndexSettings, MapSettings
from scgpt_ray.errors import OutputError
from scgpt_ray.evaluation.labels.baseline import BASELINE, nearest_labels
from scgpt_ray.evaluation.labels.label_evaluation import METHOD
from scgpt_ray.evaluation.labels.metrics import LabelScores, score_labels
from scgpt_ray.evaluation.report.picture import png
from scgpt_ray.evaluation.report.plots import umap_scatter
from scgpt_ray.evaluation.umap import umap_coordinates
from scgpt_ray.network.checkpoint import random_checkpoint, read_checkpoint
from scgpt_ray.parts.export import read_embeddings
from scgpt_ray.parts.parts import vectors_of
from scgpt_ray.pipelines.demo_cells import LABEL, SPLIT, blood_cells
from scgpt_ray.pipelines.embed import embed
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.index import build_index
from scgpt_ray.pipelines.map import map_query
from scgpt_ray.progress import Stage
from scgpt_ray.storage import Folder
from scgpt_ray.tracking import Tracker, shared_store

logger = logging.getLogger(__name__)

_SEED = 0
_K = 10
_CELLS_PER_PARTITION = 128
UMAP = "umap.png"


@dataclass(frozen=True)
class Demo:
    """The results of the demo.

    Attributes:
        output: Folder of all files.
        scores: Scores of the mapping.
        untrained: Scores of an untrained network of the same size, on the same split.
        baseline: Scores of PCA + kNN, on the same split.
    """

    output: Folder
    scores: LabelScores
    untrained: LabelScores
    baseline: LabelScores

    def text(self) -> str:
        """The scores as a table, and the places of the files."""
        evaluated = {"scGPT": self.scores, "scGPT, untrained": self.untrained, BASELINE: self.baseline}
        rows: list[tuple[str, float, float | None]] = [
            (name, scores.accuracy, scores.macro_f1) for name, scores in evaluated.items()
        ]
        rows.append(("majority class", self.scores.majority_accuracy, None))
        lines = [f"{self.scores.n} query cells, {_K} neighbours    accuracy  macro-F1"]
        for name, accuracy, macro_f1 in rows:
            lines.append(f"{name:<30}  {accuracy:8.3f}  {'' if macro_f1 is None else f'{macro_f1:8.3f}'}".rstrip())
        places = {
            "atlas (SOMA)": "atlas",
            "embeddings": "reference/parts",
            "index": "index/index.json",
            "labels": "mapped/predictions.parquet",
            "report": "mapped/report.html",
            "picture": UMAP,
        }
        lines += [f"{name:<13} {self.output.where(place)}" for name, place in places.items()]
        lines.append(f"MLflow        mlflow ui --backend-store-uri sqlite:///{self.output.where('mlflow.db')}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain values for JSON."""
        return {
            "output": self.output.uri,
            "accuracy": self.scores.accuracy,
            "macro_f1": self.scores.macro_f1,
            "majority_accuracy": self.scores.majority_accuracy,
            "untrained_accuracy": self.untrained.accuracy,
            "untrained_macro_f1": self.untrained.macro_f1,
            "pca_knn_accuracy": self.baseline.accuracy,
            "pca_knn_macro_f1": self.baseline.macro_f1,
        }


def demo(settings: DemoSettings, engine: Engine) -> Demo:
    """Run all steps on the 700 blood cells that ship with scanpy.

    Raises:
        InputError: If the output cannot be written or the checkpoint cannot be used.
    """
    output = Folder.at(settings.output)
    if not output.is_local:
        raise OutputError(output.uri, expected="a local folder for the demo", remedy="give --output a path")
    output.require_writable()
    read_checkpoint(settings.checkpoint)
    cells = blood_cells(_SEED)
    atlas = output.path / "atlas"
    if not atlas.exists():
        output.path.mkdir(parents=True, exist_ok=True)
        with Stage("write the atlas"):
            write_soma(atlas, cells)
    tracking = shared_store(output, settings.tracking)
    common: dict[str, Any] = {"cells_per_partition": _CELLS_PER_PARTITION, "tracking": tracking}
    asked = settings.model_dump(mode="json")
    with Tracker(settings.verb, output, {"config": asked}, request=asked, tracking=tracking) as tracker:
        scores = _map(settings, output, str(atlas), common, engine)
        untrained = _untrained(settings, output, str(atlas), list(cells.var_names), common, engine)
        _draw_umap(output)
        result = Demo(output, scores[METHOD], untrained, scores[BASELINE])
        tracker.log_metrics({name: value for name, value in result.to_dict().items() if isinstance(value, float)})
        tracker.log_artifact(UMAP)
    return result


def _map(
    settings: DemoSettings, output: Folder, atlas: str, common: dict[str, Any], engine: Engine
) -> dict[str, LabelScores]:
    """Embed the reference, index it, and map the query onto it; scores of the mapping and its baselines by name."""
    with Stage("reference"):
        embed(
            EmbedSettings(
                atlas=atlas,
                checkpoint=settings.checkpoint,
                output=output.where("reference"),
                obs_filter=f"{SPLIT} == 'reference'",
                obs_columns=(LABEL,),
                **common,
            ),
            engine,
        )
    with Stage("index"):
        build_index(
            IndexSettings(
                embeddings=output.where("reference"), output=output.where("index"), tracking=common["tracking"]
            ),
            engine,
        )
    with Stage("map"):
        mapped = map_query(
            MapSettings(
                query=atlas,
                index=output.where("index"),
                checkpoint=settings.checkpoint,
                output=output.where("mapped"),
                obs_filter=f"{SPLIT} == 'query'",
                truth_column=LABEL,
                baseline_values="stored",  # which are no counts
                k=_K,
                **common,
            ),
            engine,
        )
    assert mapped.evaluation is not None, "the demo gives a truth column"
    return {method.name: method.scores for method in mapped.evaluation.methods}


@Stage("untrained network")
def _untrained(
    settings: DemoSettings, output: Folder, atlas: str, genes: list[str], common: dict[str, Any], engine: Engine
) -> LabelScores:
    """Scores of a network of the same size with random weights."""
    size = read_checkpoint(settings.checkpoint).architecture
    weights = output.path / "untrained" / "checkpoint"
    sizes = {name: getattr(size, name) for name in ("embsize", "nheads", "d_hid", "nlayers")}
    random_checkpoint(weights, genes, seed=_SEED, **sizes)
    embeddings = output.folder("untrained/embeddings")
    columns = (LABEL, SPLIT)
    embed(
        EmbedSettings(atlas=atlas, checkpoint=str(weights), output=embeddings.uri, obs_columns=columns, **common),
        engine,
    )
    return _scores(embeddings)


@Stage("draw a UMAP")
def _draw_umap(output: Folder) -> None:
    """Draw a UMAP of reference and query."""
    tables = [read_embeddings(output.folder(name)) for name in ("reference", "mapped/embeddings")]
    vectors = np.concatenate([vectors_of(table)[1] for table in tables])
    labels = [label for table in tables for label in table[LABEL].to_pylist()]
    coordinates = umap_coordinates(vectors, seed=_SEED)
    output.write(UMAP, png(umap_scatter(coordinates, labels, "Blood cells in the embedding")))


def _scores(embeddings: Folder) -> LabelScores:
    """Scores of the nearest reference cells among embeddings of all cells."""
    table = read_embeddings(embeddings)
    _, vectors = vectors_of(table)
    labels, split = (np.array(table[column].to_pylist(), object) for column in (LABEL, SPLIT))
    is_query = split == "query"
    predicted, share = nearest_labels(vectors[~is_query], labels[~is_query], vectors[is_query], _K)
    return score_labels(labels[is_query], predicted, share, set(labels[~is_query]))
