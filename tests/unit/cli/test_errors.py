import pytest

from candy_monai.cli.errors import DONE, done


@pytest.mark.parametrize(
    ("rank", "printed"), [(None, "Experiment: runs/a\n"), ("0", "Experiment: runs/a\n"), ("1", "")]
)
def test_of_several_processes_the_first_says_where_the_result_is(monkeypatch, capsys, rank, printed):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert done("Experiment", "runs/a") == DONE
    assert capsys.readouterr().out == printed
