"""The options of `index`."""

from scgpt_ray.config.execution import ExecutionSettings, TrackingSettings
from scgpt_ray.config.settings import Count, Fraction, Seed, Size, Text, Texts


class IndexSettings(TrackingSettings, ExecutionSettings):
    """Options of `index`."""

    verb = "index"
    group = "Index"
    examples = (
        "scgpt-ray index --embeddings demo/reference --output index --label-columns cell_type --license cc-by-4.0",
        "scgpt-ray index --embeddings demo/reference --output index --append",
        "scgpt-ray index --embeddings demo/reference --output index-ivf --factory IVF2,SQ8 --shards 2",
    )

    embeddings: Text
    """Output folder of a finished `embed`."""
    output: Text
    """Folder for index.json, fitness.json, template.faiss, shards, label tables, README.md and report.html; a path or
    s3:// URI."""
    license: Text | None = None
    """Licence of the index for README.md, its card: an identifier such as cc-by-4.0, or any text. A finished index gets
    another licence without being built again. Default: not stated; with --append that of the index."""
    label_columns: Texts = ()
    """obs columns to store with the index. Default: all that the embeddings carry, but observation_joinid."""
    held_out_column: Text | None = None
    """Stored column such as donor_id: some cells are mapped without those of their own donor, which shows how right
    labels of new cells will be (fitness.json). Default: the first of donor, batch, dataset and sample columns whose
    values share labels, or else random fifths of the cells."""
    template: Text | None = None
    """Index whose template is used instead of training one; it fixes --factory. Default: none."""
    append: bool = False
    """Add the cells that a finished index in --output lacks, as new shards with the same template."""
    factory: Text = "auto"
    """faiss factory string, such as IVF4096,SQ8. auto: by the number of cells, --memory-budget and --target-recall."""
    target_recall: Fraction = 0.95
    """Target recall@10 against exact search, 0 to 1; search parameters are chosen to reach it on a sample
    (recall.json)."""
    memory_budget: Size | None = None
    """Most memory for the open index, and for the training sample, with a unit: 8GB. Default: no limit."""
    shards: Count | None = None
    """Number of shards, or with --append of new shards. Default: one per two million cells up to four, then one per
    ten million."""
    seed: Seed = 0
    """Random seed of the training and recall samples."""
