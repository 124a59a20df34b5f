"""Options of every verb that reads or works: how object stores are reached, and where the work is done."""

from typing import Any, Literal, TypeAlias

from pydantic import Field, field_validator

from scgpt_ray.config.settings import Settings, Text
from scgpt_ray.object_store import ObjectStore, pairs

ExecutorChoice: TypeAlias = Literal["auto", "serial", "ray"]


class StorageSettings(Settings):
    """How object stores are reached. It does not change the output."""

    group = "Object stores"

    storage: dict[str, str] = Field(default_factory=dict)
    """How s3://, gs:// and az:// places are reached, KEY=VALUE. endpoint: URL of a store that is not AWS's; region;
    profile: of the AWS configuration files; anonymous: true for requests without a signature; public_endpoint: URL of a
    copy of the public buckets (Census, checkpoints); request_checksums: when_required (the default with endpoint) or
    when_supported; azure_account: of az:// places; google_endpoint, azure_endpoint: as endpoint, for gs:// and az://.
    Credentials are those of each machine: environment, profile or role. Default: the usual variables of this
    machine."""

    @field_validator("storage", mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """Turn KEY=VALUE words of the command line into a mapping, and check it."""
        if isinstance(values, list | tuple):
            values = pairs(values)
        if isinstance(values, dict):
            values = {str(key): str(value) for key, value in values.items()}
            ObjectStore.of(values)
        return values


class WaitSettings(Settings):
    """What is done while another run writes."""

    group = "Compute"

    wait: bool = False
    """Wait for another run that writes into the output folder, instead of ending with exit code 2."""


class TrackingSettings(WaitSettings):
    """Where the run is logged. It does not change the output."""

    group = "Tracking"

    tracking: Text | None = None
    """MLflow store: a URI such as http://HOST:PORT, or a folder for mlflow.db, so that runs compare. Default:
    MLFLOW_TRACKING_URI, else the folder that holds the output folder, if it can be written to and is not the root
    folder, else the output folder."""


class ExecutionSettings(StorageSettings):
    """Choice of the executor. It does not change the output."""

    group = "Compute"

    executor: ExecutorChoice = "auto"
    """serial: in this process. ray: on the cluster of RAY_ADDRESS, else on the Ray that `ray start` started here,
    else on a local Ray (with RAY_ADDRESS=local always on that). auto: ray for more than 10,000 cells, with --gpus,
    --actors or several --workers, or if RAY_ADDRESS names a cluster; else serial."""
