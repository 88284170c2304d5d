"""Models on the Hugging Face hub, by names such as `hub:google/flan-t5-small` or `hub:OWNER/NAME@REVISION`."""

import re
from pathlib import Path

from model_store.model.model import CONFIG, GENERATION, INDEX, TOKENIZER_FILES, WEIGHTS
from nash.errors import RequestError
from nash.recipes.recipe import HUB_PREFIX

_NAME = re.compile(r"hub:(?P<name>(?:[\w.-]+/)?[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
# Nothing that could run code, and no weights in another form.
_WANTED = (CONFIG, GENERATION, WEIGHTS, INDEX, "model-*-of-*.safetensors", *TOKENIZER_FILES)


def names_a_hub_model(text: str) -> bool:
    """Whether a model is given by its name on the hub."""
    return text.startswith(HUB_PREFIX)


def snapshot(text: str) -> tuple[Path, str]:
    """Download a model, or find it in the hub's local cache; its folder, and its name with the commit.

    The folder is the cache's: its files are symbolic links, and it may have more of them than were asked for.

    Raises:
        RequestError: the name is malformed, or the model is neither on the hub nor in the cache.
    """
    parts = _NAME.fullmatch(text)
    if parts is None:
        raise RequestError(f"{text} does not name a model on the hub: write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    from huggingface_hub import snapshot_download  # takes half a second

    try:
        folder = snapshot_download(parts["name"], revision=parts["revision"], allow_patterns=list(_WANTED))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"{text} is neither on the hub nor in its local cache ({type(error).__name__}: {reason}): check the name "
            "and the network, or copy the model here and give its folder"
        ) from error
    return Path(folder), f"{HUB_PREFIX}{parts['name']}@{Path(folder).name}"
