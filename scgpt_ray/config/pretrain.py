"""The options of `pretrain`."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scgpt_ray.config.cells import CellSettings
from scgpt_ray.config.execution import ExecutionSettings, TrackingSettings
from scgpt_ray.config.settings import Count, Fraction, Seed, Settings, Text, Texts

Weight = Annotated[float, Field(ge=0.0)]


class ObjectiveSettings(Settings):
    """What the network learns to predict."""

    group = "Objectives"

    objective: Literal["generative", "masked"] = "generative"
    """How bins are predicted. generative: those of unknown genes from known ones, then again from the cell's embedding,
    as in whole-human's pretraining; masked: those of masked genes among the others."""
    label_column: Text | None = None
    """obs column of cell types: adds their cross-entropy as an objective. Null, empty and `unknown` are not labels; the
    types of each atlas are a set of classes. Default: none."""
    domain_column: Text | None = None
    """obs column, such as assay, to remove from the embedding by adversarial training (gradient reversal). Default:
    none."""
    mask_ratios: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.25, 0.5, 0.75)
    """Fractions of a cell's genes to predict; one is drawn per cell and step (upstream: the same three, one drawn per
    batch)."""
    value_weight: Weight = 1.0
    """Weight of the squared error, in bins, predicted from the genes' own tokens. The loss is the weighted sum of the
    objectives' means; squared errors are about 100 times cross-entropies, so --label-weight may have to be raised."""
    cell_weight: Weight = 1.0
    """Weight of the squared error, in bins, predicted from <cls>."""
    prompt_weight: Weight = 1.0
    """Weight of the squared error, in bins, of the second pass, with --objective generative; 0 omits that pass."""
    unprompted_steps: Annotated[int, Field(ge=0)] = 0
    """First steps without the second pass."""
    label_weight: Weight = 1.0
    """Weight of the cross-entropy of cell types, with --label-column; 0 only measures how well the embedding tells them
    apart."""
    domain_weight: Weight = 1.0
    """Weight of the adversarial cross-entropy, with --domain-column."""


class OptimisationSettings(Settings):
    """How the weights are learnt."""

    group = "Optimisation"

    steps: Count = 10_000
    """Number of steps of Adam."""
    cells_per_step: Count = 64
    """Cells per step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    """Peak learning rate: linear warm-up, then cosine decay to 0."""
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Number of warm-up steps; fewer than --steps."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient of a step."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Dropout probability."""
    attention_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Probability of dropping an attention weight. With 0 and --objective masked, GPUs use a kernel without padding.
    Default: --dropout, as upstream's."""
    freeze_embeddings: bool = False
    """Keep the embeddings of genes and values of --checkpoint as they are."""
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """Keep this many transformer layers of --checkpoint as they are, from the first."""
    max_length: Annotated[int, Field(ge=2)] = 1200
    """Most tokens per cell and step, including <cls>."""
    min_length: Annotated[int, Field(ge=2)] | None = None
    """Fewest tokens that longer cells are cut to; a length is drawn per cell and step. Default: --max-length."""
    ties: Literal["random", "top"] = "random"
    """Bin of equal counts. random: drawn from the bins they span, as in `embed`; top: the highest of them."""
    seed: Seed = 0
    """Random seed of weights, order, masks, dropout and validation cells."""


class ValidationSettings(Settings):
    """Which cells the network is validated on, and when."""

    group = "Validation"

    validation_filter: Text | None = None
    """Condition on obs columns that selects validation cells: "donor_id == 'd7'". Default: a random fraction of all
    cells. However they are selected, training cells with the same tokens or observation id are left out."""
    validate_by: Text | None = None
    """obs column of groups, such as donor_id: a random fraction of the groups, at least one, is for validation, with
    all of their cells. Cells of unknown group are not used. Default: none."""
    validation_share: Fraction = 0.05
    """Fraction of cells, or of the groups of --validate-by, for validation, 0 to 1, without --validation-filter."""
    steps_per_checkpoint: Count = 500
    """Steps between validations; a resumable checkpoint is saved at each one."""
    best_by: Literal["loss", "label_accuracy", "label_asw", "last"] = "loss"
    """Which validation has the weights of the checkpoint: the lowest loss; with --label-column, the highest accuracy of
    labels by a vote of the 10 nearest other validation cells, or their highest silhouette width; or the last."""


