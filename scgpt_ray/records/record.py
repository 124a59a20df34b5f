"""The base of all records: a JSON file, frozen and checked."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.storage import Folder

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A file in the folder of the record; others may have written it, so that it must not lead elsewhere."""


class Record(BaseModel):
    """A JSON file: frozen, its keys and values checked when it is made and when it is read."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    file: ClassVar[str]
    """Name in its folder."""
    remedy: ClassVar[str]
    """What to do about a file that cannot be used."""
    indent: ClassVar[int | None] = 1

    @classmethod
    def read(cls, folder: Folder) -> Self | None:
        """The record of a folder; None where it has none.

        Raises:
            ReferenceSetError: If the file cannot be used.
        """
        return cls.from_json(folder.read(cls.file), folder.where(cls.file)) if folder.has(cls.file) else None

    def write(self, folder: Folder) -> None:
        """Put the file in its place, whole or not at all."""
        folder.write(self.file, self.to_json())

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Self:
        """Read the content of a file.

        Args:
            content: What `to_json` wrote.
            where: The file, for messages.

        Raises:
            ReferenceSetError: If it is torn, of another format, or not what this version writes.
        """
        try:
            record = cls.model_validate_json(content)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            problem = ": ".join(filter(None, [".".join(map(str, detail["loc"])), detail["msg"]]))
        else:
            # Nothing is left to a default: what lacks a key was not written here.
            absent = sorted(cls.model_fields.keys() - record.model_fields_set)
            if not absent:
                return record
            problem = f"{absent[0]}: Field required"
        raise ReferenceSetError(
            f"{where} cannot be used: {problem}",
            expected=f"the {cls.file} of this version of scgpt-ray, whole and unchanged",
            remedy=cls.remedy,
        )

    def to_json(self) -> bytes:
        """The content of the file; equal for equal records."""
        return self.model_dump_json(indent=self.indent).encode()

    def replace(self, **values: Any) -> Self:
        """A copy with other values, checked as a whole."""
        return type(self)(**{**dict(self), **values})
