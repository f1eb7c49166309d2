import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from candy_monai.training.reporting import words_at_start
from candy_monai.training.signals import Interrupted, PromptStop, StopRequest, how_to_resume, is_ctrl_c, outlive_signals
from tests.toys import SmallTrainer, small_trainer

SCRIPT = """
    import os, signal, sys
    from tests.toys import SmallTrainer, small_trainer

    class Halting(SmallTrainer):
        def backward(self, images, labels, toolbox):
            if (self._current().progress.epoch, self._current().progress.batch) == (1, 0):
                os.kill(os.getpid(), signal.{signal})
            return super().backward(images, labels, toolbox)

    trainer = small_trainer(sys.argv[1], cls=Halting, console={console})
    {train}
"""
TRAIN = "trainer.train(3, save_preview=False)"


def _script(tmp_path, *, number="SIGINT", console=True, train=TRAIN, after=""):
    code = textwrap.dedent(SCRIPT).format(signal=number, console=console, train=textwrap.dedent(train))
    command = f'"{sys.executable}" -c "$0" "$1" {after}; echo "status ${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["bash", "-c", command, code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_script_that_is_interrupted_ends_with_130_without_a_traceback_and_says_how_to_go_on(tmp_path, number):
    result = _script(tmp_path, number=number)
    (folder,) = (tmp_path / "Halting").iterdir()
    assert result.stdout.endswith("status 130\n")
    assert f"trainer.resume('{folder.name}')" in result.stdout
    assert f"Interrupted in epoch 2: {number}\n" in (folder / "logs.txt").read_text()
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_script_that_catches_keyboard_interrupt_goes_on(tmp_path):
    train = f"try:\n    {TRAIN}\nexcept KeyboardInterrupt as error:\n    print('caught', error)"
    result = _script(tmp_path, console=False, train=train)
    assert "caught SIGINT\nstatus 0\n" in result.stdout
    assert "trainer.resume(" in result.stderr  # there is no console that says it


@pytest.mark.slow
def test_an_output_that_nobody_reads_any_more_does_not_end_the_run(tmp_path):
    train = f"trainer.__class__ = SmallTrainer\n{TRAIN}\nprint('over')\nprint('END', file=sys.stderr)"
    result = _script(tmp_path, train=train, after="| head -2")
    assert result.stdout.endswith("status 0\n")
    assert result.stderr == "END\n"
    (folder,) = (tmp_path / "SmallTrainer").iterdir()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4


def test_ctrl_c_between_set_up_and_the_first_step_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def pressed(*arguments, **keywords):
        signal.raise_signal(signal.SIGINT)
        return words_at_start(*arguments, **keywords)

    monkeypatch.setattr("candy_monai.training.run.words_at_start", pressed)
    trainer = small_trainer(tmp_path)
    with pytest.raises(Interrupted, match="^SIGINT$"):
        trainer.train(3, save_preview=False)
    assert f"trainer.resume('{trainer.experiment_folder().name}')" in capsys.readouterr().err


def test_what_resumes_a_run_is_said_in_python_or_as_a_command(tmp_path):
    folder = tmp_path / "my runs" / "20250101-01-abcd"
    said = how_to_resume(SmallTrainer, folder, is_planned=False, bundle=None)
    assert said.endswith("    trainer.resume('20250101-01-abcd')")
    assert how_to_resume(SmallTrainer, folder, is_planned=True, bundle="unet").endswith(
        f"candy-monai resume '{folder}'"
    )
    assert " resume ./-out --" in how_to_resume(SmallTrainer, Path("-out"), is_planned=True, bundle=None)
    said = how_to_resume(SmallTrainer, folder, is_planned=True, bundle=None)
    assert said.endswith("toys.py:SmallTrainer")
    assert "--trainer" in said


def test_an_interrupted_run_is_a_keyboard_interrupt_and_ends_a_program_with_130():
    error = Interrupted("SIGTERM")
    assert isinstance(error, KeyboardInterrupt)
    assert isinstance(error, SystemExit)
    assert (str(error), error.code) == ("SIGTERM", 130)


def test_what_resumes_the_run_is_in_its_log(tmp_path):
    class Asking(SmallTrainer):
        def backward(self, images, labels, toolbox):
            self._run.stop.ask("SIGTERM")
            return super().backward(images, labels, toolbox)

    trainer = small_trainer(tmp_path, cls=Asking)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        trainer.train(2, save_preview=False)
    assert "trainer.resume(" in (trainer.experiment_folder() / "logs.txt").read_text()


def test_sigusr1_asks_for_an_end_where_nobody_else_receives_it():
    asked = StopRequest()
    with asked.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.is_pending
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        with asked.listening():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not asked.is_pending
        assert received == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_remembers_a_request_that_would_end_what_surrounds_it_at_once():
    asked = StopRequest()
    with PromptStop().listening():
        with asked.listening():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert asked.is_pending
        with pytest.raises(Interrupted, match="SIGUSR1"):
            os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_only_a_user_s_own_end_is_ctrl_c():
    errors = (KeyboardInterrupt(), Interrupted("SIGINT"), Interrupted("SIGTERM"), Interrupted("SIGUSR1"), ValueError())
    assert list(map(is_ctrl_c, errors)) == [True, True, False, False, False]


class _Processes(Dataset):
    """Yields the process that makes each sample."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return os.getpid()


def test_the_workers_of_a_loader_outlive_signals_to_every_process_of_a_job():
    batches = iter(DataLoader(_Processes(), batch_size=1, num_workers=1, worker_init_fn=outlive_signals))
    worker = int(next(batches))
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1):
        os.kill(worker, number)
    assert [int(batch) for batch in batches] == [worker] * 11
