from dataclasses import dataclass, field

import pytest

from agents.settings import build
from gns.errors import InvalidSettingError, UnknownNameError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    count: int = 3


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ("a",)
    priors: dict[str, tuple[float, float]] = field(default_factory=dict)
    limit: float | None = None
    flag: bool = False


def test_nested_mappings_lists_and_numbers_in_strings_become_what_is_declared():
    built = build(
        Outer,
        {"inner": {"rate": "1e-3"}, "pair": [3, 4], "names": ["b", "c"], "priors": {"adam": [1, 2]}, "limit": 2},
    )
    assert built == Outer(
        inner=Inner(rate=0.001), pair=(3, 4), names=("b", "c"), priors={"adam": (1.0, 2.0)}, limit=2.0
    )
    assert isinstance(built.limit, float)


def test_none_passes_only_where_it_is_declared():
    assert build(Outer, {"limit": None}).limit is None
    with pytest.raises(InvalidSettingError, match=r"inner\.rate is None"):
        build(Outer, {"inner": {"rate": None}})


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_known_one():
    with pytest.raises(UnknownNameError, match=r"inner\.ratte.*inner\.rate"):
        build(Outer, {"inner": {"ratte": 1.0}})


@pytest.mark.parametrize(
    "settings",
    [
        {"inner": {"rate": "fast"}},
        {"inner": {"count": 1.5}},
        {"inner": {"count": True}},
        {"pair": [1, 2, 3]},
        {"pair": 7},
        {"inner": 3},
        {"flag": "yes"},
        {"name": 3},
    ],
)
def test_a_value_of_another_kind_is_refused(settings):
    with pytest.raises(InvalidSettingError, match="expected"):
        build(Outer, settings)
