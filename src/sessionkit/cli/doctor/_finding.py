"""The findings of the doctor, as data; `_report` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Status", "fail", "ok", "verdict", "warn"]

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: the name of the check, as ``group.name``; it stays the same from release to release. One check may have several
            findings.
        status: ``"ok"``; ``"warn"``: it works, but will cause trouble one day; ``"fail"``: it must be fixed.
        found: what was found, for people.
        advice: the setting or command that fixes it, for people; empty if there is no problem.
    """

    check: str
    status: Status
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, advice: str) -> Finding:
    """Return a finding that will cause trouble one day."""
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """Return a finding that must be fixed."""
    return Finding(check, "fail", found, advice)


def verdict(findings: list[Finding]) -> Status:
    """Return the worst status."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"
