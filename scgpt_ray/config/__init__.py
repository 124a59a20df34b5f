"""The options of each verb: one frozen settings class per verb.

A class is at once the YAML schema, the command line and the arguments of the Python function of its verb; the text
under a field is its `--help`. Options override the file, the file overrides the defaults, unknown keys are errors. One
text counts as a list of one.
"""

from scgpt_ray.config.benchmark import BenchmarkSettings
from scgpt_ray.config.cells import CellSettings, ComputeSettings, DeviceSettings
from scgpt_ray.config.embed import EmbedSettings, VariableGeneSettings
from scgpt_ray.config.execution import ExecutionSettings, ExecutorChoice, StorageSettings, TrackingSettings
from scgpt_ray.config.export import ExportSettings
from scgpt_ray.config.folders import CheckpointsSettings, DemoSettings, ValidateSettings, VerifySettings
from scgpt_ray.config.gate import DriftSettings, GateSettings
from scgpt_ray.config.index import IndexSettings
from scgpt_ray.config.integrate import IntegrateSettings
from scgpt_ray.config.jobs import PruneSettings, StatusSettings, SubmitSettings
from scgpt_ray.config.map import MapSettings
from scgpt_ray.config.nightly import NightlySettings
from scgpt_ray.config.plan import PlanSettings
from scgpt_ray.config.pretrain import PretrainSettings
from scgpt_ray.config.refresh import RefreshSettings
from scgpt_ray.config.settings import Settings

__all__ = [
    "BenchmarkSettings",
    "CellSettings",
    "CheckpointsSettings",
    "ComputeSettings",
    "DemoSettings",
    "DeviceSettings",
    "DriftSettings",
    "EmbedSettings",
    "ExecutionSettings",
    "ExecutorChoice",
    "ExportSettings",
    "GateSettings",
    "IndexSettings",
    "IntegrateSettings",
    "MapSettings",
    "NightlySettings",
    "PlanSettings",
    "PretrainSettings",
    "PruneSettings",
    "RefreshSettings",
    "Settings",
    "StatusSettings",
    "StorageSettings",
    "SubmitSettings",
    "TrackingSettings",
    "ValidateSettings",
    "VariableGeneSettings",
    "VerifySettings",
]
