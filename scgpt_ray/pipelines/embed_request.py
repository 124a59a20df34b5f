"""A request to embed, checked: everything that can be wrong with it is found here, in the driver, without Ray.

torch is imported on need: a request that names no atlas or no checkpoint is refused in half the time.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from scgpt_ray.atlas.genes import Coverage, GeneMap, coverage, harmonize
from scgpt_ray.atlas.source import Cells, Source, locate
from scgpt_ray.config import CellSettings, DeviceSettings, EmbedSettings, VariableGeneSettings
from scgpt_ray.config.embed import TokenSettings
from scgpt_ray.config.settings import option_name
from scgpt_ray.errors import ConfigError
from scgpt_ray.identity import Fingerprint, require_same_run
from scgpt_ray.network.cell_encoder import CellEncoder, read_encoder
from scgpt_ray.network.checkpoint_files import CheckpointFiles, n_components
from scgpt_ray.network.components import Components
from scgpt_ray.parts.earlier import EarlierVectors
from scgpt_ray.pipelines.executor import names_cluster
from scgpt_ray.pipelines.raw_counts import read_counts
from scgpt_ray.pipelines.shared_checkpoint import CHECKPOINT
from scgpt_ray.progress import Stage
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.schema import Int64Array
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.rules import TokenRules
from scgpt_ray.tokenizer.vocabulary import Vocabulary
from scgpt_ray.tracking import Input

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedJob:
    """A request whose input is known to be good.

    Attributes:
        settings: What was asked for, with the precision that `auto` stands for, and the folder of fitted components.
        output: Where it goes.
        source: Locator of the cells, snapshot pinned.
        checkpoint: The network, or another encoder.
        genes: Which var row is which token.
        rules: Token rules.
        fingerprint: Identity of the result.
        began: The plan of an earlier run of the same request, to be finished.
        done: The manifest of a finished one: there is nothing to do.
        selection: Joinids of the selected cells and the gene coverage, where no plan has fixed them yet.
        earlier: Embeddings whose vectors are copied for cells of equal content; None to compute all.
    """

    settings: EmbedSettings
    output: Folder
    source: Source
    checkpoint: CellEncoder
    genes: GeneMap
    rules: TokenRules
    fingerprint: Fingerprint
    began: Plan | None
    done: Manifest | None
    selection: tuple[Int64Array, Coverage] | None
    earlier: EarlierVectors | None = None

    @property
    def n_cells(self) -> int:
        """Cells that were selected."""
        if self.began is not None:
            return self.began.n_cells
        assert self.selection is not None, "cells are selected where no plan has fixed them"
        return len(self.selection[0])

    def dataset(self, context: str) -> Input:
        """The selected cells, for MLflow."""
        return Input(context, self.settings.atlas, self.source.identity(), self.n_cells)

    def tags(self) -> dict[str, Any]:
        """What MLflow's runs are found by."""
        return {"fingerprint": self.fingerprint.digest, "atlas_snapshot": self.source.identity().get("snapshot")}


