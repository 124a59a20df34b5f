"""The command line: `scgpt-ray VERB [--config FILE.yaml] [--option value ...]`.

Every option is a field of the verb's settings class. Exit codes: 0 done, 1 failure, 2 bad input. The last line on
stdout is one JSON object, the result.
"""

import argparse
import json
import logging
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from scgpt_ray import verbs
from scgpt_ray.errors import ConfigError, InputError, ScgptRayError

DONE, FAILED, BAD_INPUT = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ours: one line with found, expected and remedy."""

    def error(self, message: str) -> Any:
        raise ConfigError(message, expected="a verb and its options", remedy=f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: Words after the program's name; None for those of this process.

    Returns:
        The exit code.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("faiss", "jax", "matplotlib", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        options = vars(_parser().parse_args(arguments))
        verb = verbs.VERBS[options.pop("verb")]
        config = options.pop("config")
        result = verb.run(verb.settings.load(config, options))
    except InputError as error:
        sys.stderr.write(f"scgpt-ray: {error}\n")
        return BAD_INPUT
    except (ScgptRayError, OSError) as error:
        sys.stderr.write(f"scgpt-ray: {error}\n")
        return FAILED
    sys.stdout.write(f"{result.text}\n{json.dumps(result.values)}\n")
    return DONE if result.is_good else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scgpt-ray",
        allow_abbrev=False,
        description="Embed single-cell atlases with scGPT on Ray, index them with faiss, map new cells onto them.",
        epilog="Options may also stand in a YAML file (--config); options given here win.",
    )
    chosen = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in verbs.VERBS.items():
        summary = (verb.settings.__doc__ or "").strip()
        sub = chosen.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument("--config", metavar="FILE.yaml", help="YAML file of these options, without the dashes")
        own = verb.settings.__annotations__
        for field in sorted(verb.settings.model_fields, key=lambda field: field not in own):  # own options first
            _add_option(sub, field, verb.settings.model_fields[field])
    return parser


def _add_option(parser: argparse.ArgumentParser, field: str, info: FieldInfo) -> None:
    """One option for one field; absent ones stay absent, so that the file and the defaults can speak."""
    read, many = _reader(info.annotation)
    text = (info.description or "").replace("\n", " ").replace("%", "%%")
    if info.is_required():
        text += " Required."
    elif info.default is not None and info.default_factory is None and info.default != ():
        default = " ".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default
        text += f" [default: {default}]"
    name = "--" + field.replace("_", "-")
    if info.annotation is bool:
        parser.add_argument(name, dest=field, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    parser.add_argument(
        name,
        dest=field,
        type=read,
        nargs="+" if many else None,
        action=_Pairs if read is _pair else "store",
        choices=_choices(info.annotation),
        metavar=None if _choices(info.annotation) else _METAVARS[read],
        default=argparse.SUPPRESS,
        help=text,
    )


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not KEY=VALUE")
    return key, value


_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", _pair: "KEY=VALUE"}


class _Pairs(argparse.Action):
    """Collect KEY=VALUE words into a dict."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: Any = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), **dict(values)})


def _reader(annotation: Any) -> tuple[Callable[[str], Any], bool]:
    """How one word of an option is read, and whether there may be several."""
    kinds = _kinds(annotation)
    if tuple in kinds:
        return (float if float in _items(annotation) else str), True
    if dict in kinds:
        return _pair, True
    return next((kind for kind in (int, float) if kind in kinds), str), False


def _items(annotation: Any) -> set[Any]:
    """Plain types of the items of a tuple[X, ...], which may be annotated."""
    if hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    return {kind for item in get_args(annotation) if item is not Ellipsis for kind in _kinds(item)}


def _kinds(annotation: Any) -> set[Any]:
    """Plain types in an annotation such as Annotated[int, ...] | None."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    if hasattr(annotation, "__metadata__"):
        return _kinds(get_args(annotation)[0])
    return {origin or annotation}


def _choices(annotation: Any) -> tuple[str, ...] | None:
    return get_args(annotation) if get_origin(annotation) is Literal else None
