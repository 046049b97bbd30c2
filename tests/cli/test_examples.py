"""Every option of every command has an example in --help or in the documentation."""

import re
import shlex
from pathlib import Path

import click
import pytest
from patchindex_cli.app import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def texts():
    """Yield the name and the text of each page, and of each command's --help."""
    for page in PAGES:
        yield page.name, page.read_text()
    for name, command in main.commands.items():
        yield f"{name} --help", (command.help or "").replace("\\b", "")


def examples():
    """Yield where, command and words of each example: a line, or a span in backticks."""
    for where, text in texts():
        joined = re.sub(r"\\\n\s*", "", text)
        lines = re.findall(r"^ *(?:\$ )?(patchindex [a-z].*)$", joined, re.MULTILINE)
        for line in [*lines, *re.findall(r"`(patchindex [a-z][^`]*)`", joined)]:
            _, name, *words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
            if name in main.commands:
                yield where, name, words


def flags_of(option):
    return {*option.opts, *option.secondary_opts}


def options_without_example():
    used = {name: set() for name in main.commands}
    for _, name, words in examples():
        used[name] |= {word.partition("=")[0] for word in words if word.startswith("-")}
    options = [
        (name, option)
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option)
    ]
    shown = {
        (*option.opts, option.help) for name, option in options if flags_of(option) & used[name]
    }  # commands share options
    return [
        f"{name} {option.opts[-1]}" for name, option in options if (*option.opts, option.help) not in shown
    ]


def test_every_option_has_an_example():
    found = options_without_example()
    assert not found, f"options without an example in --help or docs: {', '.join(found)}"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_examples_have_options_and_arguments_that_exist(name):
    command = main.commands[name]
    for where, other, words in examples():
        if other == name and words and not {"...", "--help"} & {*words}:
            context = click.Context(command, info_name=name)
            try:
                _, rest, _ = command.make_parser(context).parse_args([*words])
            except click.UsageError as error:
                pytest.fail(f"{where}: patchindex {name} {shlex.join(words)}: {error.format_message()}")
            assert not rest, (where, words)
