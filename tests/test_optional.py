"""What is said when an optional package is missing."""

from __future__ import annotations

from importlib import metadata

import pytest

from diffup.errors import MissingPackageError
from diffup.utils.optional import install_command, need


@pytest.fixture
def requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements of diffup as its metadata states them."""
    stated = ["numpy>=1.26", "a-package[part]>=2; extra == 'one'", 'b<3,>=1 ; extra == "one"', "c; extra == 'other'"]
    monkeypatch.setattr(metadata, "requires", lambda name: {"diffup": stated}[name])


@pytest.mark.usefixtures("requirements")
def test_the_packages_of_an_extra_are_named() -> None:
    assert install_command("one") == 'pip install "a-package[part]>=2" "b<3,>=1"'
    assert install_command("other") == 'pip install "c"'
    with pytest.raises(MissingPackageError) as caught:
        need("missing_module.part", "what they wish", extra="other")
    assert str(caught.value) == 'what they wish needs missing_module: pip install "c"'


def test_a_checkout_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install_command("one") == 'pip install ".[one]"'
