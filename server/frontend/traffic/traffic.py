"""The traffic of all models of one server: which variant a request goes to, and what is run in its shadow."""

from collections.abc import Callable, Mapping, Sequence

from server.errors import InvalidInputError, NotServedError, SettingsError
from server.frontend.metrics import Metrics
from server.frontend.requests.request import TextRequest
from server.frontend.traffic.routing import named_model, route
from server.frontend.traffic.shadow import Shadow, ShadowFigures
from server.frontend.traffic.weights import NO_PLAN, ShadowPlan, TrafficPlan
from server.frontend.variant import Variant
from server.settings import TrafficSetting


class Traffic:
    """What operators have set, by model."""

    def __init__(self, metrics: Metrics, variants: Callable[[], Sequence[Variant]], busy: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._variants = variants
        self._plans: dict[str, TrafficPlan] = {}
        self.shadow = Shadow(metrics, variants, busy)

    def choose(self, ref: str | None, session: str | None) -> Variant:
        """The variant for one request; `session` is what the caller gave to stay with one.

        What is loading for the first time takes only requests that name it, unless there is nothing else.

        Raises:
            InvalidInputError: `ref` is not a REF.
            NotServedError: nothing of that name is loaded.
        """
        loaded = self._variants()
        model = named_model(ref)
        plan = NO_PLAN if model is None else self._plans.get(model, NO_PLAN)
        chosen = plan.choose([each for each in loaded if each.model == model], session)
        if chosen is not None:
            return chosen
        if model is None:
            return route(ref, loaded)
        begun = [each for each in loaded if each.model == model and each.supervisor.reported is not None]
        return route(ref, begun or loaded)

    def answered(self, variant: Variant, request: TextRequest) -> None:
        """A variant has answered a request: perhaps it runs in the shadow too."""
        plan = self._plans.get(variant.model, NO_PLAN).shadow
        if plan is None or plan.source != variant.variant:
            return
        for target in self._variants():
            if (target.model, target.variant) == (variant.model, plan.target):
                self.shadow.offer(variant, target, request, plan)

    def plan(self, model: str) -> TrafficPlan:
        """What is set for a model.

        Raises:
            NotServedError: it is not loaded.
        """
        self._variants_of(model)
        return self._plans.get(model, NO_PLAN)

    def figures(self, model: str) -> ShadowFigures:
        """What the shadow of a model has shown for its present target."""
        plan = self._plans.get(model, NO_PLAN).shadow
        return ShadowFigures() if plan is None else self.shadow.figures.get((model, plan.target), ShadowFigures())

    def set(self, model: str, weights: Mapping[str, float], shadow: ShadowPlan | None) -> None:
        """Divide a model's requests anew.

        Raises:
            NotServedError: the model is not loaded.
            InvalidInputError: a variant is not loaded, or no weight is above 0 although there are some.
        """
        names = self._variants_of(model)
        shadowed = () if shadow is None else (shadow.source, shadow.target)
        for name in (*weights, *shadowed):
            if name not in names:
                where = "weights" if name in weights else "shadow"
                raise InvalidInputError(
                    f"{where}: variant {name!r:.40} of {model} is not loaded: use one of {', '.join(names)}"
                )
        if weights and not any(weights.values()):
            raise InvalidInputError("weights are all 0: give at least one above 0, or an empty object for none")
        if shadow is not None and shadow.source == shadow.target:
            raise InvalidInputError("shadow.to is the variant that answers: name another one")
        if shadow is not None:
            self.shadow.figures.pop((model, shadow.target), None)
        self._plans[model] = TrafficPlan(weights=dict(weights), shadow=shadow)
        self._metrics.divided(model, weights)

    def divide(self, model: str, setting: TrafficSetting) -> None:
        """Divide a model's requests as the file of settings says.

        Raises:
            NotServedError, InvalidInputError: as above.
        """
        shadow = setting.shadow
        if shadow is None:
            self.set(model, setting.weights, None)
        else:
            plan = ShadowPlan(source=shadow.source, target=shadow.target, fraction=shadow.fraction)
            self.set(model, setting.weights, plan)

    def _variants_of(self, model: str) -> list[str]:
        names = [variant.variant for variant in self._variants() if variant.model == model]
        if not names:
            raise NotServedError(f"model {model!r} is not loaded: GET /models lists what is")
        return names


def check_traffic(model: str, setting: TrafficSetting, variants: Sequence[str]) -> None:
    """Refuse what could not be set where these variants of the model are loaded.

    Raises:
        SettingsError: it names another one, or divides nothing.
    """
    shadow = setting.shadow
    for name in (*setting.weights, *(() if shadow is None else (shadow.source, shadow.target))):
        if name not in variants:
            served = ", ".join(variants) or "none"
            raise SettingsError(
                f"traffic.{model}: {name!r} is not among the models: use a variant of {model} ({served})"
            )
    if setting.weights and not any(setting.weights.values()):
        raise SettingsError(f"traffic.{model}: the weights are all 0: give at least one above 0, or none")
    if shadow is not None and shadow.source == shadow.target:
        raise SettingsError(f"traffic.{model}: shadow.to is the variant that answers: name another one")
