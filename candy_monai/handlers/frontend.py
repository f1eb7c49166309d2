"""Report a run of MONAI's engines to dashboards."""

from __future__ import annotations

from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.config import load_secrets
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import find_frontend
from candy_monai.frontends.delivery import Dashboards
from candy_monai.handlers.engine_run import TrainerHandler
from candy_monai.handlers.options import RunOptions


class FrontendHandler(TrainerHandler):
    """Write a trainer's run to a dashboard, in a separate thread; use several handlers for several dashboards.

    In a run of several processes the first one writes.

    Args:
        frontend: The dashboard's class, or its name on the command line, such as ``"notion"``. It is created at once
            with the user's secrets, so that a missing one is reported before training.
        path_to_secrets: The folder of the secrets, instead of the user's config folder.

    Raises:
        BadInputError: If it is not a subclass of `Frontend`, or the name is unknown.
        SettingsError: If a secret is missing.

    Example:
        >>> handlers = [ValidationHandler(1, evaluator), FrontendHandler("notion")]  # doctest: +SKIP
    """

    may_be_several = True

    def __init__(self, frontend: type[Frontend] | str, path_to_secrets: PathLike | None = None) -> None:
        made = find_frontend(frontend, option="FrontendHandler")(load_secrets(path_to_secrets))
        self._dashboards = Dashboards(made)

    @override
    def contribute(self, options: RunOptions) -> None:
        options.records = True
        options.dashboards.append(self._dashboards)
