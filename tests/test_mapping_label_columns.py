"""Names of columns that identify, and those that separate samples."""

import pytest

from scgpt_ray.mapping.label_columns import is_identifier, separators


@pytest.mark.parametrize(
    "name",
    ["donor_id", "donor", "Donor", "dataset_id", "data set", "batch", "sampleID", "sample_name", "orig.ident",
     "patient", "subject_id", "barcode", "cell_id", "cell_barcode", "CellID", "obs_id", "soma_joinid",
     "observation_joinid", "library", "channel", "uuid", "batch_key"],
)  # fmt: skip
def test_identifiers(name):
    assert is_identifier(name)


@pytest.mark.parametrize(
    "name",
    ["cell_type", "cell_type_ontology_term_id", "cell_label", "leiden", "tissue", "disease", "donor_age", "sample_type",
     "batch_corrected_cluster", "cluster_id", "celltype", "condition"],
)  # fmt: skip
def test_labels(name):
    assert not is_identifier(name)


def test_a_new_query_has_other_donors_before_other_batches():
    names = ["sample", "cell_type", "dataset_id", "batch", "donor_id", "patient"]
    assert separators(names) == ["donor_id", "patient", "batch", "dataset_id", "sample"]
    assert separators(["cell_type"]) == []