@Stage("check the input")
def check(
    settings: EmbedSettings, *, preferred: str | None = None, count_gpus: Callable[[], int] | None = None
) -> EmbedJob:
    """Check a request completely, and find what an earlier run has done of it.

    Nothing is written, but for components that are asked for and not fitted yet. A cluster is contacted last, and only
    to count its GPUs.

    Args:
        settings: The request.
        preferred: The precision for `auto`, if the devices of the run support it.
        count_gpus: Counts the GPUs of the run, None for this machine's; called only if the precision depends on them.

    Raises:
        InputError: With found, expected and remedy.
    """
    output = Folder.at(settings.output)
    began = Plan.read(output)
    # What an earlier run pinned is used again, so that the same command means the same cells.
    settings = _as_begun(settings, began)
    source = locate(settings.atlas, settings, _earlier_cells(settings, began), identifiers=True)
    settings = _with_components(settings, source, output, is_begun=began is not None)
    checkpoint = read_encoder(CheckpointFiles.at(settings.checkpoint))
    settings = suited(settings, checkpoint)
    genes = harmonize_genes(source, checkpoint.vocabulary, settings)
    done = Manifest.read(output) if began else None
    if done is not None and done.n_quarantined:
        done = None  # these cells are tried again
    if done is None:
        require_device(settings)
        output.require_writable()
    is_raw = isinstance(checkpoint, Components)
    selection = inspect(settings, source, genes, is_raw=is_raw) if began is None else None
    genes = variable_only(settings, source, genes)
    if settings.precision == "auto":
        precision = precision_of(settings, preferred, count_gpus)
        settings = settings.model_copy(update={"precision": precision})
    rules = TokenRules.of(settings.model_dump())
    fingerprint = Fingerprint(
        model=checkpoint.identity(rules, settings.precision, settings.pooling),
        cells={
            **source.identity(),
            "genes": genes.digest(),
            **ranking_identity(settings),
            "obs_columns": list(source.obs_columns),
        },
    )
    if began is not None:
        require_same_run(output.uri, asdict(fingerprint), asdict(began.fingerprint))
    if isinstance(checkpoint, Components):  # `share` copies them, so that they outlive the run that fitted them
        settings = settings.model_copy(update={"checkpoint": output.folder(CHECKPOINT).uri})
    return EmbedJob(settings, output, source, checkpoint, genes, rules, fingerprint, began, done, selection)


def _as_begun(settings: EmbedSettings, began: Plan | None) -> EmbedSettings:
    """Settings with the precision as an earlier run fixed it, if the request leaves it open."""
    if began is None or settings.precision != "auto":
        return settings
    return settings.model_copy(update={"precision": began.fingerprint.model.get("precision", settings.precision)})


def _with_components(settings: EmbedSettings, source: Source, output: Folder, *, is_begun: bool) -> EmbedSettings:
    """Settings with the folder of the components that `pca` stands for; they are fitted unless a run began with them.

    Raises:
        InputError: If they cannot be fitted.
        ConfigError: If it began with another number of components.
    """
    asked = n_components(settings.checkpoint)
    if asked is None:
        return settings
    place = output.folder(CHECKPOINT)
    settings = settings.model_copy(update={"checkpoint": place.uri})
    if not is_begun:
        from scgpt_ray.pipelines.component_fit import fit  # on need: scanpy and scikit-learn

        fit(source, settings, asked, place)
    elif (width := read_encoder(place.uri).width) != asked:
        raise ConfigError(
            f"{output.uri} holds a run with {width} components, not {asked}",
            expected=f"pca:{width}",
            remedy="give --checkpoint that, or --output another folder",
        )
    return settings


def suited(settings: EmbedSettings, encoder: CellEncoder) -> EmbedSettings:
    """The request with the one precision and device that components have; for a network as it is.

    Raises:
        ConfigError: If components are asked for with an option that they have no use for.
    """
    if not isinstance(encoder, Components):
        return settings
    only = {"precision": "float32", "device": "cpu"}
    fields = EmbedSettings.model_fields
    for name in (*TokenSettings.model_fields, *VariableGeneSettings.model_fields, "device", "gpus"):
        value = getattr(settings, name)
        if value not in (fields[name].default, only.get(name, fields[name].default)):
            raise ConfigError(
                f"{option_name(name)} {value} means nothing to principal components",
                expected="options of the cells and of the run",
                remedy="leave it out, or give --checkpoint a network",
            )
    return settings.model_copy(update=only)


def _earlier_cells(settings: EmbedSettings, began: Plan | None) -> dict[str, Any]:
    """Identity of the cells of an earlier run; without the Census release if another name is given now."""
    if began is None:
        return {}
    same_name = began.settings.get("atlas") == settings.atlas
    return {key: value for key, value in began.fingerprint.cells.items() if key != "release" or same_name}


