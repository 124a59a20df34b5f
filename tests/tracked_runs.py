"""Runs in an MLflow store."""

import mlflow

from scgpt_ray.mlflow_run import EXPERIMENT


def runs(uri):
    """The client and all runs."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client, client.search_runs([experiment.experiment_id])


def nested_runs(store, verb):
    """Verbs of the runs that are nested in those of a verb, sorted; there are no others."""
    _, found = runs(f"sqlite:///{store}")
    outer = {run.info.run_id for run in found if run.data.tags["verb"] == verb}
    inner = [run for run in found if run.info.run_id not in outer]
    assert {run.data.tags["mlflow.parentRunId"] for run in inner} <= outer
    return sorted(run.data.tags["verb"] for run in inner)
