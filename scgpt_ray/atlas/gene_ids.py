"""What kind of names the genes of an atlas have, and the table of human Ensembl ids that ships with the package.

`ensembl_genes.md` says where the table is from.
"""

import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

ENSEMBL_TABLE = str(Path(__file__).with_name("ensembl_genes.csv.gz"))
"""Human Ensembl id and the name of the gene in the vocabulary of scGPT."""


class GeneIds(Enum):
    """Kinds of gene names that need a translation; the value is what messages call them."""

    HUMAN_ENSEMBL = "human Ensembl gene ids"
    MOUSE_ENSEMBL = "mouse Ensembl gene ids"
    OTHER_ENSEMBL = "Ensembl gene ids of another species"
    MOUSE_SYMBOLS = "mouse symbols"
    NUMBERS = "numbers, as NCBI gene ids are"

    @property
    def remedy(self) -> str:
        """How names of this kind become names of the vocabulary."""
        if self in (GeneIds.HUMAN_ENSEMBL, GeneIds.NUMBERS):
            return "give --gene-table a CSV of gene id and symbol"
        return "scGPT's published vocabularies are human: give --gene-table a CSV of gene and human orthologue"


_PATTERNS = {
    GeneIds.HUMAN_ENSEMBL: re.compile(r"ENSG\d{11}(\.\d+)?(_PAR_Y)?"),
    GeneIds.MOUSE_ENSEMBL: re.compile(r"ENSMUSG\d{11}(\.\d+)?"),
    GeneIds.OTHER_ENSEMBL: re.compile(r"ENS[A-Z]{3,4}G\d{11}(\.\d+)?"),
    GeneIds.MOUSE_SYMBOLS: re.compile(r"[A-Z][a-z]+[a-z0-9.-]*|Gm\d+|[0-9A-Z]+Rik|mt-\w+|H2-\w+"),
    GeneIds.NUMBERS: re.compile(r"\d+"),
}


def kind_of(names: Iterable[str | None]) -> GeneIds | None:
    """The kind that more than half of the names have; None for any other, such as human symbols."""
    present = [name for name in names if name]
    for kind, pattern in _PATTERNS.items():
        if 2 * sum(pattern.fullmatch(name) is not None for name in present) > len(present):
            return kind
    return None
