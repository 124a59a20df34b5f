"""Bad input, as a table: exit code 2, one line that says what was found, nothing written, no Ray, no traceback.

A row is a verb, the options that differ from a good command of that verb, and a pattern of the line. An option may be a
function that makes its value in the folder of the test.
"""

import gzip
import json
import pickle
import re
import resource
import shutil
import subprocess
import sys
from typing import Literal, get_args, get_origin

import h5py
import numpy as np
import pytest
import torch

from scgpt_ray.cli import BAD_INPUT, main
from scgpt_ray.config.settings import option_name
from scgpt_ray.network.checkpoint import random_checkpoint
from scgpt_ray.records import Manifest, Plan
from scgpt_ray.verbs import VERBS


@pytest.fixture(scope="module")
def good(blood, checkpoint, make_soma, tmp_path_factory):
    """A folder with good input of all verbs."""
    import scgpt_ray

    place = tmp_path_factory.mktemp("good")
    cells = blood[:60].copy()
    logs = cells.copy()
    logs.X = logs.X.log1p()  # so that the counts are those of X
    cells.raw = logs
    cells.write_h5ad(place / "blood.h5ad")
    make_soma(blood[:60].copy(), place / "atlas")
    shutil.copytree(checkpoint, place / "checkpoint")
    made = {"executor": "serial", "output": str(place / "run")}
    scgpt_ray.embed(
        **made, atlas=str(place / "blood.h5ad"), checkpoint=str(place / "checkpoint"), obs_columns=["cell_type"],
        cells_per_partition=30,
    )  # fmt: skip
    scgpt_ray.build_index(executor="serial", embeddings=str(place / "run"), output=str(place / "index"))
    return place


COMMANDS = {
    "embed": {"atlas": "blood.h5ad", "checkpoint": "checkpoint"},
    "index": {"embeddings": "run"},
    "map": {"query": "blood.h5ad", "index": "index", "checkpoint": "checkpoint"},
    "integrate": {"embeddings": "run", "batch_column": "cell_type"},
    "pretrain": {"atlas": "blood.h5ad", "checkpoint": "checkpoint"},
    "validate": {},
    "verify": {"embeddings": "run"},
    "export": {"embeddings": "run"},
    "demo": {},
    "checkpoints": {},
    "benchmark": {},
}
"""Good commands, without `--output`; values are names in the folder of good input."""

PLACES = {"atlas", "query", "checkpoint", "embeddings", "index"}


def altered(change, source="blood.h5ad", name="altered.h5ad"):
    """A copy of an .h5ad file that `change` alters by h5py."""

    def make(good, place):
        shutil.copy(good / source, place / name)
        with h5py.File(place / name, "r+") as file:
            change(file)
        return place / name

    return make


def drop(*keys):
    def change(file):
        for key in keys:
            del file[key]

    return change


def value(change):
    """Change the values of X, a numpy array."""

    def write(file):
        values = change(file["X/data"][:])
        del file["X/data"]
        file["X/data"] = values

    return altered(write)


def last(number):
    def change(values):
        values[-1] = number
        return values

    return value(change)


def file(content, name="bad.h5ad"):
    """A file with some content, which may be a function of that of the good .h5ad file."""

    def make(good, place):
        data = content((good / "blood.h5ad").read_bytes()) if callable(content) else content
        (place / name).write_bytes(data)
        return place / name

    return make


def folder(name, *names):
    """A folder with empty files."""

    def make(_good, place):
        (place / name).mkdir()
        for each in names:
            (place / name / each).touch()
        return place / name

    return make


def old_anndata(_good, place):
    with h5py.File(place / "old.h5ad", "w") as made:
        made["X"] = np.ones((1, 1), np.float32)
        made["obs"] = np.array([(b"c0",)], dtype=[("index", "S2")])
        made["var"] = np.array([(b"g0",)], dtype=[("index", "S2")])
    return place / "old.h5ad"


def tenx(_good, place):
    with h5py.File(place / "tenx.h5", "w") as made:
        made["matrix/data"] = np.ones(1, np.int32)
    return place / "tenx.h5"


