"""Every refusal says what it is: the first line of the docstring is the title that people read."""

import importlib
import pkgutil
from collections.abc import Iterator

import backend
from backend import errors
from backend.errors import StudioError


def kinds() -> list[type[StudioError]]:
    for module in pkgutil.walk_packages(backend.__path__, "backend."):
        importlib.import_module(module.name)

    def below(kind: type[StudioError]) -> Iterator[type[StudioError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted(
        {kind for kind in below(StudioError) if kind.__module__.startswith("backend.")}, key=lambda k: k.__name__
    )


def test_an_error_has_a_title_of_its_own() -> None:
    for kind in kinds():
        title = (kind.__dict__.get("__doc__") or "").strip().split("\n")[0]
        assert title, f"{kind.__qualname__} needs a docstring: its first line is the problem's title"
        assert title.endswith("."), title
        assert title[0].isupper(), title
        assert len(title) <= 120, title


def test_error_names_are_unique() -> None:
    """The class name is the problem's type: two kinds with one name could not be told apart."""
    names = [kind.__name__ for kind in kinds()]
    assert sorted(set(names)) == names
    assert len(names) > len(StudioError.__subclasses__())


def test_every_kind_is_one_of_the_known_ones() -> None:
    """What a part raises is a subclass of a kind in backend.errors, which the web knows how to answer."""
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StudioError)}
    for kind in kinds():
        assert kind in known or any(parent in known - {StudioError} for parent in kind.__mro__), kind
