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
    for name in ("tpu", "xpu", "nonsense:3"):
        with pytest.raises(TrainingError, match="expected auto, cpu, cuda, cuda:N or mps"):
            choose_device(name)
    with pytest.raises(TrainingError, match="expected CUDA device 99, found"):
        choose_device("cuda:99")
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(TrainingError, match="environment variable RANK"), start_ranks("cpu", None):
        pass


def test_restarted_processes_ignore_earlier_starts() -> None:
    """torchrun keeps its store: notes of earlier starts, one of them interrupted, do no harm."""
    store, names = torch.distributed.HashStore(), []
    store.set("note/1", "of a process that died before it got an answer")
    with ThreadPoolExecutor(3) as pool:
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):  # the order of arrival
            meetings = [pool.submit(rendezvous_prefix, store, rank, 3) for rank in order]
            (name,) = {meeting.result(timeout=60) for meeting in meetings}
            names.append(name)
    assert len(set(names)) == 3


@pytest.mark.parametrize(("rank", "absent"), [(0, 1), (2, 0)])
def test_a_missing_process_is_named(rank: int, absent: int) -> None:
    with pytest.raises(TrainingError, match=rf"process {rank} waited 0\.05 s for process {absent}; check"):
        rendezvous_prefix(torch.distributed.HashStore(), rank, 3, timeout=0.05)


def test_the_process_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    with start_ranks("cpu", before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
