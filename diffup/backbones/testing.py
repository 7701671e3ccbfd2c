"""A pytest class for packages that bring a backbone: one test for each check of `diffup.backbones.conformance`.

from diffup.backbones.testing import BackboneConformance

class TestMine(BackboneConformance):
    backbone = "mine:small"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from diffup.backbones.base import Backbone
from diffup.backbones.conformance import CHECKS, Report, check_backbone


class BackboneConformance:
    """Subclass it in a test module as `Test...` and name the backbone.

    Attributes:
        backbone: Name of an installed or registered family, or an object that is to serve as a backbone.
        options: Of the family's factory, with a name; e.g. `{"input_size": 128}`, which is faster.
    """

    backbone: ClassVar[str | Backbone]
    options: ClassVar[Mapping[str, Any]] = {}

    _report: ClassVar[Report | None] = None

    @pytest.fixture
    def report(self) -> Report:
        """What `check_backbone` found, once for all tests of the class."""
        kind = type(self)
        if kind._report is None:
            kind._report = check_backbone(self.backbone, **self.options)
        return kind._report

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(self, report: Report, check: str) -> None:
        """The check did not fail; where it could not be made, the test is skipped."""
        finding = next(finding for finding in report.findings if finding.check == check)
        if finding.outcome == "not checked":
            pytest.skip(finding.message)
        if finding.outcome == "failed":
            pytest.fail(f"backbone '{report.backbone}': {finding.message}", pytrace=False)
