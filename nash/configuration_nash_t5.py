"""The configuration of a compact T5. Apart from the model, so that reading one needs no torch."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import T5Config

from model_store.families import compact_model_type
from model_store.spec import ModelSpec


@strict
class NashT5Config(T5Config):
    """A T5Config whose `num_layers` and `num_decoder_layers` count the layers that are left.

    `num_heads`, `d_ff` and the `dense_*` counts are the dense model's. Key names must not begin with "encoder_" or
    "decoder_": transformers rewrites such keys when it asks for one half of an encoder-decoder's configuration.
    """

    model_type = compact_model_type("t5")

    compact_encoder_layers: list[Any] | None = None
    compact_decoder_layers: list[Any] | None = None
    dense_encoder_layers: int | None = None
    dense_decoder_layers: int | None = None

    @classmethod
    def from_spec(cls, spec: ModelSpec, dense: T5Config) -> "NashT5Config":
        """The configuration of a model of shape `spec` that was cut from one with the configuration `dense`."""
        fields = dense.to_dict()
        fields.pop("model_type")
        fields["architectures"] = ["NashT5ForConditionalGeneration"]
        fields["num_layers"], fields["num_decoder_layers"] = len(spec.encoder), len(spec.decoder)
        return cls(**fields, **spec.layer_config())
