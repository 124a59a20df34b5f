"""What Parquet files say about themselves."""

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.parts.footer import read_all, read_stamp, stamped
from scgpt_ray.storage import Folder

KEY = b"scgpt_ray.test"
TABLE = pa.table({"a": [1, 2, 3]})


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_a_stamp_comes_back_with_the_rows(tmp_path):
    write(tmp_path / "a", stamped(TABLE, KEY, {"n": 1, "names": ["x", "y"], "none": None}))
    assert read_stamp(Folder.at(tmp_path), "a", KEY) == ({"n": 1, "names": ["x", "y"], "none": None}, 3)


def test_a_stamp_replaces_what_was_there():
    assert set(stamped(stamped(TABLE, b"other", {}), KEY, {}).schema.metadata) == {KEY}


def test_files_without_a_stamp_say_nothing(tmp_path):
    folder = Folder.at(tmp_path)
    write(tmp_path / "plain", TABLE.replace_schema_metadata(None))
    write(tmp_path / "other", stamped(TABLE, b"other", {}))
    whole = (tmp_path / "other").read_bytes()
    (tmp_path / "torn").write_bytes(whole[:-20])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("plain", "other", "torn", "empty", "not there"):
        assert read_stamp(folder, name, KEY) is None


def test_many_are_read_in_their_order_and_nothing_is_left_away():
    names = [str(number) for number in range(100)]
    assert read_all(lambda name: int(name) if int(name) % 3 else None, names) == [n for n in range(100) if n % 3]
    assert read_all(str, []) == []
