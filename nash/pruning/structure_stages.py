"""The stages of a run that searches its structure for a requested speed (`pruning.structure = "search"`)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_store.model.config import layout_of
from model_store.model.spec import shortened
from nash.measuring.random_model import with_vocabulary
from nash.measuring.speedup import TablePlan, beside, engine_measure, hits, timing_of
from nash.modeling.folders import load_dense, save_model
from nash.pruning.run import LAYERS, PruneRun
from nash.pruning.trials import Trial, best_trial, described
from nash.run.progress import Stage
from nash.structure.calibration import TeacherDistance, calibration_batches, repair
from nash.structure.compaction import compact, shorten_decoder
from nash.structure.masking import HardenedGates
from nash.structure.search import Structure, structure_of_depth
from nash.structure.widths import Width, measure_widths

# In the run's folder: the width losses, the structures that were found, and the chosen one.
WIDTHS, STRUCTURES, STRUCTURE = "widths.json", "structures.json", "structure.json"

_LOSS_BATCHES = 8  # of the calibration's, for the losses of widths


def find_structures(run: PruneRun) -> None:
    """Find the best structure for the requested speed at several numbers of decoder layers."""
    assert isinstance(run.plan, TablePlan)
    plan = run.plan
    teacher = load_dense(run.teacher).to(run.device)
    batches = calibration_batches(run.train_pairs, run.spec.pad_id, run.recipe.seed, run.device)
    distance = TeacherDistance(teacher, batches)
    widths = _widths(run, teacher, batches)
    depths = _spread(run.spec.dense_decoder_layers, run.recipe.pruning.search_depths)
    measure = engine_measure(run.teacher, plan.workload)
    dense = with_vocabulary(run.spec, run.spec.dense_vocab_size)
    with Stage("searching for structures of the requested speed", run.console, len(depths), unit="depths") as stage:

        def found(table_plan: TablePlan, depth: int) -> Structure | None:
            return structure_of_depth(
                depth, teacher, run.spec, widths, table_plan.table, table_plan.budget_ms, distance
            )

        structures = []
        for number, depth in enumerate(depths, 1):
            structure = found(plan, depth)
            if structure is not None:
                structures.append(structure)
            stage.update(number)
    with Stage("measuring the speed of the structures", run.console, steady=True):
        shapes = [structure.spec(run.spec) for structure in structures]
        reference, *latencies = beside(dense, shapes, plan.dense_ms, measure)
    settled = []
    for structure, shape, latency in zip(structures, shapes, latencies, strict=True):
        if hits(reference.total_ms / latency.total_ms, plan.asked):
            settled.append(structure)
            continue
        again = found(plan.corrected(shape, timing_of(latency), reference.total_ms), len(structure.decoder_layers))
        settled.append(structure if again is None else again)
    run.folder.write_json(STRUCTURES, [structure.document() for structure in settled])


def choose_structure(run: PruneRun) -> None:
    """Train every structure for a short time; the one with the lowest validation loss stays."""
    structures = [Structure.of(document) for document in run.folder.read_json(STRUCTURES)]
    teacher = load_dense(run.teacher)
    trials = {
        described(structure.decoder_layers): Trial(
            name=f"depth-{len(structure.decoder_layers)}",
            kept_layers=structure.decoder_layers,
            start=partial(_cut, run, structure, teacher),
        )
        for structure in structures
    }
    best = best_trial(run, trials, teacher)
    run.folder.write_json(LAYERS, structures[best].decoder_layers)
    run.folder.write_json(STRUCTURE, structures[best].document())


def cut_structure(run: PruneRun) -> None:
    """Cut the chosen structure out of the teacher, and write the compact model that remains."""
    structure = Structure.of(run.folder.read_json(STRUCTURE))
    model = _cut(run, structure, load_dense(run.teacher))
    save_model(model, run.teacher.folder, run.path / "compact", torch.float32)


def _widths(run: PruneRun, teacher: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> dict[str, list[Width]]:
    """The width losses of the teacher's sublayers: the run's, as far as it has them, and new ones."""
    documents = run.folder.read_json(WIDTHS) or {}
    known = {name: [Width.of(each) for each in widths] for name, widths in documents.items()}
    sublayers = layout_of(run.spec).sublayers()
    if len(known) == len(sublayers):
        return known
    # Losses are compared on the same rows, so a part of them is enough: there is a loss for every width.
    distance = TeacherDistance(teacher, batches[:: max(1, len(batches) // _LOSS_BATCHES)])
    title = "measuring what narrower sublayers lose"
    with Stage(title, run.console, len(sublayers), done=len(known), unit="sublayers") as stage:

        def keep(found: dict[str, list[Width]]) -> None:
            run.folder.write_json(WIDTHS, {name: [each.document() for each in own] for name, own in found.items()})
            stage.update(len(found))

        return measure_widths(teacher, sublayers, distance, batches, known, keep)


def _cut(run: PruneRun, structure: Structure, teacher: PreTrainedModel) -> PreTrainedModel:
    """The compact model of a structure; what is left of each matrix makes up for what was cut."""
    layers = structure.decoder_layers
    student = shorten_decoder(teacher, layers)
    sublayers = layout_of(shortened(run.spec, layers)).sublayers()
    ones = {sublayer.out: torch.ones(sublayer.parts) for sublayer in sublayers}
    kept = {name: torch.zeros_like(ones[name], dtype=torch.bool) for name in ones}
    for name, parts in structure.kept.items():
        kept[name][list(parts)] = True
    model = compact(student, run.spec, layers, HardenedGates(values=ones, kept=kept))
    with Stage(f"refitting what is left, {described(structure.decoder_layers)}", run.console):
        batches = calibration_batches(run.train_pairs, run.spec.pad_id, run.recipe.seed, run.device)
        repair(model, student, sublayers, ones, batches, run.device)
    return model


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` numbers of decoder layers from 1 to `total`, evenly spread."""
    if count == 1:
        return [max(1, total // 2)]
    return sorted({1 + round(i * (total - 1) / (count - 1)) for i in range(count)})
