"""The JSON files that runs leave in their folders, and what each of them must hold.

    plan.json             embed: which cells make which partition, written before any cell is read
    quarantine.json       embed: cells that could not be read or embedded; absent if there are none
    manifest.json         embed: what a finished run made, written last
    second_draw.json      map: how far other seeds move the embeddings of cells that were cut
    changes.json          refresh: which cells differ from those of the earlier embeddings
    gate.json             gate: how they drifted from the earlier embeddings
    index.json            index: what a search needs to know, written last; README.md has it as text
    fitness.json          index: how well it labels cells of the reference itself
    shard-00000.json      index: the commit marker of a shard
    request.json          pretrain: what was asked for

A file is read as a whole or refused: with a key that is unknown or missing, a value of another type, or one that
contradicts the rest.
"""

from scgpt_ray.records.embeddings import ChangeCounts, Changes, Manifest, Plan, Quarantine, QuarantinedCells
from scgpt_ray.records.fitness import RANDOM_FIFTHS, Agreement, Fitness, LabelFitness, NeighborDistances
from scgpt_ray.records.gate import Check, GateReport
from scgpt_ray.records.index import CommitMarker, IndexDescription, ShardDescription
from scgpt_ray.records.record import Record
from scgpt_ray.records.training import PretrainRequest

__all__ = [
    "RANDOM_FIFTHS",
    "Agreement",
    "ChangeCounts",
    "Changes",
    "Check",
    "CommitMarker",
    "Fitness",
    "GateReport",
    "IndexDescription",
    "LabelFitness",
    "Manifest",
    "NeighborDistances",
    "Plan",
    "PretrainRequest",
    "Quarantine",
    "QuarantinedCells",
    "Record",
    "ShardDescription",
]
