"""Label columns of a shard in memory: texts as numbers of one, two or four bytes per cell."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.records import ShardDescription
from scgpt_ray.storage import Folder

_CODES = (pa.int8(), pa.int16(), pa.int32())


def read_labels(folder: Folder, shard: ShardDescription, column: str) -> pa.Array:
    """Read a label column, one value per row of a shard; a text is a place in a dictionary, of the smallest type."""
    with folder.open(shard.labels) as stream:
        values = pq.read_table(stream, columns=[column])[column]
    if pa.types.is_string(values.type):
        values = values.dictionary_encode()
    values = values.unify_dictionaries().combine_chunks()
    if not pa.types.is_dictionary(values.type):
        return values
    n_values = len(values.dictionary)
    codes = next(code for code in _CODES if n_values <= np.iinfo(code.to_pandas_dtype()).max)
    return _with_codes(values, codes)


def of_rows(values: pa.Array, rows: pa.Array) -> pa.Array:
    """Some values of a column of `read_labels`, of the same type in all shards."""
    taken = values.take(rows)
    return _with_codes(taken, pa.int32()) if pa.types.is_dictionary(taken.type) else taken


def _with_codes(values: pa.DictionaryArray, codes: pa.DataType) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(values.indices.cast(codes), values.dictionary, ordered=values.type.ordered)
