"""The command line: `scgpt-ray VERB [--config FILE.yaml] [--option value ...]`.

Every option is a field of the verb's settings class. Exit codes: 0 done, 1 failure, 2 bad input, 3 done but for cells
that could not be read or embedded, 4 done but the embeddings have drifted, 130 Ctrl-C, 143 SIGTERM. The last line on
stdout is one JSON object, the result. `result.json` in the output folder has it as well, or why the run ended, but for
bad input, which changes nothing.
"""

import argparse
import gc
import json
import logging
import os
import re
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn

from scgpt_ray import __version__
from scgpt_ray.ending import Terminated, interruptible, write_result
from scgpt_ray.errors import ConfigError, InputError, ScgptRayError
from scgpt_ray.notices import Notices
from scgpt_ray.object_store import ObjectStore, pairs, using
from scgpt_ray.progress import LogHandler, Stage
from scgpt_ray.verbs import VERBS, store_of

DONE, FAILED, BAD_INPUT, INCOMPLETE, GATE_FAILED = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143
"""128 and the number of the signal, as shells have it."""

SPINS = "1000"
"""How often an idle OpenMP thread looks for work before it sleeps; the default of 300,000 takes cores from others.

With another busy process on the machine two threads then embed 1.4 to 2 times as fast; without one, `embed` takes as
long as before, and a search 6 to 22 % longer.
"""

NEW_OBJECTS = 20_000
"""After how many new objects Python looks for garbage; its default is 700, of which the libraries make millions.

The demo then takes 15 % less time, at the same peak of memory.
"""

