"""Reading and writing checkpoints: folders of args.json, vocab.json and weights. Everything read is validated."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgpt_ray.errors import CheckpointError
from scgpt_ray.network.checkpoint_files import (
    ARGS_FILE,
    COMPONENTS_FILE,
    SAFETENSORS_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    CheckpointFiles,
    CheckpointName,
)
from scgpt_ray.network.weights import UNUSED, encoder_shapes, match, pack, unpack
from scgpt_ray.storage import Folder
from scgpt_ray.tokenizer.vocabulary import SPECIALS, Vocabulary

if TYPE_CHECKING:
    from scgpt_ray.network.cell_encoder import Tokenize
    from scgpt_ray.network.embedder import Embedder
    from scgpt_ray.tokenizer.rules import TokenRules

EMBEDDING_TABLE = "encoder.embedding.weight"

SIZES = ("embsize", "nheads", "d_hid", "nlayers")
"""Keys of args.json with the sizes of the network."""

FIXED_ARGS = {"n_bins": 51, "input_emb_style": "continuous"}
"""Keys of args.json that have the same value in all published checkpoints and in upstream's code."""

OTHER_ARGS = {
    "dropout": 0.2,
    "fast_transformer": True,
    "max_seq_len": 1200,
    "n_layers_cls": 3,
    "pad_token": "<pad>",
}
"""Keys of args.json that other readers require, with the values of the published checkpoints."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a network, named as in args.json.

    Args:
        embsize: Width d of tokens and embeddings.
        nheads: Attention heads, a divisor of embsize.
        d_hid: Width of the feed-forward layers.
        pad_value: The value of <cls>, which has no bin.
        n_tokens: Rows of the gene embedding, one per token of the vocabulary.
        n_bins: Number of bin codes, including that of <cls>.
    """

    embsize: int
    nheads: int
    d_hid: int
    nlayers: int
    pad_value: float
    n_tokens: int
    n_bins: int = 51

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the encoder."""
        return encoder_shapes(self.n_tokens, self.embsize, self.d_hid, self.nlayers)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A validated checkpoint in memory.

    Args:
        folder: Absolute path or URI it was read from, or demo.
        architecture: Sizes; the tensors have been checked against them.
        vocabulary: Tokens, one per row of the gene embedding.
        tensors: Tensors of the encoder under canonical names: float32, contiguous, finite, on the CPU.
        weights_sha256: Digest of the weights file.
        heads: Unchanged tensors of the training objectives, if the file has any.
        cell_types: Names of the classes of `cls_decoder`, if args.json has them; published checkpoints do not.
        training_sets: Names of the data sets whose cell types it was trained on, likewise.
        files: Its files, with the digests of what was read; None for one that was made in memory.
    """

    folder: str
    architecture: Architecture
    vocabulary: Vocabulary
    tensors: dict[str, Tensor]
    weights_sha256: str
    heads: dict[str, Tensor] = field(default_factory=dict)
    cell_types: tuple[str, ...] = ()
    training_sets: tuple[str, ...] = ()
    files: CheckpointFiles | None = None

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.architecture.embsize

    # The methods of `cell_encoder.CellEncoder`. numba and kernels are imported on need: pretraining has other uses.
    def identity(self, rules: "TokenRules", precision: str, pooling: str) -> dict[str, Any]:
        """All that determines a cell's embedding."""
        from scgpt_ray.tokenizer.rules import RULES_VERSION

        return {
            "weights": self.weights_sha256,
            "vocabulary": self.vocabulary.sha256,
            "token_rules": RULES_VERSION,
            **asdict(rules),
            "precision": precision,
            "pooling": pooling,
        }

    def tokenizer(self, rules: "TokenRules") -> "Tokenize":
        """What turns CELLS into TOKENS."""
        from scgpt_ray.tokenizer.rules import tokenize

        return partial(tokenize, rules=rules)

    def embedder(self, **options: Any) -> "Embedder":
        """The network on a device; see `Embedder` for the options."""
        from scgpt_ray.network.embedder import Embedder

        return Embedder(self, **options)


