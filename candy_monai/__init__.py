"""candy_monai: from a folder of labelled medical images to a trained, checked and deployable MONAI model.

Every public name is imported from its module on first use, so that ``import candy_monai`` itself is fast. They are
listed in the stub file beside this one, one per line, for type checkers and for the code below.
"""

from importlib import import_module as _import_module

with open(f"{__file__}i", encoding="utf-8") as _stub:
    _MODULE_OF = {
        _words[3]: _words[1].removeprefix("candy_monai.") for _words in map(str.split, _stub) if _words[:1] == ["from"]
    }
    """Maps public names to their modules, below this package."""

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("candy-monai")
    if name not in _MODULE_OF:
        from candy_monai.errors import did_you_mean

        hint = "" if name.startswith("_") else did_you_mean(name, _MODULE_OF)
        raise AttributeError(f"module 'candy_monai' has no attribute {name!r}.{hint}", name=name)
    value: object = getattr(_import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # later uses do not get here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, "__version__"})
