"""What `pretrain` is asked."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scgpt_ray.config.cells import CellSettings
from scgpt_ray.config.execution import ExecutionSettings
from scgpt_ray.config.settings import Count, Fraction, Text

Weight = Annotated[float, Field(ge=0.0)]


class PretrainSettings(CellSettings, ExecutionSettings):
    """Train a network, or go on training one with cell-type labels; a checkpoint folder that any scGPT reader loads."""

    verb = "pretrain"

    atlas: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Where the cells are: one or several SOMA experiments or .h5ad files, or census:VERSION."""
    output: Text
    """Folder for tokens/, training/, checkpoint/, metrics.json and curve.png; a path or s3:// URI."""
    checkpoint: Text | None = None
    """Checkpoint folder to go on from, or demo. Default: fresh weights of the size below."""
    label_column: Text | None = None
    """obs column of cell types: adds the cell-type head and its loss. Null, empty and `unknown` are no label; a cell's
    type competes with those of its own atlas."""
    domain_column: Text | None = None
    """obs column, such as assay or donor, that the embedding must not tell: adds an adversarial head behind a reversed
    gradient."""
    vocabulary: Text | None = None
    """vocab.json of gene names; those that the atlases have become the tokens. Default: all names in --gene-columns'
    first column. Not with --checkpoint, which brings its own."""
    embsize: Count = 512
    """Width of the embedding."""
    nheads: Count = 8
    """Attention heads."""
    d_hid: Count = 512
    """Width of the feed-forward layers."""
    nlayers: Count = 12
    """Transformer layers."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Part of the activations set to zero while training."""
    mask_ratios: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.25, 0.5, 0.75)
    """Parts of a cell's genes that may be masked; one is drawn for each cell and step."""
    value_weight: Weight = 1.0
    """Weight of the masked values, predicted from their own tokens."""
    cell_weight: Weight = 1.0
    """Weight of the masked values, predicted from <cls>."""
    label_weight: Weight = 1.0
    """Weight of the cell types, with --label-column."""
    domain_weight: Weight = 0.1
    """Weight of the adversarial head, with --domain-column."""
    max_length: Annotated[int, Field(ge=2)] = 1200
    """Most tokens of a cell in a step, <cls> included."""
    min_length: Annotated[int, Field(ge=2)] | None = None
    """Fewest tokens that longer cells are cut to: each step draws a length for each cell. Default: --max-length."""
    ties: Literal["random", "top"] = "random"
    """Which bin equal counts get: a draw from the bins they span, as `embed` does by default, or the top one."""
    validation_filter: Text | None = None
    """Validation cells, as a condition on obs columns: "donor_id == 'd7'". Default: a share of all cells."""
    validation_share: Fraction = 0.05
    """Share of the cells kept out, where no filter says which."""
    steps: Count = 10_000
    """Steps of the optimiser (Adam)."""
    cells_per_step: Count = 64
    """Cells of a step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    """Highest learning rate: it rises over the warm-up and falls like a cosine to 0."""
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Steps over which the learning rate rises."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of a step's gradient."""
    steps_per_checkpoint: Count = 500
    """Steps between evaluating on the cells kept out; each time the state is saved, for a killed run to go on from."""
    workers: Count = 1
    """Workers that share each step: one per GPU where the cluster has GPUs."""
    tokens_per_microbatch: Count | None = None
    """Most tokens that go through the network at a time. Default: 65536 on a GPU, 8192 without."""
    cells_per_partition: Count = 2048
    """Cells per file of tokens."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of linear layers and attention; weights, sums and losses are float32."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, order, masks, dropout and the share of cells kept out."""

    @field_validator("atlas")
    @classmethod
    def _distinct(cls, atlas: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(atlas)) != len(atlas):
            raise ValueError("an atlas is named twice")
        return atlas

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.embsize % self.nheads:
            raise ValueError(f"--embsize {self.embsize} is no multiple of --nheads {self.nheads}")
        if self.checkpoint and self.vocabulary:
            raise ValueError("give one of --checkpoint and --vocabulary")
        if self.min_length and self.min_length > self.max_length:
            raise ValueError(f"--min-length {self.min_length} is above --max-length {self.max_length}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"--warmup-steps {self.warmup_steps} is not below --steps {self.steps}")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        from_values = self.value_weight + self.cell_weight if self.mask_ratios else 0.0
        if not from_values + (self.label_weight if self.label_column else 0.0):
            raise ValueError("with these weights, --mask-ratios and --label-column there is nothing to learn")
        return self

    @model_validator(mode="after")
    def _nothing_unused(self) -> Self:
        sizes = self.model_fields_set & {"embsize", "nheads", "d_hid", "nlayers"}
        if self.checkpoint and sizes:
            raise ValueError(f"--checkpoint brings its own {', '.join(sorted(sizes))}")
        if self.gene_table and not self.checkpoint and not self.vocabulary:
            raise ValueError("--gene-table leads to names that --vocabulary must give")
        return self