class NetworkSettings(Settings):
    """Sizes of a new network."""

    group = "Size of a new network"

    vocabulary: Text | None = None
    """vocab.json of gene names; those in the atlases become tokens. Not with --checkpoint, which has its own. Default:
    all names in the first of --gene-columns."""
    embsize: Count = 512
    """Width of the embedding."""
    nheads: Count = 8
    """Number of attention heads; divides --embsize."""
    d_hid: Count = 512
    """Width of the feed-forward layers."""
    nlayers: Count = 12
    """Number of transformer layers."""


class LearnerSettings(ExecutionSettings):
    """How the work of a step is spread."""

    group = "Compute"

    workers: Count = 1
    """Number of workers that share each step: each on a GPU, if the cluster has any."""
    tokens_per_microbatch: Count | None = None
    """Most tokens in one pass through the network. Default: 65536 on a GPU, 8192 without; half with the second pass of
    --objective generative."""
    cells_per_partition: Count = 2048
    """Cells per token file."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of linear layers and attention; weights, sums and losses are float32."""


class PretrainSettings(
    ObjectiveSettings,
    OptimisationSettings,
    ValidationSettings,
    NetworkSettings,
    CellSettings,
    LearnerSettings,
    TrackingSettings,
):
    """Options of `pretrain`."""

    verb = "pretrain"
    group = "Input and output"
    examples = (
        "scgpt-ray pretrain --atlas demo/atlas --output network --embsize 64 --nheads 2 --d-hid 64 --nlayers 2"
        " --steps 4 --warmup-steps 2 --max-length 64",
        "scgpt-ray pretrain --atlas demo/atlas --checkpoint demo --label-column cell_type --output network-by-type"
        " --steps 4 --warmup-steps 2 --max-length 64",
        "scgpt-ray pretrain --atlas demo/atlas --checkpoint demo --validation-filter \"split == 'query'\""
        " --output network-validated --steps 4 --warmup-steps 2 --max-length 64",
    )

    atlas: Annotated[Texts, Field(min_length=1)]
    """Cells to learn from: one or several SOMA experiments or .h5ad files, or census:RELEASE[/ORGANISM]."""
    output: Text
    """Folder for tokens/, training/, checkpoint/, metrics.json, report.html and curve.png; a path or s3:// URI."""
    checkpoint: Text | None = None
    """Checkpoint to continue from: a name, a folder or hf://..., as for `embed`. Default: random weights of the
    size given below."""

    @property
    def is_generative(self) -> bool:
        """Whether genes to predict are unknown to the others, instead of masked."""
        return self.objective == "generative"

    @property
    def second_pass_weight(self) -> float:
        """Weight of the second pass; 0 where the objective has none."""
        return self.prompt_weight if self.is_generative else 0.0

    @field_validator("atlas")
    @classmethod
    def _distinct(cls, atlas: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(atlas)) != len(atlas):
            raise ValueError("an atlas is named twice")
        return atlas

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.embsize % self.nheads:
            raise ValueError(f"--embsize {self.embsize} is not a multiple of --nheads {self.nheads}")
        if self.checkpoint and self.vocabulary:
            raise ValueError("give one of --checkpoint and --vocabulary")
        if self.validation_filter and self.validate_by:
            raise ValueError("give one of --validation-filter and --validate-by")
        if self.min_length and self.min_length > self.max_length:
            raise ValueError(f"--min-length {self.min_length} is above --max-length {self.max_length}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"--warmup-steps {self.warmup_steps} is not below --steps {self.steps}")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        from_values = self.value_weight + self.cell_weight + self.second_pass_weight if self.mask_ratios else 0.0
        if not from_values + (self.label_weight if self.label_column else 0.0):
            raise ValueError("with these weights, --mask-ratios and --label-column there is nothing to learn")
        return self

    @model_validator(mode="after")
    def _nothing_unused(self) -> Self:
        sizes = self.model_fields_set & {"embsize", "nheads", "d_hid", "nlayers"}
        if self.checkpoint and sizes:
            raise ValueError(f"--checkpoint has its own {', '.join(sorted(sizes))}")
        if (self.freeze_embeddings or self.freeze_layers) and not self.checkpoint:
            raise ValueError("--freeze-embeddings and --freeze-layers need --checkpoint")
        if self.best_by.startswith("label") and not self.label_column:
            raise ValueError(f"--best-by {self.best_by} needs --label-column")
        second_pass = self.model_fields_set & {"prompt_weight", "unprompted_steps"}
        if second_pass and self.objective == "masked":
            raise ValueError("--prompt-weight and --unprompted-steps are for --objective generative")
        if self.gene_table and not self.checkpoint and not self.vocabulary:
            raise ValueError("--gene-table needs --vocabulary or --checkpoint")
        return self
