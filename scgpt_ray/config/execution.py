"""The choice between this process and Ray."""

from typing import Literal, TypeAlias

from scgpt_ray.config.storage import StorageSettings

ExecutorChoice: TypeAlias = Literal["auto", "serial", "ray"]


class ExecutionSettings(StorageSettings):
    """Choice of the executor. It does not change the output."""

    group = "Compute"

    executor: ExecutorChoice = "auto"
    """serial: in this process. ray: on the cluster of RAY_ADDRESS, else on the Ray that `ray start` started here,
    else on a local Ray (with RAY_ADDRESS=local always on that). auto: ray for more than 10,000 cells, with --gpus,
    --actors or several --workers, or if RAY_ADDRESS names a cluster; else serial."""
    wait: bool = False
    """Wait for another run that writes into the output folder, instead of ending with exit code 2."""
