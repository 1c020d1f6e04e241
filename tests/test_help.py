"""--help of every script reads well on a terminal of 80 columns."""

import argparse

import benchmark
import pytest

import export
import inference
import prepare_data
import report
import train
import tsne

SCRIPTS = (benchmark, export, inference, prepare_data, report, train, tsne)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every script's parser and those of its commands, by what one types."""
    found = {f"{script.__name__}.py": script.build_parser() for script in SCRIPTS}
    for name, parser in list(found.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update({f"{name} {command}": sub for command, sub in action.choices.items()})
    return found


@pytest.mark.parametrize("name", parsers())
def test_no_line_of_the_help_is_wider_than_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = parsers()[name].format_help().splitlines()
    assert len(lines) > 8
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("name", parsers())
def test_the_help_opens_with_what_it_does_and_one_command_and_explains_every_flag(name: str) -> None:
    parser = parsers()[name]
    assert parser.description is not None
    assert f"    python {name.split()[0]} " in parser.description
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.option_strings
