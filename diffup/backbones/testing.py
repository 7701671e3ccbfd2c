"""A pytest class for packages with a backbone of their own: one test for each check of `diffup.backbones.conformance`.

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
    """Base class of conformance tests; subclass it in a test module as `Test...` and set the backbone.

    Attributes:
        backbone: name of a backbone, or an object to be used as one.
        options: options of the family's factory if `backbone` is a name, e.g. `{"input_size": 128}`, which is faster.
    """

    backbone: ClassVar[str | Backbone]
    options: ClassVar[Mapping[str, Any]] = {}

    _report: ClassVar[Report | None] = None

    @pytest.fixture
    def report(self) -> Report:
        """Report of `check_backbone`, computed once for all tests of the class."""
        kind = type(self)
        if kind._report is None:
            kind._report = check_backbone(self.backbone, **self.options)
        return kind._report

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(self, report: Report, check: str) -> None:
        """The check passes; the test is skipped if it cannot be made."""
        finding = next(finding for finding in report.findings if finding.check == check)
        if finding.outcome == "not checked":
            pytest.skip(finding.message)
        if finding.outcome == "failed":
            pytest.fail(f"backbone '{report.backbone}': {finding.message}", pytrace=False)
