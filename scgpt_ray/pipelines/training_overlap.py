"""Whether a checkpoint was trained on labels of the reference, whose cells it then separates better than a query's."""

import re
from collections.abc import Iterable, Mapping

from scgpt_ray.network.cell_encoder import CellEncoder
from scgpt_ray.records import IndexDescription

TRAINING_SETS: Mapping[str, tuple[str, ...]] = {
    # scGPT_CP's best_model.pt: labels of Tabula Sapiens. CELLxGENE's ids of its collection and of all its cells.
    "ad0252a1971e0cd619b7116dbab3177432236c4537225d54280a2aa7e5fe402a": (
        "Tabula Sapiens",
        "e5f58829-1a66-40b5-a624-9046778e74f5",
        "53d208b0-2cfd-4366-9866-c3c6114081bc",
    ),
}
"""sha256 of published weights -> names of the sets whose labels they were trained on, which their args.json lacks."""

_MOST_SHARED = 0.5  # share of the cells with a label of the checkpoint's from which it is reported
_NOT_WORD = re.compile(r"[^a-z0-9]+")


def training_overlap(
    checkpoint: CellEncoder, index: IndexDescription, values: Iterable[str], labels: Mapping[str | None, int]
) -> str | None:
    """Why a calibration on a reference would be optimistic, as far as the checkpoint's folder says.

    Args:
        checkpoint: That embedded the reference.
        index: Of the reference: where its cells come from.
        values: Donors, datasets and labels of the reference.
        labels: Label -> reference cells.

    Returns:
        A clause such as `the checkpoint was trained on cell types of pbmc_facs, which the reference holds`; None if
        nothing is known.
    """
    sets = (*TRAINING_SETS.get(checkpoint.weights_sha256, ()), *checkpoint.training_sets)
    cells = index.fingerprint.cells
    places = (str(cells.get(name) or "") for name in ("uri", "obs_filter"))
    held = [f" {_words(text)} " for text in (*places, index.embeddings, *index.appended, *values)]
    found = [name for name in dict.fromkeys(sets) if any(f" {_words(name)} " in text for text in held)]
    if found:
        return f"the checkpoint was trained on cell types of {', '.join(found)}, which the reference holds"
    named = sum(n for label, n in labels.items() if label in checkpoint.cell_types)
    share = named / max(1, sum(n for label, n in labels.items() if label is not None))
    if share >= _MOST_SHARED:
        return f"the checkpoint was trained on cell types, whose names {share:.0%} of the reference's labels have"
    return None


def _words(text: str) -> str:
    """Lower-case words and numbers, a space between two."""
    return _NOT_WORD.sub(" ", text.lower()).strip()
