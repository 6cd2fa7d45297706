"""What the doctor says: findings. They are data; `_report` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Status", "fail", "ok", "verdict", "warn"]

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, as ``group.name``; it stays the same from release to release. One check may find
            several things.
        status: ``"ok"``; ``"warn"``: it works, and will hurt one day; ``"fail"``: it must be mended.
        found: what is there, for people.
        advice: the setting or command that mends it, for people; empty where all is well.
    """

    check: str
    status: Status
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, advice: str) -> Finding:
    """Return a finding of what will hurt one day."""
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """Return a finding of what must be mended."""
    return Finding(check, "fail", found, advice)


def verdict(findings: list[Finding]) -> Status:
    """Return the worst of all."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"