def copied(name, change):
    """A copy of a good folder that `change` alters."""

    def make(good, place):
        shutil.copytree(good / name, place / name)
        change(place / name)
        return place / name

    return make


def unchanged(_place):
    pass


def without(name):
    return lambda place: shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()


def holding(name, content):
    return lambda place: (place / name).write_bytes(content)


def torn(name):
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-40])


def setting(name, **changes):
    def change(place):
        values = json.loads((place / name).read_bytes())
        (place / name).write_text(json.dumps({**values, **changes}))

    return change


def tensors(change):
    def rewrite(place):
        found = torch.load(place / "best_model.pt", weights_only=True)
        change(found)
        torch.save(found, place / "best_model.pt")

    return rewrite


class Code:
    def __reduce__(self):
        return print, ("this would have run",)


def code(place):
    torch.save({"encoder.embedding.weight": Code()}, place / "best_model.pt", pickle_module=pickle)


def wider(_good, place):
    random_checkpoint(place / "wider", [f"GENE{number}" for number in range(60)], embsize=64, nheads=2, nlayers=1)
    return place / "wider"


NORM = "transformer_encoder.layers.1.norm1.weight"
HDF5 = "check the file with anndata.read_h5ad"
NEITHER = "neither a SOMA experiment nor an .h5ad file; expected "
ATLAS = [
    ("/nowhere", "/nowhere: no such file or folder"),
    ("/nowhere.h5ad", "/nowhere.h5ad: no such file or folder"),
    ("s3://key:secret@bucket/cells.h5ad", "--atlas holds a password, which belongs in the environment"),
    ("census:", "census:; expected a release"),
    (file(lambda content: content[:5000]), f"bad.h5ad: .*{HDF5}"),
    (file(lambda content: content[: len(content) - 100]), f"bad.h5ad: .*{HDF5}"),
    (file(b""), f"bad.h5ad: .*{HDF5}"),
    (file(b"cell,gene,count\n" * 99), f"bad.h5ad: .*{HDF5}"),
    (file(gzip.compress), f"bad.h5ad: .*{HDF5}"),
    (folder("cells.h5ad"), "cells.h5ad: a folder; expected a SOMA experiment or an .h5ad file"),
    (file(b"cell,gene,count\n", "cells.csv"), f"cells.csv: {NEITHER}.*AnnData.write_h5ad"),
    (file(b"#!/bin/sh\n", "run.sh"), f"run.sh: {NEITHER}.*; check the path"),
    (file(lambda content: content, "cells.hdf5"), f"cells.hdf5: {NEITHER}.*; rename it to cells.h5ad"),
    (tenx, rf'tenx.h5: {NEITHER}.*; convert it: scanpy.read_10x_h5\(".*/tenx.h5"\).write_h5ad\("tenx.h5ad"\)'),
    (folder("empty"), f"empty: {NEITHER}.*; check the path"),
    (folder("cells.zarr", ".zgroup", "X"), rf"cells.zarr: {NEITHER}.*anndata.read_zarr\("),
    (folder("tenx", "matrix.mtx.gz", "barcodes.tsv.gz"), rf'tenx: {NEITHER}.*scanpy.read_10x_mtx\(".*/tenx"\)'),
    (file(b"", "matrix.mtx"), rf"matrix.mtx: {NEITHER}.*scanpy.read_10x_mtx\("),
    ("run", f"run: {NEITHER}.*; name the atlas that was embedded, .* --embeddings"),
    (lambda good, _place: good / "atlas" / "ms", "not a SOMAExperiment"),
    (lambda good, _place: good / "atlas" / "obs", "a SOMA experiment"),
    (copied("atlas", without("obs")), "a SOMA experiment"),
    (copied("atlas", without("ms/RNA/X/raw/__schema")), "atlas.*; expected "),
    (old_anndata, "anndata < 0.7"),
    (altered(drop("obs")), f"altered.h5ad: .*{HDF5}"),
    (altered(drop("var")), f"altered.h5ad: .*{HDF5}"),
    (altered(drop("X/indptr")), f"altered.h5ad: .*{HDF5}"),
    (altered(drop("X/data")), f"altered.h5ad: .*{HDF5}"),
    (altered(drop("X", "raw", "layers")), "no layer X; expected one of .none found."),
    (altered(lambda made: made["X"].attrs.pop("encoding-type")), f"altered.h5ad: .*{HDF5}"),
    (altered(lambda made: made["X"].attrs.pop("shape")), f"altered.h5ad: .*{HDF5}"),
    (altered(lambda made: made["X"].attrs.modify("encoding-type", "coo")), f"altered.h5ad: .*{HDF5}"),
    (altered(lambda made: made["X"].attrs.modify("shape", np.array([59, 64]))), "but obs x var is 60 x 64"),
    (altered(lambda made: made["X/indptr"].__setitem__(5, 10**6)), "indptr is invalid"),
    (altered(lambda made: made["X/indptr"].__setitem__(-1, made["X/indptr"][-1] + 1)), "values, but indptr ends"),
    (altered(lambda made: made["X/indices"].__setitem__(3, 64)), "column 64, which has no row in var"),
    (altered(lambda made: made["X/indices"].__setitem__(3, -1)), "column -1, which has no row in var"),
    (altered(lambda made: made["obs"].attrs.modify("_index", "nothing")), f"altered.h5ad: .*{HDF5}"),
    (altered(lambda made: made["obs"].attrs.modify("encoding-type", "dict")), f"altered.h5ad: obs: .*{HDF5}"),
    (value(lambda values: values.astype("S4")), "X is a csr_matrix of .*, not a matrix of numbers"),
    (value(lambda values: values.astype(np.complex64)), "X is a csr_matrix of .*, not a matrix of numbers"),
    (last(-1), "cell cell-059 has -1 for gene .*; expected finite counts >= 0"),
    (last(np.nan), "cell cell-059 has NaN for gene .*; expected finite counts >= 0"),
    (last(np.inf), "cell cell-059 has inf for gene .*; expected finite counts >= 0"),
    (value(np.zeros_like), "have no counts; expected gene counts"),
]
EMBED = [
    ({"layer": "counts"}, "no layer counts; expected one of X, raw"),
    ({"obs_columns": "tissue"}, "obs has no column tissue; expected columns of obs_id, cell_type"),
    ({"obs_columns": "embedding"}, "embedding would clash with an output column"),
    ({"obs_filter": "cell_type =="}, "cell_type =="),
    ({"obs_filter": "tissue == 'blood'"}, "no column tissue; obs has cell_type"),
    ({"obs_filter": "cell_type == 'nothing'"}, "selects no cell"),
    ({"obs_filter": "cell_type > 3"}, "cell_type"),
    ({"gene_columns": "symbol"}, "var has no column symbol; expected one of index, feature_name"),
    ({"gene_columns": "index"}, "hold 0.0% of the counts"),
    ({"gene_table": "/nowhere.csv"}, "/nowhere.csv: .*No such file"),
    ({"gene_table": file(b"a,b,c\n", "genes.csv")}, "genes.csv, line 1: 3 columns"),
    ({"gene_table": file(b"\xff\xfe\x00", "genes.csv")}, "genes.csv: .*expected a readable CSV file"),
    ({"gene_table": file(b"text", "genes.csv.gz")}, "genes.csv.gz: .*expected a readable CSV file"),
    ({"gene_table": folder("genes.csv")}, "genes.csv: .*expected a readable CSV file"),
    ({"snapshot": "5"}, "--snapshot 5"),
    ({"atlas": "atlas", "snapshot": "5"}, "atlas.*5"),
    ({"atlas": "atlas", "measurement": "ADT"}, "no measurement ADT; expected one of RNA"),
    ({"atlas": "atlas", "layer": "normalized"}, "no X layer normalized; expected one of raw"),
    ({"atlas": "atlas", "obs_filter": "cell_type == 'nothing'"}, "selects no cell"),
    ({"atlas": "atlas", "obs_columns": "tissue"}, "obs has no column tissue"),
    ({"atlas": "atlas", "storage": "region"}, "'region' is not KEY=VALUE"),
    ({"atlas": "atlas", "storage": "vfs.s3.region=eu"}, "vfs.s3.region"),
    ({"atlas": "atlas", "storage": "secret_key=hunter2"}, "secret_key.*(environment|profile)"),
    ({"atlas": "census:stable", "census_directory": "/nowhere.json"}, "/nowhere.json"),
    ({"atlas": "census:stable", "census_directory": file(b"{", "release.json")}, "release.json"),
    ({"precision": "float16"}, "float16 was asked for on a CPU"),
    ({"gpus": "1"}, "--gpus 1 on a machine without a GPU"),
    ({"device": "gpu"}, "--device gpu on a machine without a GPU; .*; drop --device, or set RAY_ADDRESS"),
    ({"wait_for_gpus": "20"}, "'20' is not a time like 20m"),
    ({"gpus": "1", "actors": "2"}, "give one of --gpus and --actors"),
    ({"actors": "1", "actors_per_gpu": "2"}, "--actors-per-gpu needs GPUs"),
    ({"flavor": "seurat"}, "--flavor and --rank-by need --highly-variable"),
    ({"output": "/proc/nowhere/out"}, "cannot be written"),
    ({"output": file(b"", "file")}, "file.*; expected a writable folder"),
    ({"output": copied("run", setting(Plan.file, format=9))}, "plan.json cannot be used: format: "),
    ({"output": copied("run", torn(Plan.file))}, "plan.json cannot be used: Invalid JSON"),
    ({"output": copied("run", torn(Manifest.file))}, "manifest.json cannot be used: Invalid JSON"),
    ({"output": copied("run", setting(Manifest.file, news=1))}, "manifest.json cannot be used: news: Extra inputs"),
    ({"output": copied("run", unchanged), "seed": "4"}, "holds run .*, this is .*seed: 4 against 0"),
    ({"config": "/nowhere.yaml"}, "--config /nowhere.yaml: .*expected a readable file"),
    ({"config": file(b"atlas: [", "embed.yaml")}, "expected valid YAML"),
    ({"config": file(b"\xff\xfe\x00", "embed.yaml")}, "expected (a readable file|valid YAML)"),
    ({"config": file(b"- a\n- b\n", "embed.yaml")}, "a list; expected a mapping"),
    ({"config": file(b"", "embed.yaml")}, "a NoneType; expected a mapping"),
    ({"config": file(b"max_lenght: 64\n", "embed.yaml")}, "unknown option --max-lenght.*did you mean --max-length.$"),
    ({"config": file(b"max_length: [64]\n", "embed.yaml")}, r"--max-length is \[64\]; expected a valid integer"),
]
CHECKPOINT = [
    ("/nowhere", "/nowhere has no args.json and no vocab.json and no best_model.pt"),
    (file(b"", "model.pt"), "model.pt.*; expected"),
    (copied("checkpoint", without("args.json")), "checkpoint has no args.json"),
    (copied("checkpoint", without("vocab.json")), "checkpoint has no vocab.json"),
    (copied("checkpoint", without("best_model.pt")), "checkpoint has no best_model.pt"),
    (copied("checkpoint", holding("model.safetensors", b"")), "has both best_model.pt and model.safetensors"),
    (copied("checkpoint", holding("args.json", b"{")), "args.json is not JSON"),
    (copied("checkpoint", holding("args.json", b"\xff")), "args.json is not JSON"),
    (copied("checkpoint", holding("args.json", b"[]")), "args.json is not a JSON object"),
    (copied("checkpoint", setting("args.json", nlayers=3)), "layers.2"),
    (copied("checkpoint", setting("args.json", nheads=5)), "nheads"),
    (copied("checkpoint", setting("args.json", embsize="32")), "embsize"),
    (copied("checkpoint", setting("args.json", n_bins=101)), "n_bins 101"),
    (copied("checkpoint", holding("vocab.json", b"[]")), "vocab.json"),
    (copied("checkpoint", holding("vocab.json", b"{")), "vocab.json"),
    (copied("checkpoint", holding("vocab.json", b"\xff")), "vocab.json"),
    (copied("checkpoint", setting("vocab.json", GENE1=0)), "vocab.json"),
    (copied("checkpoint", setting("vocab.json", MORE=63)), "encoder.embedding.weight has 63 rows|vocab.json"),
    (copied("checkpoint", torn("best_model.pt")), "best_model.pt"),
    (copied("checkpoint", holding("best_model.pt", b"")), "best_model.pt"),
    (copied("checkpoint", holding("best_model.pt", b"text")), "best_model.pt"),
    (copied("checkpoint", holding("best_model.pt", pickle.dumps({"a": 1}, protocol=2))), "best_model.pt"),
    (copied("checkpoint", code), "best_model.pt"),
    (copied("checkpoint", tensors(lambda found: found.pop(NORM))), NORM),
    (copied("checkpoint", tensors(lambda found: found.update({NORM: torch.ones(3)}))), NORM),
    (copied("checkpoint", tensors(lambda found: found.update({NORM: torch.full((32,), np.nan)}))), NORM),
    (copied("checkpoint", tensors(lambda found: found.update({"surprise": torch.ones(3)}))), "surprise"),
    ("hf://owner", "hf://owner"),
    ("whole-humen", "whole-humen"),
]
EMBEDDINGS = [
    ("/nowhere", "/nowhere has no manifest.json; .*; give its path to --embeddings"),
    (copied("run", without(Manifest.file)), "has no manifest.json; .*; run the same embed command again"),
    (copied("run", torn(Manifest.file)), "manifest.json cannot be used: Invalid JSON"),
    (copied("run", holding(Manifest.file, b"")), "manifest.json cannot be used: Invalid JSON"),
    (copied("run", holding(Manifest.file, b"[]")), "manifest.json cannot be used: "),
    (copied("run", holding(Manifest.file, b"\xff")), "manifest.json cannot be used: "),
    (copied("run", setting(Manifest.file, format=9)), "manifest.json cannot be used: format: "),
    (copied("run", setting(Manifest.file, n_cells=7)), "manifest.json cannot be used: .*7 cells"),
]
REST = [
    ("index", {"label_columns": "donor"}, "--label-columns donor; expected columns the embeddings carry .cell_type"),
    ("index", {"factory": "nonsense"}, "nonsense"),
    ("index", {"factory": "IVF4096,SQ8"}, "IVF4096,SQ8"),
    ("index", {"memory_budget": "8 parsecs"}, "memory-budget is '8 parsecs'; expected a size such as 8GB"),
    ("index", {"memory_budget": "0GB"}, "memory-budget is '0GB'; expected greater than 0"),
    ("index", {"output": copied("index", unchanged), "seed": "3"}, "holds run .*seed: 3 against 0"),
    ("index", {"output": copied("index", torn("index.json"))}, "index.json cannot be used: Invalid JSON"),
    ("index", {"append": True}, "out has no index.json"),
    ("map", {"index": "/nowhere"}, "/nowhere has no index.json; .*; give its path to --index"),
    ("map", {"index": "run"}, "run has no index.json"),
    ("map", {"index": copied("index", without("index.json"))}, "has no index.json; .*; run the same index command"),
    ("map", {"index": copied("index", torn("index.json"))}, "index.json cannot be used: Invalid JSON"),
    ("map", {"index": copied("index", setting("index.json", format=9))}, "index.json cannot be used: format: "),
    ("map", {"index": copied("index", setting("index.json", n_cells=9))}, "index.json cannot be used: .*9 cells"),
    (
        "map",
        {"index": copied("index", without("fitness.json"))},
        "index has no fitness.json; .*; build the index again",
    ),
    ("map", {"index": copied("index", torn("fitness.json"))}, "fitness.json cannot be used: Invalid JSON"),
    ("map", {"index": copied("index", without("markers.parquet"))}, "index has no markers.parquet"),
    ("map", {"truth_map": "/nowhere", "truth_column": "cell_type"}, "--truth-map /nowhere: .*No such file"),
    ("map", {"index": copied("index", without("shard-00000.faiss"))}, "shard-00000.faiss is missing"),
    (
        "map",
        {"index": copied("index", torn("shard-00000.faiss"))},
        "shard-00000.faiss has .* bytes; .* --repair",
    ),
    ("map", {"index": copied("index", without("ids-00000.npy"))}, "ids-00000.npy is missing"),
    ("map", {"index": copied("index", torn("ids-00000.npy"))}, "ids-00000.npy has .* bytes"),
    (
        "map",
        {"index": copied("index", without("labels-00000.parquet"))},
        "labels-00000.parquet (is missing|has)",
    ),
    ("map", {"index": copied("index", torn("labels-00000.parquet"))}, "labels-00000.parquet (is missing|has)"),
    ("map", {"checkpoint": wider}, r"differ in the model \(vocabulary|differ in the model \(weights"),
    ("map", {"k": "61"}, "--k 61: .* holds 59 cells; .*; lower --k"),
    ("map", {"label_columns": "donor"}, "keeps no column donor; expected one of cell_type"),
    ("map", {"truth_column": "tissue"}, "obs has no column tissue"),
    ("map", {"exclude_same": "donor"}, "keeps no column donor"),
    ("map", {"neighbor_filter": "age > 3"}, "--neighbor-filter 'age > 3': no column age"),
    ("integrate", {"batch_column": "site"}, "carries no column site; expected one of n_genes, cell_type"),
    ("integrate", {"label_column": "cell_type"}, "name a column twice"),
    ("integrate", {"embeddings": "a.parquet"}, "names the file a.parquet first"),
    ("integrate", {"counts": "/nowhere.h5ad"}, "/nowhere.h5ad: no such file"),
    ("pretrain", {"atlas": "/nowhere.h5ad"}, "/nowhere.h5ad: no such file"),
    ("pretrain", {"label_column": "tissue"}, "obs has no column tissue"),
    ("pretrain", {"checkpoint": "/nowhere"}, "/nowhere has no args.json"),
    ("pretrain", {"validation_filter": "tissue == 'x'"}, "no column tissue"),
    ("validate", {}, "give one of --embeddings and --index"),
    ("validate", {"embeddings": "run", "index": "index"}, "give one of --embeddings and --index"),
    ("validate", {"index": "run"}, "run has no index.json"),
    ("validate", {"embeddings": copied("run", without(Manifest.file))}, "has no manifest.json"),
    ("verify", {"atlas": "/nowhere.h5ad"}, "/nowhere.h5ad: no such file"),
    ("verify", {"checkpoint": wider}, r"differ in the model \("),
    ("verify", {"embeddings": copied("run", without(Plan.file))}, "plan.json holds no whole request"),
    ("verify", {"embeddings": copied("run", torn(Plan.file))}, "plan.json cannot be used"),
    ("verify", {"embeddings": copied("run", without("parts"))}, "part-00000.parquet"),
    ("checkpoints", {"names": "whole-humen"}, "whole-humen"),
    ("demo", {"checkpoint": "/nowhere"}, "/nowhere has no args.json"),
]
ROWS = [
    *(("embed", {"atlas": bad}, pattern) for bad, pattern in ATLAS),
    *(("embed", changes, pattern) for changes, pattern in EMBED),
    *(("embed", {"checkpoint": bad}, pattern) for bad, pattern in CHECKPOINT),
    *((verb, {"embeddings": bad}, pattern) for verb in ("index", "export") for bad, pattern in EMBEDDINGS),
    *REST,
]


