from candy_monai.experiment.differences import differences


def test_equal_descriptions_do_not_differ_whether_they_went_through_json_or_not():
    saved = {"network": {"arguments": {"filters": [8, 16], "1": 2.0}}, "plan": None}
    assert differences(saved, {"network": {"arguments": {"filters": (8, 16), 1: 2.0}}, "plan": None}) == []


def test_each_entry_that_differs_is_named_with_both_values():
    saved = {"a": {"b": 1, "c": 2}, "gone": 3}
    assert differences(saved, {"a": {"b": 1, "c": 4}, "new": 5}) == ["a.c: 2 -> 4", "gone: 3 -> None", "new: None -> 5"]


def test_long_values_are_cut_short():
    (line,) = differences({"ids": list(range(100))}, {"ids": []})
    assert len(line) < 100
    assert line.endswith("... -> []")
