"""Settings classes as command-line parsers: an option for each field, under the headings of the classes."""

import argparse
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from scgpt_ray.config import Settings
from scgpt_ray.config.settings import option_name

_METAVARS = {int: "N", ByteSize: "SIZE", float: "X", str: "TEXT", dict: "KEY=VALUE"}


def add_options(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Give a parser the options of a verb.

    Words are not converted here: the settings validate them as they do what a YAML file or Python gives. Options that
    are not given stay absent, so that the file and the defaults apply.
    """
    required = [name for name, info in settings.model_fields.items() if info.is_required()]
    parser.usage = " ".join([parser.prog, *(f"{option_name(name)} TEXT" for name in required), "[--option value ...]"])
    examples = "\n".join(f"  {example}" for example in settings.examples)
    parser.epilog = f"examples, for the folder where `scgpt-ray demo` was run:\n{examples}"
    hints = get_type_hints(settings)
    for heading, names in settings.groups().items():
        group = parser.add_argument_group(heading)
        for name in sorted(names, key=lambda name: name not in required):
            _add_option(group, name, settings.model_fields[name], hints[name])
    group = parser.add_argument_group("Other")
    group.add_argument("--config", metavar="FILE.yaml", help="YAML file of these options; options given here win.")
    group.add_argument("-h", "--help", action="help", help="Show this text.")


def _add_option(group: Any, name: str, info: FieldInfo, hint: Any) -> None:
    text = " ".join((info.description or "").split()).replace("%", "%%") + _default(info)
    if hint is bool:
        group.add_argument(option_name(name), action="store_true", default=argparse.SUPPRESS, help=text)
        return
    kind = next(kind for kind in _union(hint) if kind is not types.NoneType)
    is_many = get_origin(kind) in (tuple, dict)
    item = dict if get_origin(kind) is dict else get_args(kind)[0] if is_many else kind
    choices = get_args(item) if get_origin(item) is Literal else ()
    option = group.add_argument(
        option_name(name),
        nargs="+" if is_many else None,
        action="extend" if is_many else "store",
        metavar=f"{{{','.join(choices)}}}" if choices else _METAVARS[item],
        default=argparse.SUPPRESS,
        help=text,
    )
    option.completer = lambda **_: choices  # for argcomplete


def _union(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _default(info: FieldInfo) -> str:
    """The end of an option's help; what None or an empty value stands for is in the help itself."""
    if info.is_required():
        return " Required."
    if info.annotation is bool or info.default_factory or info.default in (None, ()):
        return ""
    return f" Default: {' '.join(map(str, info.default)) if isinstance(info.default, tuple) else info.default}."
