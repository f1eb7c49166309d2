import pytest

from candy_monai.deprecation import renamed_arguments


@renamed_arguments(size="shape")
def _area(shape, *, scale=1):
    """Return an area."""
    return shape[0] * shape[1] * scale


def test_an_earlier_name_works_and_its_caller_is_warned():
    with pytest.warns(DeprecationWarning, match="size is now called shape") as caught:
        assert _area(size=(2, 3), scale=2) == 12
    assert caught[0].filename == __file__


def test_the_new_name_and_positions_work_without_a_word(recwarn):
    assert _area((2, 3)) == _area(shape=(2, 3)) == 6
    assert not recwarn.list


def test_both_names_at_once_are_refused():
    with pytest.raises(TypeError, match="size is the earlier name of shape"):
        _area(size=(2, 3), shape=(2, 3))


def test_the_function_keeps_its_signature_and_its_docstring():
    assert _area.__wrapped__.__kwdefaults__ == {"scale": 1}
    assert _area.__doc__ == "Return an area."
