"""Published checkpoints by name: where their files are, and what is known of their content.

Upstream publishes folders on Google Drive, from which no program downloads; hub and bucket hold copies. The sums of
whole-human are on the model card of u-cellm/scGPT-whole-human and in several public records of its files. Those of
scGPT_CP and heart come from public records by users of the files. For what has no sum here, the first download is
trusted and pinned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FILES = ("args.json", "vocab.json")
"""The files that every checkpoint has in addition to its weights."""

WEIGHTS = ("best_model.pt", "model.safetensors")
"""The names of a weights file, of which a checkpoint has one."""

LICENCE = "unknown: upstream's code is MIT, its weights come without terms"
"""Of all of them."""


@dataclass(frozen=True)
class Known:
    """What is known of a file before it is downloaded.

    Attributes:
        sha256: Of its content (hex); None if unknown.
        size: Bytes; None if unknown.
    """

    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        summary: What it was trained on.
        page: Where people download the files: upstream's folder.
        sources: Copies, tried in this order: hf://owner/repo[@revision], or the URI of a folder that all may read.
        files: Its files.
    """

    summary: str
    page: str
    sources: tuple[str, ...]
    files: Mapping[str, Known]


def _files(args: Known, vocabulary: Known, weights: Known) -> Mapping[str, Known]:
    return MappingProxyType(dict(zip((*FILES, WEIGHTS[0]), (args, vocabulary, weights), strict=True)))


_UNKNOWN = _files(Known(), Known(), Known())
_DRIVE = "https://drive.google.com/drive/folders"

PUBLISHED: dict[str, Published] = {
    "whole-human": Published(
        "33 million normal human cells",
        f"{_DRIVE}/1oWh_-ZRdhtoGQ2Fw24HP41FgLoomVo-y",
        (
            "hf://wanglab/scGPT-human@a24c237737a40f3720f75abb555489e9fe753be6",
            "hf://u-cellm/scGPT-whole-human",
            "s3://czi-scgenept-public/models/pretrained/scgpt",
        ),
        _files(
            Known("c18e075e018140cb8b2d9029387b9de26607a5ce6a8ccabd6ead70cd76b95d60", 1_300),
            Known("acca93d114ca62c3f0f50debbd23e8c87f0714f4737764454f6b2b13f2e8580f", 1_317_639),
            Known("6cb5d451ab5c4b33eb673adbe4fddc61d2389df1b89b7651a9fe2e557572b922", 205_385_258),
        ),
    ),
    "scGPT_CP": Published(
        "whole-human, continued with cell types of Tabula Sapiens",
        f"{_DRIVE}/1_GROJTzXiAV8HB4imruOTk6PEGuNOcgB",
        ("hf://perturblab/scgpt-continual-pretrained",),
        _files(
            # A sum of upstream's own args.json is public, but mirrors are known to add keys to that file.
            Known(),
            Known("ee2b2c90158eedb97c2318e49abaaed0a02c6fdf7e3f7ca6a821906413c4d2a4", 1_317_639),
            Known("ad0252a1971e0cd619b7116dbab3177432236c4537225d54280a2aa7e5fe402a", 207_861_754),
        ),
    ),
    "brain": Published(
        "13.2 million brain cells",
        f"{_DRIVE}/1vf1ijfQSk7rGdDGpBntR5bi5g6gNt-Gx",
        ("hf://perturblab/scgpt-brain",),
        _UNKNOWN,
    ),
    "blood": Published(
        "10.3 million blood and bone marrow cells",
        f"{_DRIVE}/1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU",
        ("hf://perturblab/scgpt-blood",),
        _UNKNOWN,
    ),
    "heart": Published(
        "1.8 million heart cells",
        f"{_DRIVE}/1GcgXrd7apn6y4Ze_iSCncskX3UsWPY2r",
        ("hf://perturblab/scgpt-heart@f494d85028a4adb01487d9b53f2a6ee9da7765da",),
        _files(Known(), Known(), Known("23b4c43f403a4069e3acaa2a11c9a7be971b14e3c363739a6c4d24651c3feee7")),
    ),
    "lung": Published(
        "2.1 million lung cells",
        f"{_DRIVE}/16A1DJ30PT6bodt4bWLa4hpS7gbWZQFBG",
        ("hf://perturblab/scgpt-lung",),
        _UNKNOWN,
    ),
    "kidney": Published(
        "814 thousand kidney cells",
        f"{_DRIVE}/1S-1AR65DF120kNFpEbWCvRHPhpkGK3kK",
        ("hf://perturblab/scgpt-kidney",),
        _UNKNOWN,
    ),
    "pan-cancer": Published(
        "5.7 million cells of various cancer types",
        f"{_DRIVE}/13QzLHilYUd0v3HTwa_9n4G4yEF-hdkqa",
        ("hf://perturblab/scgpt-pan-cancer",),
        _UNKNOWN,
    ),
}
"""Name, as upstream's model zoo has it -> what is published under it."""
