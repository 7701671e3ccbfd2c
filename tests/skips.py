"""With DIFFUP_NO_SKIPS=1, as in `.ci/run`, a skipped test fails the session: what is skipped for long is broken unseen.

Tests marked `gpu` may be skipped, those marked `shared` or `network`, which need what lies outside the package, and
checks of a backbone that need a second device.
"""

from __future__ import annotations

import os

import pytest

ALLOWED = ("gpu", "shared", "network")
SECOND_DEVICE = "no second device here"


def _forbidden(config: pytest.Config) -> list[str]:
    """Where and why tests were skipped that may not be."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("DIFFUP_NO_SKIPS") != "1":  # a worker of pytest-xdist has no reporter
        return []
    found = []
    for report in reporter.stats.get("skipped", ()):
        reason = report.longrepr[2]
        marks = getattr(report, "keywords", ())  # a module that skips itself has none
        if SECOND_DEVICE not in reason and not set(ALLOWED) & set(marks):
            found.append(f"{report.nodeid}: {reason}")
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    passed = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if passed and _forbidden(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if found := _forbidden(terminalreporter.config):
        terminalreporter.section("skipped, which DIFFUP_NO_SKIPS=1 forbids", red=True, bold=True)
        for line in found:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"Install what they need; only tests marked {', '.join(ALLOWED)} may be skipped.")