def command(verb, changes, good, place):
    """The words of a command."""
    output = {} if verb in ("validate", "verify", "checkpoints", "benchmark") else {"output": place / "out"}
    words = [verb]
    for name, asked in {**COMMANDS[verb], **output, **changes}.items():
        made = asked(good, place) if callable(asked) else asked
        made = good / made if name in PLACES and isinstance(made, str) and (good / made).exists() else made
        words += [option_name(name)] if made is True else [option_name(name), str(made)]
    return words


def state(*places):
    """All folders, and the files with their times; a lease changes the time of its folder for a moment."""
    found = [path for place in places for path in place.rglob("*")]
    return {path: path.is_file() and path.stat().st_mtime_ns for path in found}


def ray_runs():
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def refused(capsys, words):
    """Run, and return the one line of a refusal."""
    was_on = ray_runs()
    code = main(words)
    shown = capsys.readouterr()
    assert code == BAD_INPUT, shown.err
    assert ray_runs() == was_on, "Ray is not asked for"
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("scgpt-ray: ")
    assert "; expected " in line
    return line


@pytest.mark.parametrize(("verb", "changes", "pattern"), ROWS)
def test_bad_input(verb, changes, pattern, good, tmp_path, capsys):
    words = command(verb, changes, good, tmp_path)
    before = state(good, tmp_path)
    assert re.search(pattern, refused(capsys, words))
    assert state(good, tmp_path) == before, "nothing is written"


