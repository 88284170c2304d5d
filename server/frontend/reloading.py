"""Serve by settings that were read again, without a restart.

What the file says is compared with what it said before, not with what is served: a model that an operator has loaded
by hand stays, and so does traffic that was divided by hand, as long as the file says the same of them.
"""

import logging
from collections.abc import Iterable

from server.errors import ApiError, InvalidInputError, SettingsError
from server.frontend.resolution import ResolvedVariant
from server.frontend.room import check_room, needed_bytes, on_cpu
from server.frontend.service import Service
from server.frontend.traffic.traffic import check_traffic
from server.frontend.variant import Variant
from server.settings import Settings, TrafficSetting

_logger = logging.getLogger(__name__)


async def reload(service: Service, wanted: Settings) -> None:
    """Change to what is wanted as far as a running server can, and say in the log what has changed and what cannot.

    Limits change at once. New models are loaded before old ones go, so that no request fails.

    Raises:
        SettingsError: nothing has changed, because a model or a division of traffic that is wanted is impossible.
    """
    settings = service.settings
    added, gone = await _changes(service, wanted)
    changed_traffic = {
        model: wanted.traffic.get(model, TrafficSetting())
        for model in sorted({*settings.traffic, *wanted.traffic})
        if settings.traffic.get(model) != wanted.traffic.get(model)
    }
    names = [(each.model, each.variant) for each in service.variants if each not in gone]
    names += [(each.model, each.variant) for each in added if (each.model, each.variant) not in names]
    for model, traffic in changed_traffic.items():
        check_traffic(model, traffic, [variant for each, variant in names if each == model])
    said = settings.take_up(wanted)
    service.limits_changed()
    for difference in settings.fixed_differences(wanted):
        _logger.warning("%s: start the server again for that", difference)
    try:
        said += await _serve_models(service, added)
        settings.models = wanted.models
        for model, traffic in changed_traffic.items():
            service.traffic.divide(model, traffic)
            said.append(f"traffic of {model}")
        settings.traffic = wanted.traffic
        for variant in gone:
            if any(each is variant for each in service.variants):
                await service.fleet.unload(variant.ref)
                said.append(f"{variant.ref} unloaded")
    except ApiError as error:
        _logger.error("models and traffic were not all changed: %s", error)
    _logger.info("the settings were read again: %s", "; ".join(said) or "nothing has changed")


async def _changes(service: Service, wanted: Settings) -> tuple[list[ResolvedVariant], list[Variant]]:
    """What is to be loaded, found and verified, and what is to go. One that stays with other keys is in the first."""
    before = {request.text: request.ref for request in service.settings.models}
    now = {request.text: request for request in wanted.models}
    try:
        added = [await service.fleet.resolved(request) for text, request in now.items() if text not in before]
        refs = [each.ref for each in added]
        if len(set(refs)) < len(refs):
            raise InvalidInputError(f"models names {', '.join(sorted({r for r in refs if refs.count(r) > 1}))} twice")
        taken = [each.memory_bytes for each in (*service.variants, *service.fleet.leaving) if on_cpu(each.resolved)]
        for resolved in added:
            check_room(resolved, taken, wanted.memory_bytes)
            taken.append(needed_bytes(resolved))
    except ApiError as error:
        raise SettingsError(str(error)) from error
    dropped = {ref for text, ref in before.items() if text not in now}
    gone = [each for each in service.variants if each.resolved.asked.ref in dropped and each.ref not in refs]
    return added, gone


async def _serve_models(service: Service, added: Iterable[ResolvedVariant]) -> list[str]:
    """Load what is new, and put what has other keys in the place of what it was. Returns what was done, in words."""
    said = []
    for resolved in added:
        if any(each.ref == resolved.ref for each in service.variants):
            await service.fleet.swap(resolved.ref, resolved)
            said.append(f"{resolved.ref} loaded with other keys")
        else:
            await service.fleet.load(resolved, wait=True)
            said.append(f"{resolved.ref} loaded")
    return said
