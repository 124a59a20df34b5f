"""A request to train, checked as far as that is possible before an executor is opened."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from scgpt_ray.atlas.genes import GeneMap
from scgpt_ray.atlas.obs_filter import filter_columns, parse
from scgpt_ray.atlas.plan import Partition, cut
from scgpt_ray.atlas.source import Source, locate
from scgpt_ray.config import PretrainSettings
from scgpt_ray.errors import ConfigError
from scgpt_ray.identity import digest_of, require_same_run
from scgpt_ray.network.checkpoint import Architecture, Checkpoint, read_checkpoint
from scgpt_ray.network.checkpoint_files import CheckpointFiles
from scgpt_ray.pipelines.embed_request import harmonize_genes, inspect
from scgpt_ray.progress import Stage
from scgpt_ray.records import PretrainRequest
from scgpt_ray.schema import RESERVED, known_texts
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import RULES_VERSION, TokenRules
from scgpt_ray.tokenizer.vocabulary import Vocabulary
from scgpt_ray.training.split import Split, choose_groups

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
CHECKPOINT = "checkpoint"
_PAD_VALUE = -2
"""The value of <cls>, as in the published checkpoints."""

_NO_NUMBER = frozenset({
    "output", "executor", "wait", "workers", "tokens_per_microbatch", "storage", "census_directory", "census_mirror",
    "tracking",
})  # fmt: skip
"""Settings that change no number."""
_PLACES = frozenset({"atlas", "snapshot", "vocabulary", "checkpoint"})
"""Settings that a request replaces by the digest of what they refer to."""


@dataclass(frozen=True)
class AtlasJob:
    """One atlas of a training set.

    Attributes:
        source: Source of the cells, at a fixed snapshot.
        genes: Gene map of the atlas.
        partitions: Partitions, one per token file.
    """

    source: Source
    genes: GeneMap
    partitions: tuple[Partition, ...]


@dataclass(frozen=True)
class TrainingJob:
    """A checked request.

    Attributes:
        settings: Settings of the request.
        output: Output folder.
        atlases: Atlases to read; empty if the run is finished.
        vocabulary: Vocabulary of the tokens.
        architecture: Sizes of the network.
        start: Files of the checkpoint to continue from, or None.
        training_sets: Names of the data sets whose labels train the network, or trained that checkpoint.
        rules: How cells become tokens: all genes of a cell, for each step draws its own.
        split: How cells are split into training and validation cells.
        request: What fixes the result.
        done: What a finished run of the same request left; None while there is something to do.
    """

    settings: PretrainSettings
    output: Folder
    atlases: tuple[AtlasJob, ...]
    vocabulary: Vocabulary
    architecture: Architecture
    start: CheckpointFiles | None
    training_sets: tuple[str, ...]
    rules: TokenRules
    split: Split
    request: PretrainRequest
    done: dict[str, Any] | None

    @property
    def tokens_fingerprint(self) -> str:
        """Digest of all that determines the tokens and the split into training and validation cells."""
        names = (
            "ties", "seed", "obs_columns", "label_column", "domain_column", "validation_filter", "validate_by",
            "validation_share",
        )  # fmt: skip
        request = self.request
        tokens = [request.atlases, request.vocabulary, request.token_rules]
        return digest_of([*tokens, *(request.settings[name] for name in names)])


@Stage("check the input")
def check_training(settings: PretrainSettings) -> TrainingJob:
    """Check a request completely.

    Raises:
        InputError: If the request is invalid, or the output folder belongs to another one.
    """
    output = Folder.at(settings.output)
    began = PretrainRequest.read(output)
    sources = _sources(settings, began)
    start = read_checkpoint(settings.checkpoint) if settings.checkpoint else None
    if start and settings.freeze_layers > start.architecture.nlayers:
        raise ConfigError(
            f"--freeze-layers {settings.freeze_layers} of a checkpoint with {start.architecture.nlayers} layers",
            expected="no more layers than there are",
            remedy="lower --freeze-layers",
        )
    vocabulary = start.vocabulary if start else _vocabulary(settings, sources)
    genes = [harmonize_genes(source, vocabulary, settings) for source in sources]
    rules = TokenRules(max_length=vocabulary.size + 1, seed=settings.seed, ties=settings.ties)
    request = _request(settings, sources, genes, vocabulary, start)
    if began is not None:
        require_same_run(output.uri, request.model_dump(mode="json"), began.model_dump(mode="json"))
    done = json.loads(output.read(METRICS)) if began is not None and output.has(METRICS) else None
    atlases: tuple[AtlasJob, ...] = ()
    if done is None:
        output.require_writable()
        atlases = tuple(
            AtlasJob(source, gene_map, _partitions(settings, source, gene_map))
            for source, gene_map in zip(sources, genes, strict=True)
        )
    architecture = start.architecture if start else _architecture(settings, vocabulary)
    files = start.files if start else None
    split = _split(settings, [atlas.source for atlas in atlases])
    sets = _training_sets(settings, sources, start)
    return TrainingJob(settings, output, atlases, vocabulary, architecture, files, sets, rules, split, request, done)


def _training_sets(settings: PretrainSettings, sources: Sequence[Source], start: Checkpoint | None) -> tuple[str, ...]:
    """Names by which `training_overlap` finds references that hold the same cells: of files, and URIs of atlases."""
    sets = start.training_sets if start else ()
    if settings.label_column and settings.label_weight:
        for uri in (source.uri for source in sources):
            sets += (uri.rpartition("/")[2].removesuffix(".h5ad") if uri.endswith(".h5ad") else uri,)
    return tuple(dict.fromkeys(sets))


def _sources(settings: PretrainSettings, began: PretrainRequest | None) -> tuple[Source, ...]:
    """The atlases, as an earlier run pinned them, carrying the columns that training reads.

    Raises:
        ConfigError: If an obs column has a reserved name.
    """
    earlier = began.atlases if began else []
    sources = []
    by_filter = filter_columns(settings.validation_filter or "")
    read = [settings.label_column, settings.domain_column, settings.validate_by, *by_filter]
    columns = tuple(dict.fromkeys(name for name in (*settings.obs_columns, *read) if name))
    if taken := RESERVED.intersection(columns):
        raise ConfigError(
            f"the obs columns {', '.join(sorted(taken))} have reserved names",
            expected=f"other names than {', '.join(sorted(RESERVED))}",
            remedy="use other columns, or rename these in the atlas",
        )
    # Another number of atlases than before is refused later.
    for uri, atlas in zip_longest(settings.atlas, earlier[: len(settings.atlas)]):
        sources.append(locate(uri, settings.model_copy(update={"obs_columns": columns}), atlas))
    return tuple(sources)


def _vocabulary(settings: PretrainSettings, sources: Sequence[Source]) -> Vocabulary:
    """The genes of the atlases: sorted by name, or those of the file --vocabulary, in its order.

    Raises:
        ConfigError: If there are no genes.
        CheckpointError: If the file cannot be used.
    """
    if settings.vocabulary is None:
        maps = [harmonize_genes(source, Vocabulary({}), settings) for source in sources]
        names = dict.fromkeys(name for gene_map in maps for name in gene_map.name if name)
    else:
        allowed = _read_names(settings.vocabulary)
        maps = [harmonize_genes(source, allowed, settings) for source in sources]
        seen = {int(token) for gene_map in maps for token in gene_map.token}
        names = {name: None for name, token in allowed.tokens.items() if token in seen}
    if not names:
        raise ConfigError(
            f"--atlas {' '.join(settings.atlas)}: no gene has a usable name",
            expected="gene names in the columns of --gene-columns",
            remedy="name other columns of var, or another --vocabulary",
        )
    return Vocabulary(
        {name: token for token, name in enumerate(sorted(names) if settings.vocabulary is None else names)}
    )


def _read_names(path: str) -> Vocabulary:
    try:
        folder, name = Folder.of_file(path)
        content = folder.read(name)
    except OSError as error:
        raise ConfigError(
            f"--vocabulary {path}: {error}",
            expected="a vocab.json that can be read",
            remedy="check the path",
        ) from error
    return Vocabulary.from_json(content, path)


def _architecture(settings: PretrainSettings, vocabulary: Vocabulary) -> Architecture:
    return Architecture(
        embsize=settings.embsize,
        nheads=settings.nheads,
        d_hid=settings.d_hid,
        nlayers=settings.nlayers,
        pad_value=_PAD_VALUE,
        n_tokens=vocabulary.size,
    )


def _request(
    settings: PretrainSettings,
    sources: Sequence[Source],
    genes: Sequence[GeneMap],
    vocabulary: Vocabulary,
    start: Checkpoint | None,
) -> PretrainRequest:
    return PretrainRequest(
        settings=settings.model_dump(mode="json", exclude=set(_NO_NUMBER | _PLACES)),
        atlases=[
            {**source.identity(), "genes": gene_map.digest()} for source, gene_map in zip(sources, genes, strict=True)
        ],
        vocabulary=vocabulary.sha256,
        checkpoint=start.weights_sha256 if start else None,
        token_rules=RULES_VERSION,
    )


def _split(settings: PretrainSettings, sources: Sequence[Source]) -> Split:
    """The split into training and validation cells; `sources` are empty if nothing is left to do.

    Raises:
        ConfigError: If the column of --validate-by has fewer than two groups.
    """
    groups: tuple[str, ...] = ()
    if settings.validate_by is not None and sources:
        values = [known_texts(source.column(settings.validate_by)) for source in sources]
        names = {name for of_atlas in values for name in of_atlas.unique().to_pylist() if name is not None}
        two = 2
        if len(names) < two:
            raise ConfigError(
                f"--validate-by {settings.validate_by}: {len(names)} known groups",
                expected="at least two",
                remedy="name another column",
            )
        groups = choose_groups(names, settings.validation_share, settings.seed)
        n_unknown = sum(of_atlas.null_count for of_atlas in values)
        logger.info(
            "validation cells are those of %d of %d groups of %s: %s; %d cells of unknown group are not used",
            len(groups), len(names), settings.validate_by, ", ".join(groups), n_unknown,
        )  # fmt: skip
    return Split(settings.validation_filter, settings.validate_by, groups, settings.validation_share, settings.seed)


def _partitions(settings: PretrainSettings, source: Source, genes: GeneMap) -> tuple[Partition, ...]:
    """Plan the token files of an atlas, and check the validation filter against the columns of its first cell."""
    joinids, _ = inspect(settings, source, genes)
    if settings.validation_filter:
        cell = next(source.read(cut(joinids[:1], 1)[0], genes.lookup()))
        parse(settings.validation_filter, cell.schema, source.uri, "--validation-filter")
    return cut(joinids, settings.cells_per_partition)