def wrong_values(info):
    """Values of an option that are out of one of its bounds, of another type, or not among its choices."""
    hints = [info.annotation, *get_args(info.annotation)]
    hints += [hint for each in hints for hint in get_args(each)]
    nested = [limit for hint in hints for item in getattr(hint, "__metadata__", ()) for limit in item.metadata]
    for limit in (*info.metadata, *nested):
        for bound, step in {"ge": -1, "gt": 0, "le": 1, "lt": 0}.items():
            if hasattr(limit, bound):
                yield str(getattr(limit, bound) + step)
    if {int, float} & set(filter(lambda hint: isinstance(hint, type), hints)):
        yield "many"
    if any(get_origin(hint) is Literal for hint in hints):
        yield "nonsense"


MISTAKES = [
    (verb, name, wrong)
    for verb, entry in VERBS.items()
    for name, info in entry.settings_class().model_fields.items()
    for wrong in wrong_values(info)
]


@pytest.mark.parametrize(("verb", "name", "wrong"), MISTAKES)
def test_options_out_of_range(verb, name, wrong, capsys):
    line = refused(capsys, [verb, f"{option_name(name)}={wrong}"])
    assert f"{option_name(name)} is " in line or f"{option_name(name)}: " in line


WORDS = [
    ([], "no verb; expected one of embed, index, map, .*, benchmark; see scgpt-ray --help"),
    (["--foo"], "unknown option --foo; expected one of embed, index,"),
    (["embad"], "unknown verb embad; expected one of embed, index, .*; did you mean embed[?]"),
    (["frobnicate"], "; see scgpt-ray --help"),
    (["embed"], "embed: --atlas is missing; --checkpoint is missing; --output is missing"),
    (["embed", "--atl", "x"], "unknown option --atl;"),
    (["embed", "--atlas="], "--atlas is ''; .* at least 1 character for --atlas"),
    (["embed", "--atlas", "a", "--batch-size", "3"], "embed: unknown option --batch-size; "),
    (["embed", "--max-lenght=3"], "; did you mean --max-length[?]"),
    (["embed", "--frobnicate", "3"], "; see scgpt-ray embed --help"),
    (["embed", "cells.h5ad"], "embed: cells.h5ad belongs to no option; expected options, which start with --"),
    (["embed", "--seed"], "embed: --seed has no value; expected one value; see scgpt-ray embed --help"),
    (["embed", "--obs-columns", "--seed", "1"], "--obs-columns has no value; expected at least one value"),
    (["index", "--append=yes"], "index: --append: ignored explicit argument 'yes'; expected options and"),
]


@pytest.mark.parametrize(("words", "pattern"), WORDS)
def test_wrong_words(words, pattern, capsys):
    assert re.search(pattern, refused(capsys, words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "changes", "pattern", "seconds"),
    [
        ("validate", {"embeddings": "/nowhere"}, EMBEDDINGS[0][1], 3),
        ("export", {"embeddings": EMBEDDINGS[2][0]}, EMBEDDINGS[2][1], 3),
        ("embed", {"atlas": ATLAS[4][0]}, ATLAS[4][1], 3),
        ("embed", {"checkpoint": "/nowhere"}, "/nowhere has no args.json", 3),
    ],
)
def test_a_process_answers_within_seconds(verb, changes, pattern, seconds, good, tmp_path):
    """Seconds of one core, since machines are shared; tried again, since neighbours and cold files take some, too."""
    words = command(verb, changes, good, tmp_path)

    def taken():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "scgpt_ray", *words], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == BAD_INPUT
        assert done.stdout == ""
        assert re.search(pattern, done.stderr.splitlines()[-1])
        assert "Traceback" not in done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(taken() < seconds for _ in range(3))
