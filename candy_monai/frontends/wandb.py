"""A dashboard at Weights & Biases, online, or offline in files that ``wandb sync`` uploads later."""

from __future__ import annotations

import netrc
import os
import secrets as randomness
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import override

from candy_monai.config import Secret, environment_variable
from candy_monai.errors import SettingsError
from candy_monai.experiment.events import RunScored, RunStarted
from candy_monai.frontends.dashboard import FAILED, FINISHED, INTERRUPTED, Dashboard, project_of, remember, remembered
from candy_monai.frontends.delivery import LAST_CHANCE_S
from candy_monai.optional import require

RUN_FILE = "wandb.json"
"""The file in the experiment folder with the id of the run at Weights & Biases."""
LONGEST_START_S = 20.0
"""Time-out for starting a run, which is then retried later, and for the end of a program."""

_KEY = "wandb_api_key"
_SERVER = "https://api.wandb.ai"
_EXIT_CODES = {FINISHED: 0, INTERRUPTED: 130, FAILED: 1}


class WandBFrontend(Dashboard):
    """Logs each run to Weights & Biases: its configuration, metrics by epoch, previews and summary.

    In online mode it needs the secret ``wandb_api_key``, ``WANDB_API_KEY``, or a previous ``wandb login``. With
    ``WANDB_MODE=offline`` it needs neither a secret nor a connection: the run is stored in ``wandb`` in the experiment
    folder, for ``wandb sync``. Other variables of the client work as usual, such as ``WANDB_ENTITY``,
    ``WANDB_BASE_URL`` and ``WANDB_PROJECT``, which is otherwise the name of the dataset or of the trainer.

    A resumed run is continued under the same id, which is stored in ``wandb.json`` in the experiment folder. In offline
    mode each part begins with all earlier epochs, so that the newest folder replaces those before it.

    Args:
        secrets: The user's secrets by name.

    Raises:
        MissingExtraError: If the client is not installed.
        SettingsError: If there is no key in online mode.
    """

    _logged: Any = None
    _exit_code: int | None = None

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        super().__init__(secrets)
        # What fails in the client is said in the log of the run; it need not be sent to its makers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = require("wandb", extra="wandb", purpose="report to Weights & Biases")
        self._mode = os.environ.get("WANDB_MODE") or "online"
        if self._mode == "online" and not self._secrets.get(_KEY) and not _has_login():
            raise SettingsError(
                f"WandBFrontend needs the secret {_KEY!r}: run 'candy-monai config set-secret {_KEY}', or set the "
                f"environment variable {environment_variable(_KEY)} or WANDB_API_KEY, or run 'wandb login'; "
                "WANDB_MODE=offline needs none, and keeps the run on this machine"
            )

    @override
    def _open(self, run: RunStarted, settings: Mapping[str, Any]) -> int:
        file = run.folder / RUN_FILE
        run_id = remembered(file).get("run_id")
        if not isinstance(run_id, str):
            run_id = randomness.token_hex(4)
            remember(file, {"run_id": run_id})
        self._exit_code, key = None, self._secrets.get(_KEY)
        self._logged = self._wandb.init(
            id=run_id,
            resume="allow" if self._mode == "online" else None,
            mode=self._mode,
            project=os.environ.get("WANDB_PROJECT") or project_of(run, settings),
            name=run.experiment_id,
            notes=run.note or None,
            config=dict(settings),
            dir=str(run.folder),
            reinit="create_new",  # the user may have a run of their own
            settings=self._wandb.Settings(
                api_key=None if key is None else str(key),
                allow_val_change=True,
                console="off",
                silent=True,
                save_code=False,
                init_timeout=LONGEST_START_S,
                finish_timeout=LAST_CHANCE_S,
            ),
        )
        self._logged.define_metric("epoch")
        self._logged.define_metric("*", step_metric="epoch")
        (Path(self._logged.dir) / "model_summary.txt").write_text(f"{run.summary}\n", encoding="utf-8")
        if self._mode == "offline" and run.epoch:
            self.log(f"The whole run is in {self._logged.settings.sync_dir}: sync this folder, not the earlier ones")
        return int(self._logged.summary.get("epoch") or 0) if self._logged.resumed else 0

    @override
    def _show_epochs(self, epochs: Mapping[int, Mapping[str, float]]) -> None:
        for epoch, metrics in epochs.items():
            self._logged.log({"epoch": epoch, **metrics})

    @override
    def _show_previews(self, pictures: Mapping[str, Path], epoch: int) -> None:
        self._logged.log({"epoch": epoch, **{name: self._wandb.Image(str(path)) for name, path in pictures.items()}})

    @override
    def _show_scores(self, scores: Mapping[str, float], event: RunScored) -> None:
        self._logged.summary.update({**scores, "final/num_cases": event.num_cases})

    @override
    def _show_end(self, status: str, facts: Mapping[str, str]) -> None:
        self._logged.summary.update(dict(facts))
        self._exit_code = _EXIT_CODES[status]

    @override
    def _close(self) -> None:
        logged, self._logged = self._logged, None
        logged.finish(exit_code=self._exit_code)


def _has_login() -> bool:
    """Return whether the client finds a key: in the environment, or in the file of ``wandb login``."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _SERVER).hostname or ""
    own = os.environ.get("NETRC")
    for file in [Path(own)] if own else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
