"""What the operating system says: how many processors control groups leave a process."""

import math

import pytest

from fastlstm.kernels.native import system

V1 = "5:memory:/\n2:cpu,cpuacct:/box\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "granted"),
    [
        (None, {}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/elsewhere/on/the/host\n", {"cpu.max": "20000 100000\n"}, 0.2),
        (V1, {"cpu/box/cpu.cfs_quota_us": "-1\n", "cpu/box/cpu.cfs_period_us": "100000\n"}, math.inf),
        (V1, {"cpu/box/cpu.cfs_quota_us": "250000\n", "cpu/box/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "what is this\n"}, math.inf),
        ("0::/\n", {"cpu.max": "1 0\n"}, math.inf),
        ("7:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "1\n"}, math.inf),
    ],
)
def test_control_groups(tmp_path, groups, files, granted):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in (files | ({} if groups is None else {"proc/self/cgroup": groups})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert system.granted(tmp_path) == granted


@pytest.mark.parametrize(("granted", "processors"), [(math.inf, 8), (2.5, 3), (0.2, 1), (0, 1), (100, 8), (8, 8)])
def test_processors_are_rounded_up_and_at_least_one(monkeypatch, granted, processors):
    monkeypatch.setattr(system, "granted", lambda: granted)
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert system.processors() == processors
