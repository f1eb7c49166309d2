"""``candy-monai completion``: a completion script for a shell, made from the declarations of the commands."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

from candy_monai.cli.errors import DONE, PROGRAM
from candy_monai.cli.options import Subparsers, new_command

_BASH = """\
_candy_monai() {{
    local word command= words=
    for word in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
        case $word in {commands}) command=$word; break ;; esac
    done
    case "$command ${{COMP_WORDS[$((COMP_CWORD - 1))]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _candy_monai {program}
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "completion",
        run,
        summary="write a completion script for your shell",
        text="Write to standard output a script with which a shell completes the commands, their options, and values "
        "from a fixed list. File names are completed as usual. bash and fish find the files below by "
        "themselves; ~/.zshrc needs the line 'source ~/.candy-monai.zsh'.",
        example="candy-monai completion bash > ~/.local/share/bash-completion/completions/candy-monai\n"
        "candy-monai completion zsh > ~/.candy-monai.zsh\n"
        "candy-monai completion fish > ~/.config/fish/completions/candy-monai.fish",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell: bash, zsh or fish")
    parser.set_defaults(commands=subparsers)  # all of them, once they are parsed


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    subparsers: Subparsers = args.commands
    summaries = {action.dest: action.help or "" for action in subparsers._choices_actions}
    script = _for_fish(subparsers.choices, summaries) if args.shell == "fish" else _for_bash(subparsers.choices)
    if args.shell == "zsh":  # which runs such scripts
        script = f"autoload -Uz bashcompinit && bashcompinit\n{script}"
    print(script, end="")
    return DONE


def _for_bash(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    cases = [f"        ' '*) words={shlex.quote(' '.join([*commands, '--help', '--version']))} ;;"]
    for name, parser in commands.items():
        shown = _shown(parser)
        for action in shown:
            if action.option_strings and action.nargs != 0:
                patterns = "|".join(f"'{name} {flag}'" for flag in action.option_strings)
                cases.append(f"        {patterns}) words={shlex.quote(_choices(action))} ;;")
        flags = [flag for action in shown for flag in action.option_strings]
        choices = [_choices(action) for action in shown if not action.option_strings and action.choices]
        cases.append(f"        {shlex.quote(f'{name} ')}*) words={shlex.quote(' '.join([*choices, *flags]))} ;;")
    return _BASH.format(commands="|".join(commands), cases="\n".join(cases), program=PROGRAM)


def _for_fish(commands: Mapping[str, argparse.ArgumentParser], summaries: Mapping[str, str]) -> str:
    lines = []
    for name, parser in commands.items():
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name} -d {shlex.quote(summaries[name])}")
        here = f"complete -c {PROGRAM} -n {shlex.quote(f'__fish_seen_subcommand_from {name}')}"
        for action in _shown(parser):
            flags = "".join(f" -{'l' if flag[1] == '-' else 's'} {flag.lstrip('-')}" for flag in action.option_strings)
            words = _choices(action)
            values = f" -x -a {shlex.quote(words)}" if words else ""
            if flags and not values and action.nargs != 0:
                values = " -r"
            about = parser._get_formatter()._expand_help(action) if action.help else ""
            if flags or values:
                lines.append(f"{here}{flags}{values} -d {shlex.quote(about)}")
    return "\n".join(lines) + "\n"


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def _choices(action: argparse.Action) -> str:
    """Return the values from a fixed list: the choices, or the words in lower case of a metavar as ``2d|3d|auto``."""
    alternatives = str(action.metavar).split("|")
    literal = [word for word in alternatives if word.islower()] if len(alternatives) > 1 else []
    return " ".join(map(str, action.choices or literal))
