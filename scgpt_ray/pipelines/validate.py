"""The audit of an output folder, and its repair."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from scgpt_ray.config import EmbedSettings, ValidateSettings
from scgpt_ray.errors import ConfigError, ReferenceSetError
from scgpt_ray.index.audit import audit_card, audit_index
from scgpt_ray.lease import hold
from scgpt_ray.parts.audit import Problem, audit_embeddings
from scgpt_ray.parts.manifest import GENES
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.index import rebuild
from scgpt_ray.records import Manifest, Plan, Quarantine
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)


class Problems(list[str]):
    """Problems of a folder, one per line; empty if there are none.

    Attributes:
        remedy: What to do about them.
    """

    remedy: str = ""

    def text(self) -> str:
        """Summary for the terminal."""
        return "\n".join([*self, self.remedy] if self else ["no problems found"])

    def to_dict(self) -> dict[str, Any]:
        """Values for the JSON line on stdout."""
        return {"ok": not self, "problems": list(self), "remedy": self.remedy}


def validate(settings: ValidateSettings, engine: Engine) -> Problems:
    """Audit an output folder of `embed` or `index`; with `repair`, delete the damaged files and make them again.

    The request is in the folder (plan.json, index.json), so a repair is what a resumed run does. It is checked before
    anything is deleted.

    Raises:
        InputError: If the folder holds no finished run, or what it was made of is gone or has changed.
    """
    is_index = settings.embeddings is None
    place = settings.index if is_index else settings.embeddings
    assert place is not None, "the settings require one of the two"
    folder = Folder.at(place)
    audit = _audit_index if is_index else audit_embeddings
    problems = audit(folder)
    if settings.repair and problems and all(problem.mends for problem in problems):
        for problem in problems:
            logger.warning("%s", problem)
        with hold(folder, settings.verb, wait=settings.wait):
            (_repair_index if is_index else _repair_embeddings)(folder, problems, engine)
        problems = audit(folder)
    found = Problems(map(str, problems))
    if not all(problem.mends for problem in problems):
        found.remedy = f"run scgpt-ray {'index' if is_index else 'embed'} again with a new --output"
    elif problems:
        option = "--index" if is_index else "--embeddings"
        found.remedy = f"mend them with: scgpt-ray validate {option} {folder.uri} --repair"
    return found


def _audit_index(folder: Folder) -> list[Problem]:
    return audit_index(folder) + audit_card(folder)


def stored_settings(folder: Folder, plan: Plan | None, instead: Mapping[str, str | None]) -> EmbedSettings:
    """The request in a plan, for any working directory: with the absolute place of the atlas, and of the output.

    Args:
        folder: Where the plan is.
        plan: The plan.
        instead: Settings that replace those of the plan, unless they are None.

    Raises:
        ReferenceSetError: If there is no plan, or it holds no request that this version understands.
    """
    asked = {} if plan is None else dict(plan.settings)
    if plan is not None and not str(asked.get("atlas", "")).startswith("census:"):
        asked["atlas"] = plan.fingerprint.cells.get("uri")
    try:
        replaced = {name: value for name, value in instead.items() if value is not None}
        return EmbedSettings.of({**asked, "output": folder.uri, **replaced})
    except ConfigError as error:
        raise ReferenceSetError(
            f"{folder.where(Plan.file)} holds no whole request ({error.found})",
            expected="a folder that embed has written",
            remedy="run scgpt-ray embed again with a new --output",
        ) from None


def _repair_embeddings(folder: Folder, problems: Sequence[Problem], engine: Engine) -> None:
    # Imported here: an audit does not wait for torch.
    from scgpt_ray.pipelines.embed import embed, write_genes
    from scgpt_ray.pipelines.embed_request import check

    settings = stored_settings(folder, Plan.read(folder), {})
    files = {problem.file for problem in problems} - {Quarantine.file}  # embed reads it, and tries its cells again
    if Manifest.file in files and folder.has(Manifest.file):
        folder.remove(Manifest.file)  # a request is checked against a manifest that can be read, or against none
    job = check(settings, count_gpus=engine.gpus)
    _delete(folder, files)
    if files == {GENES}:
        write_genes(job)
        return
    if folder.has(Manifest.file):
        folder.remove(Manifest.file)
    embed(settings, engine)


def _repair_index(folder: Folder, problems: Sequence[Problem], engine: Engine) -> None:
    rebuild(folder, engine, partial(_delete, folder, {problem.file for problem in problems}))


def _delete(folder: Folder, files: Iterable[str]) -> None:
    """Delete the damaged files, and nothing else."""
    for name in sorted(files):
        if folder.has(name):
            folder.remove(name)
