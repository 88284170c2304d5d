"""The cost of a pruning step relative to a plain fine-tuning step of the same student: time, the gates' share, memory.

    python -m benchmarks.training_cost --out FILE

Weights are random, and all texts have one length. Three trainers of one student take steps in turn, on the same batch:
plain fine-tuning; distillation from a dense teacher (the final phase); distillation with gates (the pruning phase). A
ratio compares two steps of the same turn, and the quoted figure is the median over the turns. Peak memory is measured
in a separate process for each trainer, minus what the process held before it had a model; on a GPU, it is the memory
that torch allocated.
"""

import argparse
import gc
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, set_seed

from benchmarks.environment import environment
from benchmarks.shapes import NAMED, Shape, build, word_of
from model_store.model.config import spec_of
from model_store.model.spec import ModelSpec, shortened
from nash.data.examples import TokenizedPairs
from nash.data.rows import TaskRow
from nash.device import choose_device
from nash.pruning.distillation import DistillationMaps
from nash.pruning.objective import StudentObjective
from nash.pruning.student import Student
from nash.recipes.layer_selection import block_ends, select_layers
from nash.recipes.recipe import DistillationRecipe, OptimizationRecipe, PruningRecipe
from nash.structure.compaction import shorten_decoder
from nash.structure.masking import GateKinds, Gates
from nash.training.objective import Objective, TaskObjective
from nash.training.phase import Phase

PLAIN, DISTILLED, PRUNED = "plain fine-tuning", "distillation", "distillation and gates"
BATCHES = {"g2p": 128, "t5-small": 16, "t5-base": 8}
TIME_LIMIT, GATES_LIMIT, MEMORY_LIMIT = 1.5, 0.03, 1.1
MEMORY_STEPS = 3  # the optimizer's moments exist from the second step on
STEPS = 1000  # the schedules' number of steps


class Stepper:
    """A phase of which single updates are made, on one batch."""

    def __init__(self, kind: str, shape: Shape, decoder_layers: int, options: argparse.Namespace, out: Path) -> None:
        set_seed(0)
        batch_size = options.batch_size or BATCHES[shape.name]
        objective, spec = _objective(kind, shape, decoder_layers)
        optimization = OptimizationRecipe(
            batch_size=batch_size,
            precision=options.precision,
            gradient_checkpointing=options.gradient_checkpointing,
            max_steps=STEPS,
        )
        pairs = random_pairs(shape, batch_size)
        self.phase = Phase(
            objective, pairs, optimization, spec=spec, folder=out, seed=0, device=choose_device(options.device)
        )
        self.batch = self.phase.on_device(self.phase.collate([pairs[i] for i in range(len(pairs))]))

    def step(self) -> float:
        """One update of the weights; milliseconds."""
        start_s = time.perf_counter()
        self.phase.update([self.batch])
        if self.phase.device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start_s)


def _objective(kind: str, shape: Shape, decoder_layers: int) -> tuple[Objective, ModelSpec]:
    dense = build(shape)
    spec = spec_of(dense.config.to_dict())
    kept = select_layers(shape.layers, decoder_layers)
    model = shorten_decoder(dense, kept)
    if kind == PLAIN:
        return TaskObjective(model), spec
    gates = Gates(shortened(spec, kept), GateKinds()) if kind == PRUNED else None
    student = Student(model, DistillationMaps(shape.d_model, decoder_layers), gates)
    distill, ends = DistillationRecipe(), block_ends(kept, shape.layers)
    return StudentObjective(student, dense, distill, block_ends=ends, pruning=PruningRecipe()), spec


