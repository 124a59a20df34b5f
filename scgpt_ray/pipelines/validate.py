"""The audit of an output folder."""

from typing import Any

from scgpt_ray.config import ValidateSettings
from scgpt_ray.index.audit import audit_index
from scgpt_ray.parts.audit import audit_embeddings
from scgpt_ray.storage import Folder


class Problems(list[str]):
    """What is wrong with a folder, a line each; empty if all is well."""

    def text(self) -> str:
        """The lines, for people."""
        return "\n".join(self) or "all is well"

    def to_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return {"ok": not self, "problems": list(self)}


def validate(settings: ValidateSettings) -> Problems:
    """Audit what `embed` or `index` left.

    Raises:
        InputError: If the folder is not that of a finished run.
    """
    if settings.embeddings is not None:
        return Problems(audit_embeddings(Folder.at(settings.embeddings)))
    assert settings.index is not None, "the settings ask for one of the two"
    return Problems(audit_index(Folder.at(settings.index)))
