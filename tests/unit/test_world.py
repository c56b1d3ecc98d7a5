"""Ranks of a run: what an error of gloo or nccl is told apart from."""

import pytest

from engine.distributed import World


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc] Connection closed by peer [10.0.0.1]:40312"), True),
        (RuntimeError("Read error: Connection reset by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("gloo"), False),
    ],
    ids=str,
)
def test_another_process_is_lost_if_gloo_or_nccl_says_so(error, is_lost):
    assert World(0, 2).is_lost(error) is is_lost
    assert not World(0, 1).is_lost(error), "a single process has no other"
