"""Options from a file: --config fills in the options that the command line leaves out."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from patchindex.errors import InputError

__all__ = [
    "Recorded",
    "changes_options",
    "command_line",
    "config_option",
    "record_in",
    "record_of",
    "recorded_run",
    "settings_table",
]

MOST_BYTES = 64 * 2**20  # a samples.json has a record for each step of each batch
META = "patchindex_cli.config"  # where a context keeps the file of --config
# Options of one run. The record of a run leaves them out, and a record that has them is refused.
NOT_RECORDED = (
    *("dry-run", "other-inputs"),
    *("output", "html", "overwrite", "resume", "json", "config", "verbose", "quiet", "help"),
)
NOT_IN_FILES = ("config", "help")


class Recorded:
    """The file of --config: its path, and for the JSON of an earlier run the whole record."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path, self.record = path, record


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Read the file of --config, and make its values the defaults of the command."""
    if path is None or ctx.resilient_parsing:
        return
    data = _read(path)
    run = data.get("command")
    allowed = {_key(p): p for p in ctx.command.params if _key(p) not in NOT_IN_FILES}
    if isinstance(run, dict):
        if run.get("name") != ctx.command.name or not isinstance(run.get("options"), dict):
            raise InputError(
                f"is a run of {run.get('name')!r:.40}, not of {ctx.command.name}",
                where=path,
                remedy=f"give a file that patchindex {ctx.command.name} wrote",
            )
        ctx.meta[META] = Recorded(path, data)
        data = run["options"]
        allowed = {key: p for key, p in allowed.items() if key not in NOT_RECORDED}
    elif {"settings", "versions"} <= data.keys():
        raise InputError(
            "does not record the options of its run", where=path, remedy="give a file of a newer version"
        )
    defaults: dict[str, Any] = {}
    for name, value in data.items():
        key = name.replace("_", "-").lower()
        if isinstance(value, dict):
            raise InputError(
                f"{name!r:.80} is a table", where=path, remedy="write keys and values without a table"
            )
        chosen = allowed.get(key)
        if chosen is None:
            raise InputError(f"unknown key {name!r:.80}{_guess(key, ctx, allowed)}", where=path)
        if str(chosen.name) in defaults:
            raise InputError(f"{key} is given twice", where=path, remedy="give it once")
        defaults[str(chosen.name)] = _checked(chosen, value, ctx, f"{path}: {name}")
    ctx.default_map = defaults


def _read(path: Path) -> dict[str, Any]:
    """Return the contents of a TOML or JSON file, which may come from a stranger."""
    import tomllib

    from patchindex.regular_files import IrregularFileError, read_regular

    try:
        text = read_regular(path, MOST_BYTES, follow_links=True).decode()
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except IrregularFileError as error:
        raise InputError(error.what, where=path, remedy="give a TOML or JSON file") from None
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})", where=path, remedy="check --config"
        ) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise InputError(f"is no {kind} ({str(error)[:160]})", where=path, remedy="correct it") from None
    if not isinstance(data, dict):
        raise InputError("has no keys", where=path, remedy='write for example {"steps": 20}')
    return data


def _key(parameter: click.Parameter) -> str:
    """Return the key of a parameter: the long name of an option, or the name of an argument."""
    if isinstance(parameter, click.Argument):
        return str(parameter.name)
    return next((o for o in parameter.opts if o.startswith("--")), parameter.opts[0]).lstrip("-")


def _guess(key: str, ctx: click.Context, allowed: Mapping[str, click.Parameter]) -> str:
    """Return the end of a message about an unknown key: the nearest key, and all keys."""
    group = ctx.parent.command if ctx.parent is not None else None
    others = group.commands if isinstance(group, click.Group) else {}
    owners = [name for name, command in others.items() if key in map(_key, command.params)]
    near = difflib.get_close_matches(key, allowed, 1)
    end = f"; {ctx.command.name} takes {', '.join(sorted(allowed))}"
    if near:
        return f", did you mean {near[0]!r}?{end}"
    if key in NOT_IN_FILES or key in NOT_RECORDED:
        return f", which is for the command line only{end}"
    return f", an option of {', '.join(owners)}{end}" if owners else end


def _checked(parameter: click.Parameter, value: Any, ctx: click.Context, where: str) -> Any:
    """Return the value of a key as the command line would give it; refuse what the option refuses."""
    several = parameter.multiple or parameter.nargs == -1
    try:
        if several:
            given: Any = [_text(parameter, part) for part in (value if isinstance(value, list) else [value])]
        else:
            given = _text(parameter, value)
        parameter.type_cast_value(ctx, given)
    except click.UsageError as error:
        problem, choices = error.message.rstrip("."), ""
    except InputError as error:
        problem, choices = error.what, ""
    except ValueError as error:
        problem, choices = str(error), _wanted(parameter)
    else:
        return given
    remedy = f"give {choices}" if choices else f"see patchindex {ctx.command.name} --help"
    raise InputError(problem, where=where, remedy=remedy)


def _text(parameter: click.Parameter, value: Any) -> Any:
    """Return a value for click to convert; raise ValueError where its type cannot be right.

    click itself would take 20.5 or true for a whole number.
    """
    kind = parameter.type
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r:.80} is neither true nor false")
        return value
    if isinstance(value, list) and str(parameter.metavar or "").endswith(",..."):
        return ",".join(str(_text(parameter, part)) for part in value)
    number = isinstance(kind, click.types.IntParamType | click.types.FloatParamType)
    if isinstance(value, bool) or not isinstance(value, int | float if number else str | int | float):
        raise ValueError(f"{value!r:.80} is {_kind(value)}")
    text = str(value)
    if "\0" in text:
        raise ValueError("has a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{text!r:.80} is no text that a file name can have") from None
    return text


def _kind(value: object) -> str:
    kinds = {bool: "true or false", str: "text", list: "an array", dict: "a table"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _wanted(parameter: click.Parameter) -> str:
    """Return words for the values that a parameter takes."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "true or false"
    if isinstance(parameter.type, click.types.IntParamType):
        return "a whole number"
    return "a number" if isinstance(parameter.type, click.types.FloatParamType) else "text"


