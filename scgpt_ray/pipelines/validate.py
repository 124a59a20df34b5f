"""The audit of an output folder."""

from typing import Any

from scgpt_ray.config import ValidateSettings
from scgpt_ray.index.audit import audit_index
from scgpt_ray.parts.audit import audit_embeddings
from scgpt_ray.storage import Folder


class Problems(list[str]):
    """Problems of a folder, one per line; empty if there are none."""

    def text(self) -> str:
        """Summary for the terminal."""
        return "\n".join(self) or "no problems found"

    def to_dict(self) -> dict[str, Any]:
        """Values for the JSON line on stdout."""
        return {"ok": not self, "problems": list(self)}


def validate(settings: ValidateSettings) -> Problems:
    """Audit an output folder of `embed` or `index`.

    Raises:
        InputError: If the folder holds no finished run.
    """
    if settings.embeddings is not None:
        return Problems(audit_embeddings(Folder.at(settings.embeddings)))
    assert settings.index is not None, "the settings require one of the two"
    return Problems(audit_index(Folder.at(settings.index)))
