import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scgpt_ray.atlas import ragged as module
from scgpt_ray.atlas.ragged import add_totals, as_part, blocks, gather
from scgpt_ray.schema import ragged


class Refused(Exception):
    pass


def refuse(row, column, value):
    raise Refused(row, column, value)


def part(*entries):
    rows, columns, values = np.array(entries, dtype=np.float64).reshape(-1, 3).T
    return as_part(rows.astype(np.int64), columns.astype(np.int32), values)


TOKENS = np.array([5, -1, 7], np.int32)


def test_entries_of_a_cell_meet_from_all_parts():
    parts = [part((12, 2, 1), (10, 0, 2)), part((10, 2, 3))]
    table = gather(parts, np.array([10, 11, 12]), TOKENS, refuse)
    assert table["gene"].to_pylist() == [[5, 7], [], [7]]
    assert table["count"].to_pylist() == [[2.0, 3.0], [], [1.0]]
    assert table.schema.types == [pa.list_(pa.int32()), pa.list_(pa.float32())]


def test_unknown_genes_stored_zeros_and_other_rows_are_dropped():
    parts = [part((3, 1, 9), (3, 0, 0), (4, 0, 1), (5, 2, 4))]
    table = gather(parts, np.array([3, 5]), TOKENS, refuse)
    assert table["gene"].to_pylist() == [[], [7]]


def test_no_parts_make_empty_cells():
    assert gather([], np.array([8, 9]), TOKENS, refuse)["gene"].to_pylist() == [[], []]


def test_a_repeated_gene_stays_repeated():
    table = gather([part((0, 0, 1), (0, 0, 2))], np.array([0]), TOKENS, refuse)
    assert table["gene"].to_pylist() == [[5, 5]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 1e39])
@pytest.mark.parametrize("column", [0, 1])
def test_what_is_not_a_count_is_refused_also_outside_the_vocabulary(value, column):
    parts = [part((0, 0, 1)), part((0, 2, 1), (1, column, value))]
    for call in (gather, add_totals):
        with pytest.raises(Refused) as refusal:
            call(parts, np.array([0, 1]), TOKENS if call is gather else np.zeros(3), refuse)
        assert refusal.value.args[:2] == (1, column)


def test_what_is_not_a_count_is_passed_over_in_cells_not_selected():
    parts = [part((1, 0, np.nan), (2, 0, 1))]
    assert gather(parts, np.array([0, 2]), TOKENS, refuse)["gene"].to_pylist() == [[], [5]]


@pytest.mark.parametrize("column", [-1, 3])
def test_a_column_outside_of_var_is_refused(column):
    with pytest.raises(Refused):
        gather([part((0, column, 1))], np.array([0]), TOKENS, refuse)
    with pytest.raises(Refused):
        add_totals([part((0, column, 1))], np.array([0]), np.zeros(3), refuse)


def test_totals_add_up_over_selected_cells():
    totals = np.zeros(3)
    add_totals([part((0, 0, 1), (1, 0, 2), (2, 0, 4)), part((2, 2, 8))], np.array([0, 2]), totals, refuse)
    assert totals.tolist() == [5, 0, 8]


def test_blocks_split_where_the_tile_changes():
    assert [ids.tolist() for ids in blocks(np.array([0, 3, 4, 9, 11]), tile=4)] == [[0, 3], [4], [9, 11]]
    assert blocks(np.zeros(0, np.int64)) == []


@given(
    dense=hnp.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)),
    data=st.data(),
)
def test_gather_equals_the_definition(dense, data):
    n_rows, n_genes = dense.shape
    first = data.draw(st.integers(0, 5))
    tokens = np.array(data.draw(st.lists(st.integers(-1, 4), min_size=n_genes, max_size=n_genes)), np.int32)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, n_rows - 1), min_size=1))))
    rows, columns = np.indices(dense.shape).reshape(2, -1)
    order = np.array(data.draw(st.permutations(range(dense.size))))
    middle = data.draw(st.integers(0, dense.size))
    parts = [
        as_part(rows[piece] + first, columns[piece], dense.reshape(-1)[piece])
        for piece in (order[:middle], order[middle:])
    ]

    table = gather(parts, chosen + first, tokens, refuse)

    for row, genes, counts in zip(chosen, table["gene"].to_pylist(), table["count"].to_pylist(), strict=True):
        wanted = [(t, c) for t, c in zip(tokens, dense[row], strict=True) if t >= 0 and c > 0]
        assert sorted(zip(genes, counts, strict=True)) == sorted(wanted)
    assert ragged(table["gene"])[0][-1] == len(ragged(table["count"])[1])


def test_each_kernel_is_compiled_for_one_type():
    """Processes that compile one kernel for two types can exchange the codes in numba's cache."""
    writable = [np.array([0, 1]), np.array([0, 2]), np.ones(2, np.float32)]
    mapped = [pa.array(values).to_numpy() for values in writable]
    small = [np.array([0, 1], np.int32), np.array([0, 2], np.uint16), np.array([1, 2], np.int16)]
    for columns in (writable, mapped, small, [values[::-1] for values in writable]):
        parts = [as_part(*columns)]
        gather(parts, np.array([0, 1]), np.array(TOKENS), refuse)
        gather(parts, np.array([0, 1]), pa.array(TOKENS).to_numpy(), refuse)
        add_totals(parts, np.array([0, 1]), np.zeros(3), refuse)
    kernels = {name: kernel.signatures for name, kernel in vars(module).items() if hasattr(kernel, "signatures")}
    assert {name: len(found) for name, found in kernels.items()} == dict.fromkeys(
        ("_add", "_close_gaps", "_count_stored", "_scatter"), 1
    )