def recorded_run(ctx: click.Context) -> Recorded | None:
    """Return the earlier run that --config repeats, or None."""
    found: Recorded | None = ctx.meta.get(META)
    return found


def changes_options(ctx: click.Context) -> bool:
    """Return whether the command line gives an option that a record of a run has."""
    given = click.core.ParameterSource.COMMANDLINE
    return any(
        ctx.get_parameter_source(str(parameter.name)) is given
        for parameter in ctx.command.params
        if _key(parameter) not in NOT_RECORDED
    )


def record_of(ctx: click.Context) -> dict[str, Any]:
    """Return the name of the command and the options of its run, as the JSON of its results keeps them."""
    options = {}
    for parameter in ctx.command.params:
        key, value = _key(parameter), ctx.params.get(str(parameter.name))
        if key not in NOT_RECORDED and value not in (None, ()):
            options[key] = _plain(value)
        elif key == "threads":  # sums may depend on it
            options[key] = _threads()
    return {"name": ctx.command.name, "options": options}


def record_in(path: Path, **more: Any) -> None:
    """Add the options of the running command, and more, to a JSON file of its results."""
    from patchindex.store.atomic import atomic_write

    data = json.loads(path.read_text())
    data |= {"command": record_of(click.get_current_context()), **more}
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=2, default=str) + "\n").encode())


def _threads() -> int:
    """Return the CPU threads of a command without --threads."""
    import torch

    return torch.get_num_threads()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float) else str(value)


def command_line(ctx: click.Context) -> str:
    """Return the command with all values that are not the defaults, in one line."""
    words = ["patchindex", str(ctx.command.name)]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if value in (None, ()) or value == parameter.default:  # `get_default` has the values of the file
            continue
        if value is False and not parameter.secondary_opts:
            continue
        parts = value if isinstance(value, tuple) else (value,)
        if isinstance(parameter, click.Argument):
            words += map(str, parts)
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[-1])
        else:
            words += [word for part in parts for word in (parameter.opts[-1], str(part))]
    return shlex.join(words)


def settings_table(ctx: click.Context) -> list[tuple[str, str, str]]:
    """Return key, value and origin of each parameter that has a value."""
    origins = {"COMMANDLINE": "command line", "DEFAULT_MAP": "--config"}
    rows = []
    for parameter in ctx.command.params:
        value, source = ctx.params.get(str(parameter.name)), ctx.get_parameter_source(str(parameter.name))
        if value not in (None, ()):
            origin = origins.get(source.name if source else "", "default")
            shown = _plain(value)
            text = ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)
            rows.append((_key(parameter), text, origin))
    return rows


config_option = click.Option(
    ["--config"],
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="Read options from a TOML file, or from the JSON of an earlier run to repeat it. Options of the "
    "command line win.",
)
