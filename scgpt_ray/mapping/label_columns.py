"""Which columns of a reference have labels, and which identify cells, donors, samples or data sets: by their names."""

import re
from collections.abc import Iterable

_SEPARATORS = (
    "donor|individual|subject|patient",
    "batch",
    "dataset|data[._ ]?set|study|project",
    "sample|specimen|suspension|library|orig[._]ident|channel|lane|plate|well|replicate",
)
"""Words for what separates independent samples, in order of preference: a new query mostly has other donors."""

_CELLS = r"(?:cell[._ ]?)?barcode|cell|obs|observation|soma|index|uuid"
_ENDINGS = r"s?(?:[._ ]?(?:id|ids|name|uuid|key|index|number|no|joinid|barcode))"


def is_identifier(column: str) -> bool:
    """Whether a column identifies cells, donors, samples or data sets, such as donor_id, sampleID or barcode."""
    cells = rf"(?:{_CELLS}){_ENDINGS}|barcodes?|uuid|index"
    return bool(re.fullmatch(cells, column, re.IGNORECASE)) or bool(separators([column]))


def separators(columns: Iterable[str]) -> list[str]:
    """The columns that separate independent samples, such as donor_id before batch; of equal rank in their order."""
    names = list(columns)
    return [
        name for words in _SEPARATORS for name in names if re.fullmatch(rf"(?:{words}){_ENDINGS}*", name, re.IGNORECASE)
    ]
