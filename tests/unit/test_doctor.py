"""What the doctor says about hosts: this one as it is, others by what their kernels would say."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import pytest

from snapkernel.commands import host_checks
from snapkernel.commands.canary import CanaryError, _compare
from snapkernel.thaw import namespaces


def test_this_host_passes_every_check() -> None:
    """The tests need such a host anyway."""
    checks = list(host_checks.host_checks())
    assert [check for check in checks if check.status == "missing"] == []
    assert {"ptrace", "kcmp", "pidfd_getfd", "time namespace"} <= {check.name for check in checks}


@pytest.mark.parametrize(
    ("scope", "is_capable", "status"),
    [
        (None, False, "ok"),
        ("0", False, "ok"),
        ("1", False, "limited"),
        ("1", True, "ok"),
        ("2", False, "missing"),
        ("2", True, "ok"),
        ("3", True, "missing"),
    ],
)
def test_yama(
    monkeypatch: pytest.MonkeyPatch, scope: str | None, is_capable: bool, status: str
) -> None:
    monkeypatch.setattr(host_checks, "_read", lambda _path: scope)
    monkeypatch.setattr(host_checks, "_capable", lambda _capability: is_capable)
    check = host_checks.yama()
    assert check.status == status
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("release", "status"), [("5.10.0-30-amd64", "missing"), ("5.15.0", "ok"), ("6.1.0-rc1", "ok")]
)
def test_old_kernels_are_named(monkeypatch: pytest.MonkeyPatch, release: str, status: str) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    check = host_checks.linux()
    assert (check.status, check.detail) == (status, release)
    assert host_checks.page_scanner().status == "limited"


@pytest.mark.parametrize(
    ("check", "value", "status"),
    [
        (host_checks.overcommit, "2", "limited"),
        (host_checks.overcommit, "0", "ok"),
        (host_checks.page_faults, None, "limited"),
        (host_checks.page_faults, "1", "ok"),
    ],
)
def test_settings(
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[], host_checks.Check],
    value: str | None,
    status: str,
) -> None:
    monkeypatch.setattr(host_checks, "_read", lambda _path: value)
    assert check().status == status


def test_other_processors_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign() -> None:
        raise KeyError("vax")

    monkeypatch.setattr(host_checks.arch, "native", foreign)
    assert host_checks.architecture().status == "missing"


def test_a_namespace_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel-init that really fails: nobody can be mapped to an id that does not exist."""
    monkeypatch.setattr(host_checks, "_capable", lambda _capability: False)
    monkeypatch.setattr(os, "geteuid", lambda: 2**32 - 1)
    first, *others = host_checks.namespaces()
    assert (first.name, first.status) == ("user namespace", "missing")
    assert first.detail.startswith("/proc/self/uid_map: ")
    assert first.remedy
    assert {(check.status, check.detail) for check in others} == {
        ("missing", "not tried without user namespace")
    }


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces="),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "the rule `userns,` for "),
    ],
)
def test_what_forbids_user_namespaces_is_named(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, remedy: str
) -> None:
    """Settings that this host's kernel may not have."""
    monkeypatch.setattr(namespaces, "_setting", {setting: value}.get)
    error = namespaces.forbidden("new user namespace: Operation not permitted")
    assert error.object == "user namespace for the restored process"
    assert f"{setting.replace('/', '.')} is {value}" in error.reason
    assert remedy in error.remedy


def test_a_changed_canary_is_told_by_what_changed() -> None:
    with pytest.raises(CanaryError, match="differs in timer: timer is False, should be True"):
        _compare([{"pid": 1, "timer": True}], [{"pid": 1, "timer": False}])
