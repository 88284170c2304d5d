"""A CUDA device, or a CPU in its place: synchronization, memory, graphs and timing."""

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
    """A stage whose process has one thread on a CPU: miniature work there would only wait for a second thread."""

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
    """Free unused memory and reset the peak."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def cudnn_attention(allowed: bool) -> Iterator[None]:
    """Allow or forbid cuDNN in `scaled_dot_product_attention`; nothing else about it changes."""
    before: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def peak_memory(device: str) -> dict[str, int]:
    """The peak bytes of device memory in tensors since `release`; nothing on a CPU."""
    return {} if device == "cpu" else {"peak_bytes": torch.cuda.max_memory_allocated(device)}


def seconds(device: str, work: Callable[[], object]) -> float:
    """Time of one call, with the device idle before and after."""
    settle(device)
    started_s = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started_s


def repeat(record: Recorder, scale: Scale, work: Callable[[], T]) -> list[T]:
    """Repeat the work `scale.repeats` times, or fewer if the time is up, but at least once."""
    results = [work()]
    while len(results) < scale.repeats and record.left_s:
        results.append(work())
    return results


def recorded(device: str, work: Callable[[], object]) -> Callable[[], object]:
    """The work as a CUDA graph to replay, so that launches cost almost nothing; on a CPU the work itself.

    Call this in the inference mode in which `work` must run.
    """
    if device == "cpu":
        work()
        return work
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # loads the kernels, which is not possible during capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return partial(_replay, graph, work)


def _replay(graph: torch.cuda.CUDAGraph, work: Callable[[], object]) -> None:
    """Replay the graph; `work` keeps its tensors alive, because the graph knows memory only by address."""
    graph.replay()
