"""The tasks of scGPT's zero-shot tutorials as recipes, on real blood cells with the network that ships."""

import contextlib
import io
import json

import anndata
import numpy as np
import pytest

from jobs import integration, reference_mapping
from scgpt_ray.evaluation.sample import strata_of, stratified_sample
from scgpt_ray.pipelines.integrate import BASELINE

pytestmark = pytest.mark.slow

pytest.importorskip("scib_metrics", reason="needs scib-metrics: pip install 'scgpt-ray[eval]'")
pytest.importorskip("leidenalg", reason="needs leidenalg: pip install 'scgpt-ray[eval]'")
pytest.importorskip("umap", reason="needs umap-learn: pip install 'scgpt-ray[eval]'")

COARSE = "cell_type_coarse"
TYPES = ["T", "B", "NK", "Monocyte"]
"""What pbmc_facs and pbmc3k have in common, but for the CD34+ cells that attract this network's monocytes."""
NETWORK = ["--checkpoint", "demo", "--max-length", "256", "--gene-columns", "feature_name", "symbol_gencode44"]
N_CELLS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture(scope="module")
def some_cells(shared, folder):
    """Writes a stratified sample: some_cells(file, columns, column=values to keep, ...) -> path."""

    def write(name, *columns, **kept):
        cells = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
        cells = cells[np.logical_and.reduce([cells.obs[column].isin(values) for column, values in kept.items()])]
        strata = strata_of(*(cells.obs[column].to_numpy(str) for column in columns))
        path = folder / f"{name}.h5ad"
        cells[stratified_sample(strata, N_CELLS, seed=0)].copy().write_h5ad(path)
        return str(path)

    return write


def printed(recipe, *words):
    """Run a recipe, and return its lines and the JSON object in the last."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        recipe.main([*words, *NETWORK])
    lines = output.getvalue().splitlines()
    return lines, json.loads(lines[-1])


def test_reference_mapping(some_cells, folder):
    """pbmc_facs has labels by sorting, pbmc3k by clustering."""
    lines, result = printed(
        reference_mapping,
        *("--reference", some_cells("pbmc_facs", COARSE, **{COARSE: TYPES})),
        *("--query", some_cells("pbmc3k", COARSE, **{COARSE: TYPES})),
        *("--label-column", COARSE, "--output", str(folder / "mapping")),
    )
    mine, majority = result["methods"]["embeddings + kNN"], result["methods"]["majority class"]
    assert result["n"] == N_CELLS
    assert mine["accuracy"] > majority["accuracy"] + 0.25
    assert mine["macro_f1"] > 0.7
    assert lines[1].startswith("embeddings + kNN ")
    assert result["published"] is None
    assert json.loads((folder / "mapping" / "mapped" / "metrics.json").read_bytes())["scores"]["n"] == N_CELLS
    assert (folder / "mapping" / "mapped" / "report.html").is_file()


@pytest.fixture(scope="module")
def evaluated(some_cells, folder):
    """Integrates some cells: evaluated(file, batch column, column=values to keep) -> lines, scores, effects by name."""

    def run(name, batch_column, *more, **kept):
        lines, result = printed(
            integration,
            *("--cells", some_cells(name, "cell_type", batch_column, **kept), "--output", str(folder / name)),
            *("--label-column", "cell_type", "--batch-column", batch_column, *more),
        )
        metrics = json.loads((folder / name / "integration" / "metrics.json").read_bytes())
        assert result["n_evaluated"] == metrics["integration"]["n"] == N_CELLS
        scores = {each["name"]: each for each in metrics["integration"]["scores"]}
        return lines, scores, {effect["name"]: effect for effect in metrics["effects"]}

    return run


def test_integration_over_donors(evaluated):
    """Donors of one laboratory differ little: nothing to remove, and nothing that the network adds."""
    lines, scores, effects = evaluated(
        "kang_ctrl_12k",
        "donor",
        cell_type=["CD4 T cells", "CD14+ Monocytes", "B cells"],
        donor=["d1015", "d1256", "d1488"],
    )
    assert (effects["donor"]["kind"], effects["donor"]["unit"]) == ("cannot tell", "cell"), "a donor is one replicate"
    assert [embedding["variance"]["factor"] < 0.02 for embedding in effects["donor"]["embeddings"]] == [True, True]
    assert scores["demo"]["avg_bio"] > 0.75
    assert scores["demo"]["avg_batch"] > 0.85
    assert not [line for line in lines if line.startswith("published")]


def test_integration_over_stimulation(evaluated):
    """Interferon drives single genes: principal components part the cells by it, the network by type."""
    words = ("--replicate-column", "donor")
    _, scores, effects = evaluated("kang_ctrlstim", "condition", *words, condition=["ctrl", "stim"])
    condition = effects["condition"]
    assert (condition["kind"], condition["unit"]) == ("cannot tell", "donor"), "two donors are too few"
    assert condition["replicates"] == {"ctrl": 2, "stim": 2}
    assert {"IFIT1", "CXCL10"} <= {gene["gene"] for gene in condition["shift"]["genes"]["strongest"]}
    mine, components = condition["embeddings"]
    assert (mine["embedding"], components["embedding"]) == ("demo", BASELINE)
    assert components["probe"]["score"] > 0.9
    assert scores[BASELINE]["ilisi"] < 0.3
    assert not {"nmi", "asw_batch", "kbet", "pcr_comparison"} & set(scores["demo"]["undefined"])
    assert components["purity"]["share"] > mine["purity"]["share"] + 0.2
    assert scores["demo"]["avg_bio"] > scores[BASELINE]["avg_bio"] + 0.1
    assert scores["demo"]["avg_batch"] > scores[BASELINE]["avg_batch"] + 0.03  # .943 and .898 by scib's definitions


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    words = ["--cells", "/nowhere.h5ad", "--label-column", "cell_type", "--batch-column", "donor"]
    with pytest.raises(SystemExit) as caught:
        integration.main([*words, *NETWORK, "--output", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "/nowhere.h5ad: no such file" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
