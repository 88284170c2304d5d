"""From a step's logits to how each row continues, by the parameters of the row's own sequence.

Rows that want only the likeliest token cost one pass over the logits. What other rows want is computed for them alone,
and together if it is the same.

Axes: N rows whose logits are wanted, R of them to process, V vocabulary, C candidates of a row.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field, replace
from operator import itemgetter

from torch import Tensor

from server.engine.choice.beam import BeamSearch, Candidate
from server.engine.choice.logits import process
from server.engine.choice.sampling import (
    at_least_float32,
    draw_without_replacement,
    greedy,
    likeliest,
    sample,
    uniform,
    warp,
)
from server.engine.interface.results import TopToken
from server.engine.sequence import Row


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The result of a step, by row of its logits."""

    tokens: list[int]  # meaningless for beams
    max_logits: list[float]  # the highest logit; NaN or +inf if any logit is
    masked: set[int]  # rows in which every token is forbidden
    logprobs: dict[int, float] = field(default_factory=dict)  # of the token, if requested
    top_tokens: dict[int, list[TopToken]] = field(default_factory=dict)  # likewise; for beams too
    candidates: dict[int, list[Candidate]] = field(default_factory=dict)  # of each search, by the row of its beam 0


def choose(logits_NV: Tensor, wanted: Ordered[Row]) -> Chosen:
    """Choose for every row of the logits; a beam search's first step has beam 0 alone.

    A row that is not finite, as its highest logit shows, affects no other row and gets no further results; a search
    with such a row gets no candidates.
    """
    best = greedy(logits_NV)
    chosen = Chosen(tokens=best.tokens_N.tolist(), max_logits=best.max_logits_N.tolist(), masked=set())
    special = [
        i
        for i, row in enumerate(wanted)
        if not row.decoding.plain_at(len(row.history)) and math.isfinite(chosen.max_logits[i])
    ]
    if not special:
        return chosen
    _choose_singly(logits_NV, wanted, [i for i in special if wanted[i].decoding.search is None], chosen)
    broken = {
        row.decoding.search for row, peak in zip(wanted, chosen.max_logits, strict=True) if not math.isfinite(peak)
    }
    beams = [i for i in special if wanted[i].decoding.search not in broken | {None}]
    if beams:
        _choose_candidates(logits_NV, wanted, beams, chosen)
    top = [i for i in special if wanted[i].decoding.top_n]
    if top:
        _note_top_tokens(logits_NV, wanted, top, chosen)
    return chosen


def _choose_singly(logits_NV: Tensor, wanted: Ordered[Row], rows: list[int], chosen: Chosen) -> None:
    """For rows that are not beams: the likeliest token that their rules leave, or a drawn one."""
    processed = [i for i in rows if _is_processed(wanted[i])]
    if processed:
        scores_RV = _scores(logits_NV, wanted, processed)
        best = greedy(scores_RV)
        for i, token, peak in zip(processed, best.tokens_N.tolist(), best.max_logits_N.tolist(), strict=True):
            chosen.tokens[i] = token
            if peak == -math.inf:
                chosen.masked.add(i)
        drawn = [
            at for at, i in enumerate(processed) if wanted[i].decoding.parameters.do_sample and i not in chosen.masked
        ]
        if drawn:
            those = [wanted[processed[at]] for at in drawn]
            tokens = sample(
                _take(scores_RV, drawn), [row.decoding.parameters for row in those], [_number(row) for row in those]
            )
            for at, token in zip(drawn, tokens, strict=True):
                chosen.tokens[processed[at]] = token
    recorded = [i for i in rows if wanted[i].decoding.logprobs]
    if recorded:
        pairs = [(i, chosen.tokens[i]) for i in recorded]
        chosen.logprobs.update(zip(recorded, _logprobs(logits_NV, pairs), strict=True))


def _choose_candidates(logits_NV: Tensor, wanted: Ordered[Row], rows: list[int], chosen: Chosen) -> None:
    """For beams: the candidates of each search."""
    searches: dict[BeamSearch, dict[int, int]] = {}  # each beam's row
    for i in rows:
        search = wanted[i].decoding.search
        assert search is not None, "not a beam"
        searches.setdefault(search, {})[wanted[i].index] = i
    processed = {i: at for at, i in enumerate(i for i in rows if _is_processed(wanted[i]))}
    quiet = [i for i in rows if i not in processed]
    options: dict[int, list[tuple[float, int]]] = {}
    if processed:
        scores_RV = _scores(logits_NV, wanted, list(processed))
        options |= _options(scores_RV, wanted, list(processed))
    if quiet:
        options |= _options(_all_logprobs(logits_NV, quiet), wanted, quiet)
    for search, by_beam in searches.items():
        decoding = wanted[by_beam[0]].decoding
        row_of = [by_beam[beam if len(by_beam) > 1 else 0] for beam in range(search.beams)]
        if decoding.parameters.do_sample:
            drawn_BV = scores_RV[[processed[i] for i in row_of]]
            candidates = _drawn(drawn_BV, search, wanted[by_beam[0]])
        else:
            candidates = _best(search, [options[i] for i in row_of])
        if decoding.logprobs:
            logprobs = _logprobs(logits_NV, [(row_of[each.beam], each.token) for each in candidates])
            candidates = [replace(each, logprob=lp) for each, lp in zip(candidates, logprobs, strict=True)]
        if candidates[0].score == -math.inf:
            chosen.masked.update(by_beam.values())
        chosen.candidates[by_beam[0]] = candidates


