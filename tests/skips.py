"""With DIFFUP_NO_SKIPS=1, as in `.ci/run`, a skipped test fails the session: what is skipped for long is broken unseen.

Tests marked `gpu` may be skipped, and those marked `shared` or `network`, which need what lies outside the package.
"""

from __future__ import annotations

import os

import pytest

ALLOWED = ("gpu", "shared", "network")


def _forbidden(config: pytest.Config) -> list[str]:
    """Where and why tests were skipped that may not be."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("DIFFUP_NO_SKIPS") != "1":  # a worker of pytest-xdist has no reporter
        return []
    skipped = [report for report in reporter.stats.get("skipped", ()) if not set(ALLOWED) & set(report.keywords)]
    return [f"{report.nodeid}: {report.longrepr[2]}" for report in skipped]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _forbidden(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if found := _forbidden(terminalreporter.config):
        terminalreporter.section("skipped, which DIFFUP_NO_SKIPS=1 forbids", red=True, bold=True)
        for line in found:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"Install what they need; only tests marked {', '.join(ALLOWED)} may be skipped.")
