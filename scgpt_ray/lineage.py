"""OpenLineage events of a command: which data sets it read and wrote, and how it ended.

The events follow https://openlineage.io/spec/2-0-2/OpenLineage.json, and the facets their own schemas there.
"""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scgpt_ray import __version__
from scgpt_ray.errors import redacted

_INPUTS = ("atlas", "query", "embeddings", "index", "template", "counts", "checkpoint")
_OUTPUTS = ("output", "index_output")
_SPEC = "https://openlineage.io/spec"
_PRODUCER = f"https://pypi.org/project/scgpt-ray/{__version__}"
_ENDED = {"done": "COMPLETE", "incomplete": "COMPLETE", "interrupted": "ABORT"}
_TABLES = (("parts", "part-"), ("", "predictions"))
"""Folder below an output, and start of the names, of the files that hold its rows."""


class Lineage:
    """The events of one run.

    Args:
        verb: Name of the command.
        settings: Its settings; options that name data are found by their names.
    """

    def __init__(self, verb: str, settings: Any) -> None:
        # Imported on need: the help of the command line does not wait for pyarrow.
        from scgpt_ray.storage import Folder

        values = {name: value for name, value in settings if value}
        self._outputs = [Folder.at(values[name]) for name in _OUTPUTS if name in values]
        self._inputs = [_named(place) for name in _INPUTS for place in _places(values.get(name))]
        names = ["scgpt_ray", verb, *(Path(output.uri).name for output in self._outputs[:1])]
        self._job = {"namespace": os.environ.get("OPENLINEAGE_NAMESPACE", "default"), "name": ".".join(names)}
        self._run = str(uuid.uuid4())

    def start(self) -> dict[str, Any]:
        """The event of the start."""
        return self._event("START", {}, {})

    def end(self, ending: dict[str, Any]) -> dict[str, Any]:
        """The event of the end, with the number of rows and the schema of what was written.

        Args:
            ending: What `result.json` holds.
        """
        kind = _ENDED.get(ending["status"], "FAIL")
        if kind != "COMPLETE":
            reason = {"message": redacted(str(ending.get("reason", ending["status"]))), "programmingLanguage": "python"}
            return self._event(kind, {"errorMessage": _facet("ErrorMessageRunFacet", "1-0-1", reason)}, {})
        written: dict[str, Any] = {}
        if "n_cells" in ending:
            rows = _facet("OutputStatisticsOutputDatasetFacet", "1-0-2", {"rowCount": ending["n_cells"]})
            written["outputFacets"] = {"outputStatistics": rows}
        if self._outputs and (fields := _fields(self._outputs[0])):
            written["facets"] = {"schema": _facet("SchemaDatasetFacet", "1-2-0", {"fields": fields})}
        return self._event(kind, {}, written)

    def _event(self, kind: str, facets: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
        engine = {"name": "scgpt_ray", "version": __version__}
        facets = {"processing_engine": _facet("ProcessingEngineRunFacet", "1-1-1", engine), **facets}
        outputs = [_named(output.uri) for output in self._outputs]
        return {
            "eventType": kind,
            "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": {"runId": self._run, "facets": facets},
            "job": self._job,
            "inputs": self._inputs,
            "outputs": [{**output, **written} for output in outputs[:1]] + outputs[1:],
            "producer": _PRODUCER,
            "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        }


def _facet(name: str, edition: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"_producer": _PRODUCER, "_schemaURL": f"{_SPEC}/facets/{edition}/{name}.json#/$defs/{name}", **values}


def _places(value: Any) -> list[str]:
    """The places that an option names."""
    return [value] if isinstance(value, str) else list(value or ())


def _named(place: str) -> dict[str, str]:
    """Namespace and name of a data set, as OpenLineage's naming conventions have them for files and buckets."""
    if "://" in place:
        parts = urlsplit(place)
        return {"namespace": f"{parts.scheme}://{parts.netloc}", "name": parts.path.strip("/") or "/"}
    if place.startswith("/") or Path(place).exists():
        return {"namespace": "file", "name": str(Path(place).resolve())}
    scheme, colon, name = place.partition(":")  # census:RELEASE; the name of a checkpoint
    return {"namespace": scheme, "name": name} if colon else {"namespace": "scgpt_ray", "name": place}


def _fields(output: Any) -> list[dict[str, str]]:
    """Names and types of the columns in an output folder; none where it holds no table, or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for below, prefix in _TABLES:
            folder = output.folder(below) if below else output
            for name in folder.names():
                if name.startswith(prefix):
                    with folder.open(name) as stream:
                        return [{"name": field.name, "type": str(field.type)} for field in pq.read_schema(stream)]
    except (OSError, pa.ArrowException):
        return []  # the event says less; the run is as it is
    return []
