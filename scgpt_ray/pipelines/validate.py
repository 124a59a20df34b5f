"""The audit of an output folder, of either kind."""

from scgpt_ray.config import ValidateSettings
from scgpt_ray.index.audit import audit_index
from scgpt_ray.parts.audit import audit_embeddings
from scgpt_ray.storage import Folder


def validate(settings: ValidateSettings) -> list[str]:
    """Audit what `embed` or `index` left.

    Returns:
        What is wrong, a line each; empty when all is well.

    Raises:
        InputError: If the folder is not that of a finished run.
    """
    if settings.embeddings is not None:
        return audit_embeddings(Folder.at(settings.embeddings))
    assert settings.index is not None, "the settings ask for one of the two"
    return audit_index(Folder.at(settings.index))