logger = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ours: one line with found, expected and remedy."""

    def error(self, message: str) -> NoReturn:
        # Such as: argument --seed: expected one argument.
        found, _, expected = message.removeprefix("argument ").partition(": expected ")
        raise ConfigError(
            f"{self.prog.partition(' ')[2]}: {found}{' has no value' if expected else ''}",
            expected=expected.replace("argument", "value") or "options and their values",
            remedy=f"see {self.prog} --help",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: Words after the program's name; None for those of this process.

    Returns:
        The exit code.
    """
    logging.basicConfig(
        handlers=[LogHandler(sys.stderr)], level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("anndata", "faiss", "httpx2", "jax", "matplotlib", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch and faiss are imported
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
    began, settings, notices = time.monotonic(), None, Notices()
    try:
        with interruptible():
            name, options = _read(sys.argv[1:] if arguments is None else arguments)
            settings = _load(name, options)
            notices.start(name, settings)
            logger.info("scgpt-ray %s: %s", __version__, name)  # the libraries of a verb take seconds to import
            # Ray prints messages of the raylet to stdout, which is for the result.
            with Stage(name), redirect_stdout(sys.stderr):
                result = VERBS[name].run(settings)
    except InputError as error:
        return _end(None, notices, began, BAD_INPUT, status="refused", reason=str(error))
    except (ScgptRayError, OSError) as error:
        return _end(settings, notices, began, FAILED, status="failed", reason=str(error))
    except KeyboardInterrupt as stop:
        reason = "interrupted; what is committed stays, and the same command resumes"
        return _end(
            settings, notices, began, TERMINATED if isinstance(stop, Terminated) else INTERRUPTED, reason=reason
        )
    values = {"verb": name, **_output(settings), **result.to_dict()}
    code = _code(values)
    status = {DONE: "done", INCOMPLETE: "incomplete", GATE_FAILED: "gate_failed"}.get(code, "failed")
    _end(settings, notices, began, code, status=status, **values)
    sys.stdout.write(f"{result.text()}\n{json.dumps(values)}\n")
    return code


def _code(values: dict[str, Any]) -> int:
    if "exit_code" in values:  # that of a job
        return int(values["exit_code"])
    if "gate_failed" in (values.get("gate"), values.get("refresh")):
        return GATE_FAILED
    if values.get("n_quarantined"):
        return INCOMPLETE
    return DONE if values.get("ok", True) else FAILED


def _end(
    settings: Any, notices: Notices, began: float, code: int, *, status: str = "interrupted", **values: Any
) -> int:
    """Say why a run ended early, write `result.json`, and notify those who are listed in the environment."""
    if "reason" in values:
        sys.stderr.write(f"scgpt-ray: {values['reason']}\n")
    ending = {"status": status, "exit_code": code, "seconds": round(time.monotonic() - began, 1), **values}
    if settings is not None and (place := _output(settings)):
        with using(store_of(settings)):
            write_result(place["output"], ending)
    notices.end(ending)
    return code


def _read(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb, and the options that were given, unknown ones among them.

    Raises:
        ConfigError: If there is no such verb, a value is missing, or a word belongs to no option.
    """
    words = [re.sub(r"(?<=^--)[^=]+", lambda name: name[0].replace("_", "-"), word) for word in words]
    verb = next((word for word in words if not word.startswith("-")), "")
    completes = "_ARGCOMPLETE" in os.environ
    parser = _parser([*VERBS] if completes else [verb])
    if completes:
        import argcomplete

        argcomplete.autocomplete(parser)
    if verb and verb not in VERBS:
        raise _no_verb(f"unknown verb {verb}", verb)
    found, unknown = parser.parse_known_args(words)
    if not verb:
        raise _no_verb(f"unknown option {unknown[0]}" if unknown else "no verb", "")
    bare = VERBS[verb].settings_class().bare if unknown else None
    if bare is not None and not unknown[0].startswith("-"):
        setattr(found, bare, unknown.pop(0))
    options = {word[2:].partition("=")[0].replace("-", "_"): None for word in unknown if word.startswith("--")}
    if unknown and not options:
        raise ConfigError(
            f"{verb}: {unknown[0]} belongs to no option", expected="options, which start with --",
            remedy=f"see scgpt-ray {verb} --help",
        )  # fmt: skip
    return verb, {name: value for name, value in vars(found).items() if name != "verb"} | options


def _load(name: str, options: dict[str, Any]) -> Any:
    """The settings of a verb; a configuration file on an object store is reached by the options alone.

    Raises:
        ConfigError: If they cannot be read, or are wrong.
    """
    place = options.pop("config", None)
    try:
        store = ObjectStore.of(pairs(options.get("storage", [])))
    except ValueError as error:
        raise ConfigError(
            f"{name}: --storage: {error}", expected="another value", remedy=f"see scgpt-ray {name} --help"
        ) from None
    with using(store):
        return VERBS[name].settings_class().load(place, options)


def _output(settings: Any) -> dict[str, str]:
    """The place of a verb's output, absolute."""
    # Imported on need: after the verb has run, it is there.
    from scgpt_ray.storage import Folder

    is_written = settings.writes and hasattr(settings, "output")
    return {"output": Folder.at(settings.output).uri} if is_written else {}


def _no_verb(found: str, word: str) -> ConfigError:
    from scgpt_ray.config.settings import did_you_mean

    remedy = did_you_mean(word, VERBS, "see scgpt-ray --help")
    return ConfigError(found, expected=f"one of {', '.join(VERBS)}", remedy=remedy)


def _parser(names: Collection[str]) -> argparse.ArgumentParser:
    """All verbs, and the options of some."""
    parser = _Parser(
        prog="scgpt-ray",
        allow_abbrev=False,
        description="Embed single-cell atlases with scGPT on Ray, index them with faiss, map new cells onto them.",
        epilog="`scgpt-ray VERB --help` shows the options of a verb, with examples. `scgpt-ray demo` tries them all.",
    )
    parser.add_argument("--version", action="version", version=f"scgpt-ray {__version__}")
    chosen = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, verb in VERBS.items():
        sub = chosen.add_parser(
            name,
            help=verb.summary,
            description=verb.summary,
            allow_abbrev=False,
            add_help=False,  # among the options of the verb, which come first
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in names:
            # Imported on need: pydantic takes longer than everything else that help of the program needs.
            from scgpt_ray.options import add_options

            add_options(sub, verb.settings_class())
    return parser