def precision_of(compute: DeviceSettings, preferred: str | None, count_gpus: Callable[[], int] | None) -> str:
    """Resolve the precision `auto` for the devices of a run.

    Args:
        compute: Options that choose devices.
        preferred: The precision to use if the devices support it; None for their default.
        count_gpus: Counts the available GPUs, None for this machine's; called if the options do not choose devices.
    """
    from scgpt_ray.network.embedder import gpus_of_machine
    from scgpt_ray.network.precision import is_native, resolve_precision

    asked = compute.asked_device
    device = "cuda" if asked == "gpu" or (asked is None and (count_gpus or gpus_of_machine)()) else "cpu"
    if preferred is None:
        return resolve_precision("auto", device)
    return preferred if is_native(preferred, device) else "float32"


def inspect(
    settings: CellSettings, source: Cells, genes: GeneMap, *, is_raw: bool = False
) -> tuple[Int64Array, Coverage]:
    """Select the cells and check their counts.

    Args:
        settings: The request.
        source: The cells.
        genes: Their tokens.
        is_raw: Whether the counts must be whole numbers: components are fitted to raw counts.

    Returns:
        Joinids of the selected cells, sorted, and the gene coverage report.

    Raises:
        AtlasError: If nothing is selected, or the counts are not counts.
        InputError: If they are not whole numbers and must be.
        GeneCoverageError: If too few of them belong to genes of the vocabulary.
    """
    joinids = source.joinids()
    totals, n_measured = source.totals(joinids)
    if is_raw:
        from scgpt_ray.evaluation.components import require_whole  # on need: it brings scikit-learn

        require_whole(totals)  # sums of values that are not whole are not either
    report = coverage(genes, totals, n_measured)
    for line in report.summary().splitlines():
        logger.info(line)
    report.require(settings.min_coverage, source.uri)
    return joinids, report


def variable_only(settings: VariableGeneSettings, source: Source, genes: GeneMap) -> GeneMap:
    """Only the highly variable genes, if so many are asked for.

    Raises:
        InputError: If the genes cannot be ranked.
    """
    if settings.highly_variable is None:
        return genes
    # Imported on need: they bring scikit-learn.
    from scgpt_ray.evaluation.components import log1p_cp10k
    from scgpt_ray.evaluation.variable_genes import variable_genes

    values_NG = read_counts(source, source.joinids(), None).counts_NG
    if settings.rank_by == "log1p":
        values_NG = log1p_cp10k(values_NG)
    only = genes.only(variable_genes(values_NG, settings.highly_variable, settings.flavor))
    logger.info(
        "%d of the %d highly variable genes are in the vocabulary", (only.token >= 0).sum(), settings.highly_variable
    )
    return only


def ranking_identity(settings: VariableGeneSettings) -> dict[str, Any]:
    """How genes were selected, for the fingerprint; nothing where all are embedded."""
    if settings.highly_variable is None:
        return {}
    return {name: getattr(settings, name) for name in VariableGeneSettings.model_fields}


def harmonize_genes(source: Cells, vocabulary: Vocabulary, settings: CellSettings) -> GeneMap:
    """Match the genes of an atlas with the vocabulary."""
    return harmonize(
        source.var(),
        vocabulary.tokens,
        columns=tuple(settings.gene_columns),
        gene_table=settings.gene_table,
        columns_are_default=settings.gene_columns == CellSettings.model_fields["gene_columns"].default,
        where=source.uri,
    )


def require_device(settings: EmbedSettings) -> None:
    """Check that this machine has the requested devices; those of a cluster are known only once it is joined.

    Raises:
        ConfigError: If GPUs are requested on a machine without one, or a precision that its CPU lacks.
    """
    if names_cluster():
        return
    from scgpt_ray.network.embedder import has_gpu
    from scgpt_ray.network.precision import require_precision

    on_cpu = not has_gpu() or settings.asked_device == "cpu"
    if settings.asked_device == "gpu" and on_cpu:
        option = f"--gpus {settings.gpus}" if settings.gpus else "--device gpu"
        raise ConfigError(
            f"{option} on a machine without a GPU",
            expected="GPUs here, or a cluster that RAY_ADDRESS names",
            remedy=f"drop {option.split()[0]}, or set RAY_ADDRESS",
        )
    require_precision("cpu" if on_cpu else "cuda", settings.precision)
