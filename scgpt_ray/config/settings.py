"""What all settings share: frozen, validated at birth, read from YAML and options, mistakes told in one line."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scgpt_ray.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, validated at birth, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    verb: ClassVar[str]
    """Name of the verb on the command line."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Validate plain values.

        Raises:
            ConfigError: With every mistake, in one line.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = "; ".join(_mistake(detail) for detail in error.errors())
            raise ConfigError(
                f"{cls.verb}: {found}",
                expected="the options of this verb, with values in their range",
                remedy=f"see scgpt-ray {cls.verb} --help",
            ) from None

    @classmethod
    def load(cls, path: str | None, options: dict[str, Any]) -> Self:
        """Join a YAML file and options; options win.

        Args:
            path: A YAML file of this verb's keys, or None.
            options: Field name -> value, only what was given.
        """
        return cls.of({**(_read_yaml(path) if path else {}), **options})


def _mistake(detail: Any) -> str:
    name = "--" + ".".join(str(part) for part in detail["loc"]).replace("_", "-")
    match detail["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return f"unknown option {name}"
        case "value_error" if not detail["loc"]:
            return str(detail["ctx"]["error"])
        case _:
            return f"{name}: {detail['msg'].lower()}, found {detail['input']!r}"


def _read_yaml(path: str) -> dict[str, Any]:
    remedy = "give a YAML file of `option: value` lines"
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}", expected="a readable file", remedy=remedy) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: {error}", expected="valid YAML", remedy=remedy) from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: a {type(values).__name__}", expected="a mapping", remedy=remedy)
    return {str(key).replace("-", "_"): value for key, value in values.items()}


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """Read a size such as 8GB (decimal units) as bytes.

    Raises:
        ValueError: If it is not a positive number with KB, MB, GB, TB or nothing behind it.
    """
    cleaned = text.strip().upper()
    number = cleaned.rstrip("KMGTB")
    unit = cleaned[len(number) :]
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a size like 8GB") from None
    if size <= 0:
        raise ValueError(f"{text!r} is not a positive size")
    return size
