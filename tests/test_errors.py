import pickle
from importlib import import_module

import pytest

from scgpt_ray import errors


def test_message_says_found_expected_remedy_in_one_line():
    error = errors.AtlasError("x.h5ad\n is cut off", expected="an HDF5 file", remedy="copy it again")
    assert str(error) == "x.h5ad is cut off; expected an HDF5 file; copy it again"


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.AtlasError, errors.CheckpointError, errors.OutputError])
def test_input_errors_are_value_errors_and_travel_between_processes(kind):
    error = kind("found", expected="expected", remedy="remedy")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, ValueError)
    assert type(copy) is kind
    assert str(copy) == str(error)


def test_an_interruption_is_found_below_other_errors():
    stop, above = KeyboardInterrupt(), errors.RunError("failed")
    try:
        try:
            raise stop
        except KeyboardInterrupt:
            raise SystemError from stop
    except SystemError:
        try:
            raise above
        except errors.RunError as error:
            found = error
    assert [errors.interruption(error) for error in (stop, found)] == [stop, stop]
    assert [errors.interruption(error) for error in (None, OSError(), SystemExit())] == [None, None, None]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:secret@host:80/a and s3://key:se/cret", "at http://me:***@host:80/a and s3://key:se/cret"),
        ("https://me@host/path:with@signs", "https://me@host/path:with@signs"),
        ("https://host?Token=abc&x=1&secret_key=d", "https://host?Token=***&x=1&secret_key=***"),
        ("https://me:p@ss@host/x@y", "https://me:***@host/x@y"),
        (
            "s3://b?X-Amz-Signature=a&X-Amz-Credential=b&sig=c",
            "s3://b?X-Amz-Signature=***&X-Amz-Credential=***&sig=***",
        ),
        ("https://host?signs=a&design=b&api_key=c", "https://host?signs=a&design=b&api_key=***"),
        ("a token=abc, key: value@home", "a token=abc, key: value@home"),
    ],
)
def test_passwords_in_uris_are_redacted(text, shown):
    assert errors.redacted(text) == shown


def test_a_package_that_is_not_installed_is_named():
    with (
        pytest.raises(
            errors.ConfigError, match=r"^UMAP needs .*: no_such; expected umap-learn; pip install .*\[eval\]"
        ),
        errors.optional("UMAP", "umap-learn"),
    ):
        import_module("no_such")
    with pytest.raises(errors.ConfigError, match="not installed: please install it"), errors.optional("x", "y"):
        raise ImportError("please install it")