def _scores(logits_NV: Tensor, wanted: Ordered[Row], rows: list[int]) -> Tensor:
    """These rows' scores after their rules; for beams log-probabilities, warped if they are sampled."""
    chosen = [wanted[i] for i in rows]
    beams = [at for at, row in enumerate(chosen) if row.decoding.search is not None]
    scores_RV = at_least_float32(_take(logits_NV, rows))
    if len(beams) == len(rows):
        scores_RV = scores_RV.log_softmax(-1)
    else:
        scores_RV = scores_RV.clone()
        if beams:
            scores_RV[beams] = scores_RV[beams].log_softmax(-1)
    process(scores_RV, [row.decoding.rules for row in chosen], [row.history for row in chosen])
    for keep in {len(chosen[at].decoding.eos_ids) for at in beams if chosen[at].decoding.parameters.do_sample}:
        those = [
            at for at in beams if chosen[at].decoding.parameters.do_sample and len(chosen[at].decoding.eos_ids) == keep
        ]
        scores_RV[those] = warp(
            scores_RV[those], [chosen[at].decoding.parameters for at in those], keep=max(keep, 1) + 1
        )
    normalized = [at for at in beams if chosen[at].decoding.parameters.renormalize_logits]
    if normalized:
        scores_RV[normalized] = scores_RV[normalized].log_softmax(-1)
    return scores_RV


def _options(scores_RV: Tensor, wanted: Ordered[Row], rows: list[int]) -> dict[int, list[tuple[float, int]]]:
    """Each row's best scores with their tokens, as many as its search considers."""
    widths = []
    for i in rows:
        search = wanted[i].decoding.search
        assert search is not None, "not a beam"
        widths.append(search.width)
    scores_RC, tokens_RC = likeliest(scores_RV, min(max(widths), scores_RV.shape[1]))
    scores, tokens = scores_RC.tolist(), tokens_RC.tolist()
    return {
        i: list(zip(scores[at][:width], tokens[at][:width], strict=True))
        for at, (i, width) in enumerate(zip(rows, widths, strict=True))
    }


def _best(search: BeamSearch, options: Ordered[Ordered[tuple[float, int]]]) -> list[Candidate]:
    """The best continuations of all beams, each with its own options."""
    pool = [
        (before + score, beam, token)
        for beam, (before, own) in enumerate(zip(search.scores, options, strict=True))
        for score, token in own
    ]
    pool.sort(key=itemgetter(0), reverse=True)
    return [Candidate(beam=beam, token=token, score=score) for score, beam, token in pool[: search.width]]


def _drawn(scores_BV: Tensor, search: BeamSearch, row: Row) -> list[Candidate]:
    """`width` continuations, drawn without replacement."""
    flat = (scores_BV + scores_BV.new_tensor(search.scores)[:, None]).view(-1)
    drawn = draw_without_replacement(flat, [_number(row, draw) for draw in range(search.width)])
    scores = flat[drawn].tolist()
    vocabulary = scores_BV.shape[1]
    return [
        Candidate(beam=index // vocabulary, token=index % vocabulary, score=score)
        for index, score in zip(drawn, scores, strict=True)
    ]


def _number(row: Row, draw: int = 0) -> float:
    seed = row.decoding.parameters.seed
    assert seed is not None, "seeds are drawn at admission"
    stream = 0 if row.decoding.search is not None else row.index
    return uniform(seed, stream, len(row.history), draw)


def _is_processed(row: Row) -> bool:
    return row.decoding.processed_at(len(row.history))


def _logprobs(logits_NV: Tensor, pairs: list[tuple[int, int]]) -> list[float]:
    """The model's own log-probability of each (row, token)."""
    rows = sorted({row for row, _ in pairs})
    at = {row: position for position, row in enumerate(rows)}
    logprobs: list[float] = _all_logprobs(logits_NV, rows)[
        [at[row] for row, _ in pairs], [token for _, token in pairs]
    ].tolist()
    return logprobs


def _all_logprobs(logits_NV: Tensor, rows: list[int]) -> Tensor:
    return at_least_float32(_take(logits_NV, rows)).log_softmax(-1)


def _note_top_tokens(logits_NV: Tensor, wanted: Ordered[Row], rows: list[int], chosen: Chosen) -> None:
    counts = [min(wanted[i].decoding.top_n, logits_NV.shape[1]) for i in rows]
    logprobs_RC, tokens_RC = likeliest(_all_logprobs(logits_NV, rows), max(counts))
    for i, count, own, tokens in zip(rows, counts, logprobs_RC.tolist(), tokens_RC.tolist(), strict=True):
        chosen.top_tokens[i] = [
            TopToken(id=token, logprob=logprob) for token, logprob in zip(tokens[:count], own, strict=False)
        ]


def _take(values_NV: Tensor, rows: list[int]) -> Tensor:
    """Some rows, ascending; the tensor itself if all are wanted."""
    return values_NV if len(rows) == len(values_NV) else values_NV[rows]
