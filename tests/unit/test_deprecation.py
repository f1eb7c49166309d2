import pytest

from candy_monai.deprecation import earlier_attribute, earlier_name, renamed_arguments


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


class _Box:
    width = 2
    wide = earlier_attribute("wide", "width")

    def area(self, *, scale=1):
        return self.width * scale

    size = earlier_name("size", area)


class _Doubled(_Box):
    def area(self, *, scale=1):
        return 2 * super().area(scale=scale)


def test_an_earlier_name_of_a_method_calls_what_a_subclass_overrides_and_its_caller_is_warned():
    with pytest.warns(DeprecationWarning, match="size is now called area") as caught:
        assert _Doubled().size(scale=3) == 12
    assert caught[0].filename == __file__


def test_an_attribute_is_given_under_its_earlier_name_with_a_warning():
    with pytest.warns(DeprecationWarning, match="wide is now called width"):
        assert _Box().wide == 2


def test_earlier_names_are_marked_so_that_the_documentation_leaves_them_out():
    assert all(hasattr(vars(_Box)[name], "__deprecated__") for name in ("wide", "size"))
