"""The options of `gate`."""

from scgpt_ray.config.execution import ExecutionSettings, WaitSettings
from scgpt_ray.config.settings import Count, Settings, Text


class DriftSettings(Settings):
    """What is compared, and with which thresholds."""

    group = "Gate"

    label_column: Text | None = None
    """obs column of the embeddings with known labels: new cells are compared with earlier ones of the same label.
    Default: cell_type, if they carry it."""
    thresholds: Text | None = None
    """YAML file of thresholds (path or s3:// URI) that replace those of the package; null switches a check off.
    Default: those of scgpt_ray/evaluation/drift/thresholds.yaml, which gives the reason of each."""
    verified_cells: Count = 40
    """Number of new cells that are embedded again on this CPU."""


class GateSettings(DriftSettings, ExecutionSettings, WaitSettings):
    """Options of `gate`."""

    verb = "gate"
    group = "Input and output"
    examples = (
        "scgpt-ray gate --embeddings demo/mapped/embeddings --against demo/reference --output gate --verified-cells 10",
        "scgpt-ray gate --embeddings demo/reference --against demo/reference --output gate-same --verified-cells 10",
        "scgpt-ray gate --embeddings demo/mapped/embeddings --against demo/reference --index demo/index"
        " --output gate-index --verified-cells 10",
    )

    embeddings: Text
    """Output folder of a finished `embed` or `refresh`."""
    against: Text
    """Embeddings of an earlier run, with the same model."""
    output: Text
    """Folder for gate.json and report.html; a path or s3:// URI."""
    index: Text | None = None
    """Index of --against, whose recall is measured again with the new cells. Default: none."""
