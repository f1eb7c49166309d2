"""``candy-monai config``: the user's secrets and settings, and where they are."""

from __future__ import annotations

import argparse
import getpass
import sys

from candy_monai.cli.errors import DONE, say
from candy_monai.cli.options import Subparsers, add_debug, new_command
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import TrainSettings


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "config",
        run,
        summary="store secrets, and show settings and where they are",
        text="Store a secret for a dashboard, in a file that only you can read; list the names of the secrets; show "
        "the settings in effect. The value of a secret is never shown, and never accepted on the command line.",
        example="candy-monai config set-secret notion_api_key\n"
        "candy-monai config list-secrets\n"
        "candy-monai config show",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    store = actions.add_parser(
        "set-secret", help="ask for a secret's value and store it", description=set_secret.__doc__, allow_abbrev=False
    )
    add_debug(store, default=argparse.SUPPRESS)
    store.add_argument("name", metavar="NAME", help="for example notion_api_key")
    # To be refused without being repeated. With a default, argparse does not name it among what is missing.
    store.add_argument("value", nargs="*", default=(), help=argparse.SUPPRESS)
    for name, function in (("list-secrets", list_secrets), ("show", show), ("path", path)):
        text = (function.__doc__ or "").partition("\n")[0]
        summary = text[0].lower() + text[1:].rstrip(".")
        action = actions.add_parser(name, help=summary, description=text, allow_abbrev=False)
        add_debug(action, default=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.action == "set-secret":
        set_secret(args.name, given=bool(args.value))
    else:
        {"list-secrets": list_secrets, "show": show, "path": path}[args.action]()
    return DONE


def set_secret(name: str, *, given: bool = False) -> None:
    """Ask for the value without showing it, or read one line from a pipe, and store it so that only you can read it."""
    from candy_monai.config import environment_variable, is_in_environment, save_secret

    if given or "=" in name:
        raise SettingsError(
            "give only the name of the secret: a value on the command line could be read by others, and stays in the "
            "shell's history. The value is asked for, or read from a pipe"
        )
    value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.readline()
    file = save_secret(name, value.strip())
    print(f"Stored {name} in {file}")
    if is_in_environment(name):
        print(
            f"note: the environment variable {environment_variable(name)} is set and takes precedence", file=sys.stderr
        )


def list_secrets() -> None:
    """List the names of the secrets, and the origin of each."""
    from candy_monai.config import environment_variable, is_in_environment, load_secrets, secrets_file

    names = sorted(load_secrets())
    for name in names:
        source = f"environment ({environment_variable(name)})" if is_in_environment(name) else str(secrets_file())
        print(f"{name:<{max(map(len, names))}}  {source}")
    if not names:
        print("No secrets: store one with 'candy-monai config set-secret NAME'", file=sys.stderr)


def show() -> None:
    """Print the settings in effect as YAML, their files, and settings that training would refuse."""
    import yaml

    from candy_monai.config import config_folder, load_secrets, load_settings, settings_files

    print(f"# folder: {config_folder()}")
    for file in settings_files():
        print(f"# settings: {file.absolute()}")
    print(f"# secrets: {', '.join(sorted(load_secrets())) or 'none'}")
    settings = load_settings()
    if settings:
        print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), end="")
        try:
            TrainSettings.check_names(settings, source="settings")
            TrainSettings(**{"num_epochs": 1, **settings})  # type: ignore[arg-type]  # it checks them
        except SettingsError as error:
            say(f"warning: {error}")
    else:
        print(f"# no settings: write them into {config_folder() / 'settings.yml'} or ./settings.yml")


def path() -> None:
    """Print the folder of the user's settings and secrets."""
    from candy_monai.config import config_folder

    print(config_folder())
