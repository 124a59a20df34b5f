"""What the process imports from which those of `forked.py` are forked; MLflow's empty store is made once, too."""

import gc
from importlib import import_module

from scgpt_ray.mlflow_run import _empty_store

VERBS = ("embed", "index", "map", "pretrain", "refresh", "validate")
LIBRARIES = (
    *(f"scgpt_ray.pipelines.{verb}" for verb in VERBS),
    *("scgpt_ray.cli", "scgpt_ray.options", "scgpt_ray.execution.ray_executor", "scgpt_ray.execution.jobs"),
    *(
        "scgpt_ray.atlas.h5ad",
        "scgpt_ray.execution.engine",
        "scgpt_ray.network.embedder",
        "scgpt_ray.training.loop",
        "scgpt_ray.evaluation.report.plots",
    ),
    *("anndata", "mlflow", "ray.dag", "sklearn.neighbors", "torch._dynamo"),  # the last by torch's optimisers
)
gc.disable()  # and frozen below, as in conftest.py
for library in LIBRARIES:
    import_module(library)
_empty_store()
gc.freeze()
gc.enable()
