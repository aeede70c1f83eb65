"""Every public class and function has an example that the tests run."""

from __future__ import annotations

import importlib
import inspect

import pytest

PACKAGES = ("", ".bayes", ".data", ".generative", ".models", ".optim", ".report", ".testing", ".theory")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_example(package):
    module = importlib.import_module("mmjax" + package)
    made_here = [getattr(module, name) for name in module.__all__]
    documented = [x for x in made_here if inspect.isclass(x) or inspect.isfunction(x)]
    assert documented, "nothing to look at"
    assert [x.__qualname__ for x in documented if ">>>" not in (x.__doc__ or "")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_example_shows_a_mistake_of_its_own(package):
    """A doctest that expects NameError passes when an import is forgotten, and runs nothing after that."""
    module = importlib.import_module("mmjax" + package)
    documented = [x for x in (getattr(module, name) for name in module.__all__) if callable(x)]
    assert [x.__qualname__ for x in documented if "NameError" in (inspect.getdoc(x) or "")] == []
