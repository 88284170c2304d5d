"""A CUDA device, or a CPU in its place: waiting, memory, graphs and time."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import TypeVar

import torch

from benchmarks.gpu.shapes import Scale
from benchmarks.gpu.staged import Recorder

T = TypeVar("T")


def on_device(stage: Callable[[Recorder, Scale], None]) -> Callable[[Recorder, Scale], None]:
    """A stage whose process has one thread on a CPU: what is in miniature there only waits for a second one."""

    @wraps(stage)
    def run(record: Recorder, scale: Scale) -> None:
        if scale.device == "cpu":
            torch.set_num_threads(1)
        stage(record, scale)

    return run


def settle(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def release(device: str) -> None:
    """Give back what nobody holds any more, and begin to watch for the peak anew."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def cudnn_attention(allowed: bool) -> Iterator[None]:
    """Whether `scaled_dot_product_attention` may go to cuDNN; nothing else of it changes."""
    before: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def peak_memory(device: str) -> dict[str, int]:
    """Most bytes of the device that tensors have had since `release`; nothing on a CPU."""
    return {} if device == "cpu" else {"peak_bytes": torch.cuda.max_memory_allocated(device)}


def seconds(device: str, work: Callable[[], object]) -> float:
    """Time of one call, the device idle before and after."""
    settle(device)
    started_s = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started_s


def repeat(record: Recorder, scale: Scale, work: Callable[[], T]) -> list[T]:
    """As often as is wanted, less where the time is up; at least once."""
    results = [work()]
    while len(results) < scale.repeats and record.left_s:
        results.append(work())
    return results


def recorded(device: str, work: Callable[[], object]) -> Callable[[], object]:
    """The work as a CUDA graph to replay, so that launching costs next to nothing; on a CPU the work itself.

    It must be called in the same inference mode as `work` is to run in.
    """
    if device == "cpu":
        work()
        return work
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # loads the kernels, which cannot be done within
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return partial(_replay, graph, work)


def _replay(graph: torch.cuda.CUDAGraph, work: Callable[[], object]) -> None:
    """`work` is here for what it holds: the graph knows its memory by address alone."""
    graph.replay()
