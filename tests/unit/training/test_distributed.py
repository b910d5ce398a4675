"""Devices, and processes that find each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from llamita.errors import TrainingError  # noqa: E402
from llamita.training.distributed import choose_device, rendezvous_prefix, start_ranks  # noqa: E402

CPU = torch.device("cpu")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    for name in ("tpu", "mps", "nonsense:3"):
        with pytest.raises(TrainingError, match="expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    with pytest.raises(TrainingError, match="expected CUDA device 99, found"):
        choose_device("cuda:99")
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(TrainingError, match="environment variable RANK"), start_ranks("cpu", None):
        pass


def test_processes_that_start_again_meet_each_other_and_not_the_dead() -> None:
    """torchrun keeps its store: what three earlier starts left there, one of them broken off, misleads nobody."""
    store, names = torch.distributed.HashStore(), []
    store.set("note/1", "of a process that died before it had an answer")
    with ThreadPoolExecutor(3) as pool:
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):  # who comes first
            meetings = [pool.submit(rendezvous_prefix, store, rank, 3) for rank in order]
            (name,) = {meeting.result(timeout=60) for meeting in meetings}
            names.append(name)
    assert len(set(names)) == 3


@pytest.mark.parametrize(("rank", "absent"), [(0, 1), (2, 0)])
def test_who_does_not_come_is_named(rank: int, absent: int) -> None:
    with pytest.raises(TrainingError, match=rf"process {rank} waited 0\.05 s for process {absent}; check"):
        rendezvous_prefix(torch.distributed.HashStore(), rank, 3, timeout=0.05)