def random_pairs(shape: Shape, count: int) -> TokenizedPairs:
    """Texts of random words, one token each, with the lengths of the shape's workload; targets have an end token."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(word_of(draw.randrange(3, shape.vocab_size)) for _ in range(length))

    return TokenizedPairs.of(
        [
            TaskRow(source=text(shape.source_tokens), targets=(f"{text(shape.new_tokens - 1)} </s>",))
            for _ in range(count)
        ],
        random_tokenizer(shape),
        max_source_tokens=shape.source_tokens,
        max_target_tokens=shape.new_tokens,
    )


def random_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are `word_of` the tokens."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word_of(token): token for token in range(3, shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def measure(shape: Shape, decoder_layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one student: the three trainers in turn, then their memory."""
    kinds = (PLAIN, DISTILLED, PRUNED)
    turns: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        steppers = {kind: Stepper(kind, shape, decoder_layers, options, Path(folder, kind)) for kind in kinds}
        for turn in range(options.repeats + 2):
            for kind, stepper in steppers.items():
                step_ms = stepper.step()
                if turn > 1:  # the first step creates the optimizer's moments
                    turns[kind].append(step_ms)
        teacher_bytes = sum(p.nbytes for p in build(shape).parameters())
    del steppers
    gc.collect()
    peak_of = {kind: _in_own_process(kind, shape, decoder_layers, options) for kind in kinds}
    return {
        "shape": shape.name,
        "decoder_layers": decoder_layers,
        "batch_size": options.batch_size or BATCHES[shape.name],
        "source_tokens": shape.source_tokens,
        "target_tokens": shape.new_tokens,
        "step_ms": {kind: statistics.median(times) for kind, times in turns.items()},
        "step_ms_turns": {kind: [round(ms, 3) for ms in times] for kind, times in turns.items()},
        "peak_bytes": peak_of,
        "teacher_bytes": teacher_bytes,
        "over_plain": _ratio(turns[PRUNED], turns[PLAIN]),
        "distillation_over_plain": _ratio(turns[DISTILLED], turns[PLAIN]),
        "share_of_gates": 1 - _ratio(turns[DISTILLED], turns[PRUNED]),
        "memory_over_teacher_and_plain": peak_of[PRUNED] / (teacher_bytes + peak_of[PLAIN]),
    }


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _in_own_process(kind: str, shape: Shape, decoder_layers: int, options: argparse.Namespace) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_bytes, (kind, shape, decoder_layers, options))


def peak_bytes(kind: str, shape: Shape, decoder_layers: int, options: argparse.Namespace) -> int:
    """The peak memory of a few steps; call it in a fresh process."""
    before = _status_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(kind, shape, decoder_layers, options, Path(folder))
        for _ in range(MEMORY_STEPS):
            stepper.step()
    if stepper.phase.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    """A memory figure of this process alone: getrusage would include the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def students(options: argparse.Namespace) -> Iterator[tuple[Shape, int]]:
    """Every requested student, whole and shortened."""
    for name in options.shape or ("g2p", "t5-small"):
        shape = NAMED[name]
        for layers in options.decoder_layers or (shape.layers, 2):
            yield shape, layers


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="A step of pruning over a plain fine-tuning step.")
    parser.add_argument("--shape", choices=NAMED, action="append", help="default: g2p and t5-small")
    parser.add_argument("--decoder-layers", type=int, action="append", help="the students'; default: all, and 2")
    parser.add_argument("--batch-size", type=int, help="default: the shape's own")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto: CUDA if there is one")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    results = []
    heads = f"{'plain ms':>10}{'pruning ms':>12}{'over plain':>12}{'gates':>8}{'peak MB':>10}{'of budget':>11}"
    print(f"{'student':<26}{heads}")
    for shape, layers in students(options):
        found = measure(shape, layers, options)
        results.append(found)
        print(
            f"{f'{shape.name}, {layers} of {shape.layers}':<26}{found['step_ms'][PLAIN]:>10.1f}"
            f"{found['step_ms'][PRUNED]:>12.1f}{found['over_plain']:>11.2f}x{found['share_of_gates']:>8.1%}"
            f"{found['peak_bytes'][PRUNED] / 1e6:>10.0f}{found['memory_over_teacher_and_plain']:>11.2f}",
            flush=True,
        )
    print(
        f"asked: at most {TIME_LIMIT}x a plain step with all layers, gates under {GATES_LIMIT:.0%} of a step, "
        f"at most {MEMORY_LIMIT}x the memory of the teacher and of plain fine-tuning together"
    )
    if options.out is not None:
        limits = {"over_plain": TIME_LIMIT, "share_of_gates": GATES_LIMIT, "memory": MEMORY_LIMIT}
        document = {
            "environment": environment(),
            "precision": options.precision,
            "threads": torch.get_num_threads(),
            "limits": limits,
            "results": results,
        }
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
