"""``candy-monai new-bundle``: write a commented package with a bundle to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from candy_monai.cli.errors import DONE, PROGRAM, done
from candy_monai.cli.options import Subparsers, new_command
from candy_monai.cli.starting_files import camel_case, check_module_name, render, write_new
from candy_monai.errors import BadInputError
from candy_monai.text import as_word


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "new-bundle",
        run,
        summary="write a package with a bundle to start from",
        text="Write a Python package with a working bundle: a module with a network and its trainer, a pyproject.toml "
        "through which candy_monai finds it once it is installed, and a test. Existing files are not "
        "overwritten.",
        example="candy-monai new-bundle my_network\ncandy-monai new-bundle my_network --out packages/my-network",
    )
    parser.add_argument("name", metavar="NAME", help="the name of the bundle, such as my_network")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the folder to write, new or empty (default: the name, in the current folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.registry import bundle_names

    name: str = args.name
    check_module_name(name, bundles=bundle_names())
    folder: Path = args.out or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(
            f"{folder} already exists and is not an empty folder: give another one with --out, or remove it"
        )
    names = {"name": name, "class_name": camel_case(name), "distribution": name.replace("_", "-")}
    write_new(folder / "pyproject.toml", render("bundle.toml", **names))
    write_new(folder / f"{name}.py", render("bundle.py", **names))
    write_new(folder / f"test_{name}.py", render("bundle_test.py", **names))
    done("Bundle", folder, then=["pip", "install", "-e", as_word(folder)])
    print(f"Then: {PROGRAM} train DATASET --bundle {name}")
    return DONE
