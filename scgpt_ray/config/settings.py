"""Base of all settings: frozen, validated at construction, read from YAML and options, errors in one line."""

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from scgpt_ray.errors import ConfigError, redacted

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""For libraries whose seeds are signed integers of 32 bits."""
LongSeed = Annotated[int, Field(ge=0, lt=2**63)]
Timestamp = Annotated[int, Field(ge=1)]
Size = Annotated[ByteSize, Field(gt=0)]
"""Bytes, or a number with a unit, such as 8GB (decimal)."""
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Arithmetic of the network."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


if TYPE_CHECKING:
    Texts: TypeAlias = Sequence[str]  # callers may pass any sequence; settings hold a tuple
else:
    Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed)]


class Settings(BaseModel):
    """Base of all settings.

    A class holds the options under one heading of `--help`; the settings of a verb inherit from the groups of options
    that it shares with others. An option's docstring is its help: one or two sentences with the unit, and with the
    default if that is None or empty.
    """

    # Validators are built at first use: a run uses few of the classes.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, defer_build=True
    )

    verb: ClassVar[str]
    """Name of the verb on the command line."""
    group: ClassVar[str]
    """Heading, in `--help`, of the options that this class declares."""
    examples: ClassVar[tuple[str, ...]]
    """Example commands; they run in the folder in which `scgpt-ray demo` was run."""
    bare: ClassVar[str | None] = None
    """The option whose value may also be given without its name."""

    writes: ClassVar[bool] = True
    """Whether the verb writes into its output folder."""

    @model_validator(mode="before")
    @classmethod
    def _no_passwords(cls, values: Any) -> Any:
        """Refuse URIs with a password, since options are written to plans, logs and MLflow."""
        for name, value in values.items() if isinstance(values, dict) else ():
            words = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(word, str) and redacted(word) != word for word in words):
                raise ValueError(
                    f"{option_name(name)} holds a password, which belongs in the environment, a profile or a role"
                )
        return values

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Validate plain values.

        Raises:
            ConfigError: Lists all mistakes in one line.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _refusal(cls, error) from None

    @classmethod
    def load(cls, path: str | None, options: dict[str, Any]) -> Self:
        """Make settings from a YAML file and options, which override the file.

        Args:
            path: A YAML file of this verb's keys, which may have `verb` as well; or None.
            options: Field name -> value, only of the options given.

        Raises:
            ConfigError: If the file cannot be read; or lists all mistakes in one line.
        """
        values = read_yaml(path) if path else {}
        verb = values.pop("verb", cls.verb)
        if verb != cls.verb:
            raise ConfigError(
                f"--config {path} has options of {verb}",
                expected=f"options of {cls.verb}",
                remedy=f"run scgpt-ray {verb}, or give another file",
            )
        return cls.of({**values, **options})

    @classmethod
    def groups(cls) -> dict[str, list[str]]:
        """Heading -> its options; the class's own heading comes first, and has what it declares anew."""
        found: dict[str, list[str]] = {}
        for home in cls.__mro__:
            known = {name for names in found.values() for name in names}
            own = [name for name in inspect.get_annotations(home) if name in cls.model_fields and name not in known]
            if own:
                assert issubclass(home, Settings), home
                found.setdefault(home.group, []).extend(own)
        return found


def option_name(field: str) -> str:
    """The command-line option of a field."""
    return "--" + field.replace("_", "-")


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy that suggests the known word closest to a mistyped one; `otherwise` if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise


def _refusal(settings: type[Settings], error: ValidationError) -> ConfigError:
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    found, expected = zip(*map(_mistake, details), strict=True)
    unknown = [str(detail["loc"][0]) for detail in details if detail["type"] == "extra_forbidden"]
    remedy = f"see scgpt-ray {settings.verb} --help"
    if unknown:
        remedy = did_you_mean(option_name(unknown[0]), map(option_name, settings.model_fields), remedy)
    return ConfigError(
        f"{settings.verb}: {'; '.join(found)}", expected=", ".join(dict.fromkeys(expected)), remedy=remedy
    )


def _mistake(detail: Any) -> tuple[str, str]:
    """The `found` and `expected` texts of one mistake."""
    name = option_name(str(detail["loc"][0])) if detail["loc"] else ""
    match detail["type"]:
        case "missing":
            return f"{name} is missing", "all required options"
        case "extra_forbidden":
            return f"unknown option {name}", "an option of this verb"
        case "value_error":
            reason = str(detail["ctx"]["error"])
            return (f"{name}: {reason}", f"another value for {name}") if name else (reason, "options that agree")
        case "byte_size" | "byte_size_unit":
            return f"{name} is {detail['input']!r}", f"a size such as 8GB for {name}"
        case _:
            # Such as: Input should be a valid integer, unable to parse string as an integer.
            right = re.sub(r"^\w+ should (be |have )?|, unable .*$| after validation.*$", "", detail["msg"])
            return f"{name} is {detail['input']!r}", f"{right} for {name}"


def read_yaml(path: str) -> dict[str, Any]:
    """The keys and values of a file of options, unchecked.

    Raises:
        ConfigError: If it cannot be read.
    """
    # Imported here: most runs have no file, and `--help` waits for no pyarrow.
    import yaml

    from scgpt_ray.storage import Folder, require_reachable

    remedy = "give a YAML file of `option: value` lines"
    try:
        require_reachable(path)
        folder, name = Folder.of_file(path)
        values = yaml.safe_load(folder.read(name).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}", expected="a readable file", remedy=remedy) from error
    except yaml.YAMLError as error:
        # Not the whole text, which quotes the line: it may hold a password.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", type(error).__name__)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"--config {path}{where}: {problem}", expected="valid YAML", remedy=remedy) from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: a {type(values).__name__}", expected="a mapping", remedy=remedy)
    return {str(key).replace("-", "_"): value for key, value in values.items()}


_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Read a time such as 90s, 20m or 1h as seconds.

    Raises:
        ValueError: If it is not a number followed by s, m or h.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if unit not in _SECONDS or not re.fullmatch(r"\d+(\.\d+)?", number):
        raise ValueError(f"{text!r} is not a time like 20m")
    return float(number) * _SECONDS[unit]
