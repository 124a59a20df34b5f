"""What `map` refuses to be asked."""

import pytest

from scgpt_ray.config import MapSettings
from scgpt_ray.errors import ConfigError

NEEDED = {"query": "q", "index": "i", "checkpoint": "c", "output": "o"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"calibrate_by": "none", "target_error": 0.05},
            "map: --target-error needs a calibration, not",
        ),
        ({"calibrate_by": "none", "false_rejection": 0.0}, "map: --false-rejection needs a calibration, not"),
        ({"calibrate_by": "donor", "target_error": 1.5}, "--target-error is 1.5; expected less than or equal to 1"),
        ({"calibrate_by": "donor", "calibration_cells": 0}, "--calibration-cells is 0"),
        ({"calibrate_by": "donor", "label_columns": ["donor"]}, "--label-columns donor cannot be calibrated"),
        (
            {"calibrate_by": "donor", "exclude_same": ["dataset"], "label_columns": ["cell_type", "dataset"]},
            "--label-columns dataset cannot be calibrated",
        ),
        ({"weighting": "rank"}, "--weighting is 'rank'; expected 'uniform' or 'distance'"),
        ({"balance_by": ""}, "--balance-by"),
        ({"without_terms": True, "term_column": "t"}, "give one of --term-column and --without-terms"),
        ({"term_share": 0.0}, "--term-share is 0.0; expected greater than 0"),
    ],
)
def test_mistakes_are_reported_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MapSettings.of(NEEDED | options)
    assert "\n" not in str(caught.value)


def test_what_a_cell_of_the_calibration_does_not_meet():
    assert MapSettings.of(NEEDED).excluded_columns == ()
    both = MapSettings.of(NEEDED | {"calibrate_by": "donor", "exclude_same": ["dataset", "donor"]})
    assert both.excluded_columns == ("donor", "dataset")
    assert MapSettings.of(NEEDED | {"exclude_same": ["donor"], "label_columns": ["donor"]}).calibrate_by == "auto"
    assert MapSettings.of(NEEDED | {"calibrate_by": "none"}).calibrate_by is None
