import pytest

from baklava.system.registry import families_of


class Shape:
    family = "shape"


class Round(Shape):
    family = "round"


class Abstract(Shape):
    pass


class Square(Abstract):
    family = "square"


def test_classes_that_name_a_family_are_found_at_any_depth() -> None:
    assert families_of(Shape) == {"round": Round, "square": Square}


def test_two_classes_of_one_family_are_refused() -> None:
    class Base:
        pass

    class First(Base):
        family = "same"

    class Second(Base):
        family = "same"

    with pytest.raises(TypeError, match=r"Second and .*First are both family 'same'"):
        families_of(Base)
