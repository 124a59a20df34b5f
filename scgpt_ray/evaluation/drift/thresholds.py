"""Thresholds of the gate: those of the package, and those that a file replaces."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from scgpt_ray.config.settings import did_you_mean
from scgpt_ray.errors import ConfigError
from scgpt_ray.storage import Folder, require_reachable

DEFAULTS = Path(__file__).with_name("thresholds.yaml")
"""The thresholds of the package, each with its reason."""


@dataclass(frozen=True)
class Thresholds:
    """The largest values that pass; None where a value is not checked. `thresholds.yaml` says what each is of."""

    least_cells: int
    norm: float | None
    moved: float | None
    empty_rise: float | None
    coverage_fall: float | None
    cut_change: float | None
    genes_change: float | None
    mean_shift: float | None
    dataset_shift: float | None
    purity_fall: float | None
    dataset_purity_fall: float | None
    recall_fall: float | None
    not_verified: float | None

    @classmethod
    def load(cls, path: str | None) -> "Thresholds":
        """Those of the package, with those of a YAML file instead where it names them.

        Raises:
            ConfigError: If the file cannot be read, or holds anything else.
        """
        return cls(**_read(str(DEFAULTS)) | (_read(path) if path else {}))


def reasons() -> dict[str, str]:
    """Name of each threshold -> what it limits and why: its comment in the file of the package."""
    blocks = DEFAULTS.read_text().strip().split("\n\n")[1:]
    texts = [block.rsplit("\n", 1) for block in blocks]
    return {line.partition(":")[0]: " ".join(text.replace("\n#", "").removeprefix("#").split()) for text, line in texts}


def _read(path: str) -> dict[str, Any]:
    remedy = f"see {DEFAULTS}"
    try:
        require_reachable(path)
        folder, name = Folder.of_file(path)
        values = yaml.safe_load(folder.read(name).decode())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--thresholds {path}: {error}", expected="a YAML file", remedy=remedy) from error
    known = [field.name for field in fields(Thresholds)]
    if not isinstance(values, dict):
        raise ConfigError(f"--thresholds {path}: no mapping", expected="lines of `threshold: value`", remedy=remedy)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"--thresholds {path}: unknown threshold {name}",
                expected=f"one of {', '.join(known)}",
                remedy=did_you_mean(str(name), known, remedy),
            )
        least = name == known[0]
        is_number = isinstance(value, int if least else int | float) and not isinstance(value, bool)
        if not (is_number and value >= (2 if least else 0)) and (least or value is not None):
            expected = "a whole number of at least 2" if least else "a number of at least 0, or null for no check"
            raise ConfigError(f"--thresholds {path}: {name} is {value!r}", expected=expected, remedy=remedy)
    return values