def read_checkpoint(name: CheckpointName) -> Checkpoint:
    """Read a checkpoint from a path or URI, or by its name (`CheckpointFiles.at`).

    Raises:
        CheckpointError: If a file is missing or invalid, or the files do not belong together.
    """
    files = CheckpointFiles.at(name)
    place = files.folder
    weights = files.weights()
    if weights == COMPONENTS_FILE:
        raise CheckpointError(
            f"{place.uri} holds principal components",
            expected="a network",
            remedy="give the folder or the name of a network; components are for embed and what follows it",
        )
    contents = {file: files.read(file) for file in (VOCABULARY_FILE, ARGS_FILE, weights)}
    vocabulary = Vocabulary.from_json(contents[VOCABULARY_FILE], place.where(VOCABULARY_FILE))
    args = _read_args(contents[ARGS_FILE], place.where(ARGS_FILE))
    architecture = _architecture(args, place.where(ARGS_FILE), vocabulary.size)
    where = place.where(weights)
    found = unpack(contents[weights], where)
    _require_rows(found, vocabulary, where)
    tensors = match(found, architecture.shapes(), where)
    heads = {name: tensor for name, tensor in found.items() if name.startswith(UNUSED)}
    known = dict(files.sha256)  # what is known was checked
    sha256 = {file: known.get(file) or hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    return Checkpoint(
        files.uri,
        architecture,
        vocabulary,
        tensors,
        sha256[weights],
        heads,
        tuple(args.get("cell_types", ())),
        tuple(args.get("training_sets", ())),
        CheckpointFiles(files.uri, tuple(sha256.items())),
    )


def _read_args(content: bytes, where: str) -> dict[str, Any]:
    """Read args.json."""
    try:
        args = json.loads(content)
    except ValueError as error:
        raise _bad_args(f"{where} is not JSON: {error}") from error
    if not isinstance(args, dict):
        raise _bad_args(f"{where} is not a JSON object")
    return args


def _architecture(args: Mapping[str, Any], where: str, n_tokens: int) -> Architecture:
    """Read the sizes in args.json."""
    sizes = {name: _size(args.get(name), name, where) for name in SIZES}
    if sizes["embsize"] % sizes["nheads"] != 0:
        raise _bad_args(f"{where} has embsize {sizes['embsize']}, which is no multiple of nheads {sizes['nheads']}")
    pad_value = args.get("pad_value")
    if not isinstance(pad_value, int | float) or not math.isfinite(pad_value):
        raise _bad_args(f"{where} has pad_value {json.dumps(pad_value)}")
    for name, known in FIXED_ARGS.items():
        if args.get(name, known) != known:
            raise _bad_args(f"{where} has {name} {json.dumps(args[name])} instead of {json.dumps(known)}")
    return Architecture(**sizes, pad_value=pad_value, n_tokens=n_tokens)


def _size(value: object, name: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _bad_args(f"{where} has {name} {json.dumps(value)}")
    return value


def _bad_args(found: str) -> CheckpointError:
    return CheckpointError(
        found,
        expected="embsize, nheads, d_hid and nlayers >= 1, and a number pad_value",
        remedy="use the args.json that came with the weights",
    )


def _require_rows(found: Mapping[str, Tensor], vocabulary: Vocabulary, where: str) -> None:
    """Check that the gene embedding has one row per token of the vocabulary; the error names tokens without a row."""
    table = found.get(EMBEDDING_TABLE)
    if table is None or table.ndim == 0 or len(table) == vocabulary.size:
        return
    without = [name for name, token in vocabulary.tokens.items() if token >= len(table)]
    named = f" (none for {', '.join(without[-len(SPECIALS) :])})" if without else ""
    raise CheckpointError(
        f"{where}: {EMBEDDING_TABLE} has {len(table)} rows{named}",
        expected=f"{vocabulary.size} rows, one for each token of {VOCABULARY_FILE} with its special tokens",
        remedy="use the vocab.json that came with the weights",
    )


def write_checkpoint(
    folder: str | Path,
    architecture: Architecture,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Tensor],
    *,
    more_args: Mapping[str, Any] = MappingProxyType({}),
    as_safetensors: bool = False,
) -> None:
    """Write a checkpoint that all readers of scGPT checkpoints can load.

    Args:
        folder: Output folder; created if necessary.
        architecture: Sizes of the network.
        vocabulary: One token per row of the gene embedding.
        tensors: Tensors of the encoder under canonical names, and any heads; dtypes are kept.
        more_args: Further keys of args.json.
        as_safetensors: Write model.safetensors instead of best_model.pt.
    """
    match(tensors, architecture.shapes(), str(folder))
    sizes = {name: getattr(architecture, name) for name in (*SIZES, "pad_value")}
    packed = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    place = Folder.at(folder)
    place.write(ARGS_FILE, json.dumps({**sizes, **FIXED_ARGS, **OTHER_ARGS, **more_args}, indent=2).encode())
    place.write(VOCABULARY_FILE, json.dumps(dict(vocabulary.tokens), indent=2).encode())
    place.write(SAFETENSORS_FILE if as_safetensors else WEIGHTS_FILE, pack(packed, as_safetensors=as_safetensors))


def random_tensors(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """Draw weights of an untrained network from normal distributions; linear layers preserve variance."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in architecture.shapes().items():
        drawn = torch.randn(shape, generator=generator)
        if name.endswith("bias"):
            tensors[name] = 0.1 * drawn
        elif "norm" in name:
            tensors[name] = 1 + 0.1 * drawn
        else:
            tensors[name] = drawn / math.sqrt(shape[1]) if name != EMBEDDING_TABLE else drawn
    return tensors


def random_checkpoint(
    folder: Path,
    genes: Sequence[str],
    *,
    embsize: int = 64,
    nheads: int = 4,
    d_hid: int = 64,
    nlayers: int = 3,
    seed: int = 0,
) -> None:
    """Write a checkpoint of an untrained network, for demonstrations and tests.

    Args:
        folder: Output folder; created if necessary.
        genes: Distinct gene names; they become tokens 0, 1, 2, ... and the special tokens follow.
        embsize: Width of the embeddings.
        nheads: Attention heads, a divisor of embsize.
        d_hid: Width of the feed-forward layers.
        nlayers: Transformer layers.
        seed: Random seed of the weights.
    """
    vocabulary = Vocabulary({gene: token for token, gene in enumerate(genes)})
    architecture = Architecture(embsize, nheads, d_hid, nlayers, -2, vocabulary.size)
    write_checkpoint(folder, architecture, vocabulary, random_tensors(architecture, seed))
