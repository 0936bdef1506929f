"""Groups with CUDA tensors: the same bits as with CPU tensors. Skip by name without a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ranks import CODECS_AND_ALGORITHMS, TRANSPORTS, bits, errors_of, residual_of, run_ranks

from pyfedcomm import CorruptFrame, Group, InvalidArgument, NonFinite, PeerLost, _core, codecs
from pyfedcomm.feedback import ErrorFeedback

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not _core.cuda.available(), reason="built without FEDCOMM_CUDA"),
]

SEVERAL_SEGMENTS = 1_700_003  # of the 2^18 elements in a segment, for each of three members


def values(rank: int, n: int, dtype: str = "float32") -> Any:
    x = np.random.default_rng([rank, n]).standard_normal(n, dtype=np.float32)
    return torch.from_numpy(x).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("codec", "algorithm"), CODECS_AND_ALGORITHMS)
def test_all_reduce_gives_the_bits_of_the_cpu(dtype: str, codec: str, algorithm: str) -> None:
    def rank(group: Group) -> None:
        for n in (0, 1, 4097, SEVERAL_SEGMENTS):
            on_host = values(group.rank, n, dtype)
            on_device = on_host.cuda()
            how: dict[str, Any] = {
                "op": "mean",
                "weight": 1.0 + group.rank,
                "codec": codec,
                "algorithm": algorithm,
            }
            assert group.all_reduce(on_device, **how) is on_device
            group.all_reduce(on_host, **how)
            assert torch.equal(on_device.cpu(), on_host)

    run_ranks(3, rank)


@pytest.mark.parametrize("codec", ["int8(stochastic)", "topk(0.01, int8)", "chunk_topk(256, 16)"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_residuals_on_the_device_are_those_of_the_cpu(codec: str, dtype: str) -> None:
    n, rounds = SEVERAL_SEGMENTS, 3

    def rank(group: Group) -> None:
        kept = [ErrorFeedback(n, group, "auto", codec, device) for device in ("cpu", "cuda")]
        for step in range(rounds):
            results = []
            for device, feedback in zip(("cpu", "cuda"), kept, strict=True):
                x = values(group.rank + 10 * step, n, dtype).to(device)
                group.all_reduce(x, codec=codec, residual=feedback.begin(), round=step)
                feedback.commit()
                results.append(x.cpu())
            assert torch.equal(results[0], results[1])
            states = [feedback.state_dict() for feedback in kept]
            for part in ("sender", "owner"):
                assert states[1][part].is_cuda
                assert torch.equal(states[0][part], states[1][part].cpu())

    run_ranks(2, rank)


def test_residuals_in_host_memory_serve_a_cuda_tensor() -> None:
    n = 5000

    def rank(group: Group) -> None:
        left = np.empty(n, np.float32)
        none = np.zeros(0, np.float32)
        residual = residual_of(np.zeros(n, np.float32), left, none, none)
        x = values(group.rank, n).cuda()
        group.all_reduce(x, codec="int4", algorithm="all_gather", residual=residual)
        assert np.abs(left).max() > 0

    run_ranks(2, rank)


def test_a_cloud_of_gpus_and_a_cloud_of_cpus_reduce_together() -> None:
    def rank(group: Group) -> list[bytes]:
        sums = []
        for codec, algorithm in CODECS_AND_ALGORITHMS:
            x = values(group.rank, 99_999).to("cuda" if group.rank else "cpu")
            group.all_reduce(x, op="mean", codec=codec, algorithm=algorithm, weight=group.rank + 1)
            sums.append(bits(x.cpu().numpy()))
        return sums

    results = run_ranks(3, rank)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_comes_after_what_the_current_stream_holds(transport: str) -> None:
    n = 1 << 20

    def rank(group: Group) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for step in range(5):
                x = torch.zeros(n, device="cuda")
                torch.cuda._sleep(50_000_000)  # some 30 ms
                x += group.rank + step
                work = group.all_reduce(x, codec="int8", async_op=True)
                assert float(work.wait()[-1]) == 1 + 2 * step

    run_ranks(2, rank, transport=transport)


def test_several_operations_in_flight() -> None:
    sizes = [1, 300_000, 70, SEVERAL_SEGMENTS, 4096, 0, 12345]

    def rank(group: Group) -> None:
        tensors = [values(group.rank, n).cuda() for n in sizes]
        hosts = [tensor.cpu() for tensor in tensors]
        works = [group.all_reduce(x, codec="topk(0.1)", async_op=True) for x in tensors]
        for x, host, work in zip(tensors, hosts, works, strict=True):
            group.all_reduce(host, codec="topk(0.1)")
            assert work.wait() is x
            assert torch.equal(x.cpu(), host)

    run_ranks(2, rank)


def test_shapes_outputs_and_plain_bytes() -> None:
    def rank(group: Group) -> None:
        x = values(group.rank, 301 * 78).reshape(301, 78).cuda()
        strided = x.T[::2]
        expected = sum(values(r, 301 * 78).reshape(301, 78).T[::2] for r in range(3))
        group.all_reduce(strided)
        assert torch.equal(strided.cpu(), expected)
        out = torch.empty(301, 78, device="cuda")
        kept = x.clone()
        assert group.all_reduce(x, out=out) is out
        assert torch.equal(x, kept)
        on_host = torch.empty(301, 78)
        assert group.all_reduce(x, out=on_host) is on_host
        assert torch.equal(on_host, out.cpu())

        big = torch.full((700_001, 3), group.rank, dtype=torch.int32, device="cuda")
        rows = group.all_gather(big)
        assert rows.is_cuda
        assert rows.shape == (3, 700_001, 3)
        assert [int(row.float().mean()) for row in rows] == [0, 1, 2]
        assert group.broadcast(big[::2], root=2).is_cuda
        assert bool((big[::2] == 2).all())
        assert bool((big[1::2] == group.rank).all())

    run_ranks(3, rank)


@pytest.mark.parametrize("codec", codecs.names())
def test_a_nan_is_named(codec: str) -> None:
    n = SEVERAL_SEGMENTS

    def rank(group: Group) -> None:
        x = torch.ones(n, device="cuda")
        if group.rank == 1:
            x[700_001] = float("nan")
        group.all_reduce(x, codec=codec)

    for error in errors_of(2, rank):
        assert isinstance(error, NonFinite)
        assert error.index == 700_001
        assert "rank 1" in str(error)


def test_a_sum_that_does_not_fit_is_named_unless_it_may_travel() -> None:
    def rank(group: Group) -> None:
        for _ in range(2):  # what the first leaves must not be blamed on the second
            x = torch.ones(300_000, dtype=torch.float16, device="cuda")
            x[270_000] = 60_000
            group.all_reduce(x, algorithm="direct", nonfinite="propagate")
            assert bool(torch.isinf(x[270_000]))
            fine = torch.ones(300_000, dtype=torch.float16, device="cuda")
            group.all_reduce(fine, algorithm="direct")
        x = torch.ones(300_000, dtype=torch.float16, device="cuda")
        x[270_000] = 60_000
        group.all_reduce(x, algorithm="direct")

    for error in errors_of(2, rank):
        assert isinstance(error, NonFinite)
        assert error.index == 270_000


def test_a_member_that_gives_up_while_the_device_works() -> None:
    def rank(group: Group) -> None:
        x = torch.ones(1 << 22, device="cuda")
        torch.cuda._sleep(200_000_000)
        work = group.all_reduce(x, codec="int4", async_op=True)
        if group.rank == 0:
            group.abort("enough")
        work.wait()

    errors = errors_of(2, rank)
    assert all(isinstance(error, PeerLost) for error in errors)


def test_a_damaged_frame_breaks_the_group() -> None:
    hub = _core.MemoryHub(2)
    groups = [Group(core) for core in _core.Group.open_all(hub, 10.0)]
    hub.inject(0, 1, "corrupt", 0)
    x = [torch.ones(100_000, device="cuda") for _ in groups]
    works = [
        group.all_reduce(each, codec="topk(0.01)", async_op=True)
        for group, each in zip(groups, x, strict=True)
    ]
    for work in works:
        with pytest.raises(CorruptFrame):
            work.wait()


def test_residuals_elsewhere_than_the_tensor_are_refused_by_the_core() -> None:
    def rank(group: Group) -> None:
        feedback = ErrorFeedback(10, group, "auto", "int8", "cuda")
        x = torch.ones(10)
        with pytest.raises(InvalidArgument, match="not in the memory"):
            group.all_reduce(x, codec="int8", residual=feedback.begin())

    run_ranks(2, rank)


def test_the_steady_state_takes_no_more_memory() -> None:
    def rank(group: Group) -> None:
        x = values(group.rank, SEVERAL_SEGMENTS).cuda()
        feedback = ErrorFeedback(x.numel(), group, "auto", "topk(0.01, int8)", "cuda")
        free = []
        for step in range(60):
            group.all_reduce(x, codec="topk(0.01, int8)", residual=feedback.begin(), round=step)
            group.barrier()
            free.append(torch.cuda.mem_get_info()[0])
        # There are as many buffers as were ever needed at once, and when that was is chance: one
        # or two may come late. One buffer lost in each round would be more than that.
        assert free[4] - free[-1] <= 4 << 20

    run_ranks(2, rank)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["int8", "topk(k=5, fp32)"])
def test_more_than_2_to_the_31_elements(codec: str) -> None:
    n = 2**31 + 3
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB of GPU memory")

    def rank(group: Group) -> None:
        x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
        x[-1] = 3 + group.rank
        x[7] = 1
        group.all_reduce(x, codec=codec)
        assert (float(x[-1]), float(x[7])) == (7, 2)
        assert int(torch.count_nonzero(x)) == 2

    run_ranks(2, rank, timeout=120, deadline=500)
