"""The steps of a rollout: set the weights, watch, judge, go on or go back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nash.errors import NashError
from nash.remote.server import RemoteServer, in_path
from nash.rollout.slo import Slo
from nash.rollout.watching import Window, window

_LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """What is to be done. `steps` are the new variant's shares in percent, ascending."""

    model: str
    source: str
    target: str
    steps: Sequence[float]
    slo: Slo
    step_s: float  # how long each step is watched at least
    requests: int  # how many answers of the new variant, and how many pairs where pairs are judged, each step needs
    patience_s: float  # how long a step may wait for them
    shadow: float  # share of the old variant's answers that run on the new one too


@dataclass(frozen=True, kw_only=True)
class RolloutStep:
    """One step, as it went. `why` names the bound that was broken, or what did not come; None: it went well."""

    percent: float
    seconds: float
    window: Window
    pairs: int
    speedup: float | None
    agreement: float | None
    why: str | None

    def document(self) -> dict[str, Any]:
        """The step as JSON."""
        return {**asdict(self), "window": {**asdict(self.window), "error_ratio": self.window.error_ratio}}


class Rollout:
    """One rollout on one server."""

    def __init__(self, server: RemoteServer, plan: RolloutPlan, say: Callable[[str], None]) -> None:
        self._server = server
        self._plan = plan
        self._say = say
        self._path = f"/models/{in_path(plan.model)}/traffic"

    def run(self) -> list[RolloutStep]:
        """Go through the steps. If one fails it is the last one of the list, and the traffic is as it was before.

        Whatever ends it early, an interrupt included, puts the traffic back.

        Raises:
            NashError: the server refuses, or cannot be reached.
        """
        before = self._server.call("GET", self._path)
        done: list[RolloutStep] = []
        try:
            for percent in self._plan.steps:
                done.append(self._step(percent))
                if done[-1].why is not None:
                    break
        except BaseException:
            self._put_back(before)
            raise
        if done[-1].why is not None:
            self._put_back(before)
            self._say(f"rolled back: {done[-1].why}")
        else:
            self._set(done[-1].percent, before["shadow"])
        return done

    def _step(self, percent: float) -> RolloutStep:
        plan = self._plan
        shadow = {"from": plan.source, "to": plan.target, "fraction": plan.shadow} if plan.shadow else None
        self._set(percent, shadow)
        began, first = time.monotonic(), self._server.metrics()
        self._say(f"{percent:g} % of {plan.model} goes to {plan.target}")
        while True:
            time.sleep(_LOOK_S)
            step = self._look(percent, first, time.monotonic() - began)
            enough = step.window.answered + step.window.failed >= plan.requests and (
                not self._judges_pairs or percent >= 100 or step.pairs >= plan.requests
            )
            if step.why is not None or (enough and step.seconds >= plan.step_s):
                return step
            if step.seconds > plan.step_s + plan.patience_s:
                missing = f"{step.window.answered} answers and {step.pairs} pairs came in {step.seconds:.0f} s"
                return _with_reason(step, f"{missing}, {plan.requests} are needed to judge")

    @property
    def _judges_pairs(self) -> bool:
        return self._plan.slo.min_speedup is not None or self._plan.slo.min_agreement is not None

    def _look(self, percent: float, first: Any, seconds: float) -> RolloutStep:
        plan = self._plan
        seen = self._server.call("GET", self._path)["seen"] or {"pairs": 0, "agreement": {}, "speedup": None}
        pairs, alike = seen["pairs"], seen["agreement"]
        step = RolloutStep(
            percent=percent,
            seconds=seconds,
            window=window(first, self._server.metrics(), plan.model, plan.target),
            pairs=pairs,
            speedup=seen["speedup"],
            agreement=(alike["exact"] + alike["close"]) / pairs if pairs else None,
            why=None,
        )
        return _with_reason(step, self._broken(step))

    def _broken(self, step: RolloutStep) -> str | None:
        """The bound that a step breaks, once there is enough to judge by."""
        slo, least = self._plan.slo, self._plan.requests
        requests = step.window.answered + step.window.failed
        if requests >= least:
            if slo.max_error_ratio is not None and step.window.error_ratio > slo.max_error_ratio:
                return f"{step.window.error_ratio:.2%} of the requests failed, at most {slo.max_error_ratio:.2%} may"
            if slo.p95_ms is not None and step.window.p95_ms is not None and step.window.p95_ms > slo.p95_ms:
                return f"p95 is {step.window.p95_ms:.1f} ms, at most {slo.p95_ms:g} ms is allowed"
        if step.pairs >= least:
            if slo.min_speedup is not None and step.speedup is not None and step.speedup < slo.min_speedup:
                return f"{self._plan.target} is {step.speedup:.2f} times as fast, {slo.min_speedup:g} is the least"
            if slo.min_agreement is not None and step.agreement is not None and step.agreement < slo.min_agreement:
                return f"{step.agreement:.1%} of the answers agree, {slo.min_agreement:.1%} is the least"
        return None

    def _set(self, percent: float, shadow: dict[str, Any] | None) -> None:
        plan = self._plan
        weights = {plan.target: percent} | ({plan.source: 100 - percent} if percent < 100 else {})
        self._server.call("PUT", self._path, {"weights": weights, "shadow": shadow})

    def _put_back(self, before: dict[str, Any]) -> None:
        try:
            self._server.call("PUT", self._path, {"weights": before["weights"], "shadow": before["shadow"]})
        except NashError as error:
            raise NashError(f"the traffic could not be put back ({error}): `nash admin traffic` sets it") from error


def _with_reason(step: RolloutStep, why: str | None) -> RolloutStep:
    return RolloutStep(**{**vars(step), "why": why})
