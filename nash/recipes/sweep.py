"""Sweep recipes: shapes, seeds and methods around one prune recipe, in strictly parsed TOML like the others."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nash.errors import RequestError
from nash.recipes.recipe import PruneRecipe, Section, Seed, dotted, read_recipe

Publish = Literal["none", "frontier", "all"]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Layers = int | list[int] | None  # as in a prune recipe: how many, which ones, or all

# Keys that all points must share, so that their figures are comparable, and keys that the sweep itself sets.
_SHARED = ("model", "name", "data", "metric", "workload", "device")
_SWEPT = ("alias", "seed", "pruning.decoder_layers", "pruning.encoder_sparsity", "pruning.speedup")


class PointRecipe(Section):
    """One shape of a list. Values that it leaves out come from the prune recipe."""

    decoder_layers: Layers = None
    """How many decoder layers to keep, or which ones."""
    encoder_sparsity: Sparsity | None = None
    """The fraction to cut of the encoder."""


class Shapes(Section):
    """A grid of shapes, every number of decoder layers with every encoder sparsity, and a list of single shapes.

    An axis that is left out stays at the prune recipe's value. Or a list of speed-ups, for which shapes are found.
    """

    decoder_layers: list[int | list[int]] = Field(default=[])
    """The first axis of the grid."""
    encoder_sparsity: list[Sparsity] = Field(default=[])
    """The second axis of the grid."""
    points: list[PointRecipe] = Field(default=[])
    """Single shapes beside the grid."""
    speedup: list[Annotated[float, Field(gt=1)]] = Field(default=[])
    """Speed-ups to ask for, instead of shapes."""

    @property
    def named(self) -> bool:
        """Whether any shape is named here."""
        return bool(self.decoder_layers or self.encoder_sparsity or self.points or self.speedup)

    def all(self, base: PruneRecipe) -> Iterator["Shape"]:
        """Every shape; the prune recipe's own if none is named."""
        own = base.pruning
        if self.speedup:
            for asked in self.speedup:
                yield Shape(speedup=asked)
            return
        if self.decoder_layers or self.encoder_sparsity or not self.points:
            layers: list[Layers] = [*self.decoder_layers] or [own.decoder_layers]
            for kept, sparsity in product(layers, self.encoder_sparsity or [own.encoder_sparsity]):
                yield Shape.of(kept, sparsity)
        for point in self.points:
            given = point.model_fields_set
            yield Shape.of(
                point.decoder_layers if "decoder_layers" in given else own.decoder_layers,
                own.encoder_sparsity if point.encoder_sparsity is None else point.encoder_sparsity,
            )

    @model_validator(mode="after")
    def _shapes_or_speeds(self) -> Self:
        if self.speedup and (self.decoder_layers or self.encoder_sparsity or self.points):
            raise ValueError(
                "speedup finds the shapes: leave decoder_layers, encoder_sparsity and points out beside it"
            )
        return self


class MethodRecipe(Shapes):
    """A way to prune: dotted keys of the prune recipe under `set`; for its own shapes if any, else the sweep's."""

    name: str = Field(pattern="^[^_]")
    """What the report calls it. A legend shows no name that begins with `_`."""
    set: dict[str, Any] = Field(default={})
    """Keys of the prune recipe that this method changes, dotted or as tables."""

    @property
    def changes(self) -> dict[str, Any]:
        """`set` with dotted keys, whether it was written with dotted keys or with tables."""
        return dict(dotted(self.set))

    @property
    def slug(self) -> str:
        """The name as used in folders and aliases."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @model_validator(mode="after")
    def _sets_what_may_differ(self) -> Self:
        for key in self.changes:
            if key.split(".")[0] in _SHARED:
                raise ValueError(
                    f"method {self.name!r} sets {key!r}, which all points share: set it in the prune recipe"
                )
            if key in _SWEPT:
                raise ValueError(
                    f"method {self.name!r} sets {key!r}, which the sweep sets for every point: leave it out"
                )
        if not self.slug:
            raise ValueError(f"method {self.name!r} has no letter or digit in its name, which names its points")
        return self


class SweepRecipe(Shapes):
    """`nash sweep`: prune the same model to many shapes, with several seeds, by one or more methods."""

    recipe: Path
    """The prune recipe that every point starts from."""
    seeds: list[Seed] = Field(default=[0], min_length=1)
    """Every point is run with each of them."""
    methods: list[MethodRecipe] = Field(default=[MethodRecipe(name="NASH")], min_length=1)
    """The methods to compare."""
    control: bool = False
    """Also train the whole model on: all layers, nothing cut, the same losses, as many steps as the others get. What it
    gains is not owed to pruning."""
    publish: Publish = "none"
    """Which points go into the store."""
    quality_kept: float = Field(default=0.97, gt=0, le=1)
    """The report names the fastest point that keeps this share of the dense quality."""

    @model_validator(mode="after")
    def _methods_are_told_apart(self) -> Self:
        slugs = [method.slug for method in self.methods]
        for method in self.methods:
            if slugs.count(method.slug) > 1:
                raise ValueError(f"two methods are called {method.slug!r} in folders and aliases: name one differently")
        return self


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The requested shape of one point, or the requested speed-up.

    `decoder_layers` is a number, the kept layers, or None for all.
    """

    decoder_layers: int | tuple[int, ...] | None = None
    encoder_sparsity: float = 0.0
    speedup: float | None = None

    @classmethod
    def of(cls, decoder_layers: Layers, encoder_sparsity: float) -> "Shape":
        """The shape with a recipe's values."""
        layers = tuple(decoder_layers) if isinstance(decoder_layers, list) else decoder_layers
        return cls(decoder_layers=layers, encoder_sparsity=encoder_sparsity)

    @property
    def slug(self) -> str:
        """Such as d2-s0.3, l0_3-s0.3 for the layers 0 and 3, or x2.5 for a speed-up."""
        if self.speedup is not None:
            return f"x{self.speedup:g}"
        if isinstance(self.decoder_layers, tuple):
            layers = "l" + "_".join(map(str, self.decoder_layers))
        else:
            layers = "dall" if self.decoder_layers is None else f"d{self.decoder_layers}"
        return f"{layers}-s{self.encoder_sparsity:g}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep. Its id is its folder's name and, when published, its alias."""

    id: str
    method: str
    shape: Shape
    seed: int
    recipe: PruneRecipe


def read_sweep(path: Path, overrides: dict[str, Any] | None = None) -> tuple[SweepRecipe, list[Point]]:
    """Read a sweep's recipe and make every point's prune recipe. The first seed's points come first.

    `overrides` are keys from the command line that win over the file's.

    Raises:
        RequestError: a file cannot be read, a key or a value is wrong, or two points are the same.
    """
    sweep = read_recipe(SweepRecipe, path, overrides)
    base = read_recipe(PruneRecipe, sweep.recipe)
    if base.pruning.speedup is not None:
        raise RequestError(
            f"recipe {sweep.recipe}: pruning.speedup chooses a shape, but a sweep sets the shapes: leave it out"
        )
    points: dict[str, Point] = {}
    methods = [*sweep.methods, _control(base)] if sweep.control else sweep.methods
    for seed, method in product(sweep.seeds, methods):
        for shape in (method if method.named else sweep).all(base):
            point = _point(sweep, path, method, shape, seed)
            if point.id in points:
                raise RequestError(
                    f"recipe {path}: the point {point.id} is asked for twice: name each seed, method and shape once"
                )
            points[point.id] = point
    _check_different(path, list(points.values()))
    return sweep, list(points.values())


CONTROL = "dense, trained on"


def _control(base: PruneRecipe) -> MethodRecipe:
    """The method that cuts nothing and trains as long as both phases of the others."""
    first, final = base.prune_training, base.final_training
    length: dict[str, Any] = {"epochs": first.epochs + final.epochs, "max_steps": None}
    if first.max_steps is not None and final.max_steps is not None:
        length = {"epochs": final.epochs, "max_steps": first.max_steps * bool(first.epochs) + final.max_steps}
    return MethodRecipe(
        name=CONTROL,
        points=[PointRecipe(decoder_layers=None, encoder_sparsity=0.0)],
        set={f"final_training.{key}": value for key, value in length.items()},
    )


def _point(sweep: SweepRecipe, path: Path, method: MethodRecipe, shape: Shape, seed: int) -> Point:
    name = f"{method.slug}-{shape.slug}-seed{seed}"
    layers = shape.decoder_layers
    overrides = method.changes | {"alias": name, "seed": seed}
    if shape.speedup is not None:
        overrides |= {"pruning.speedup": shape.speedup}
    else:
        overrides |= {
            "pruning.decoder_layers": list(layers) if isinstance(layers, tuple) else layers,
            "pruning.encoder_sparsity": shape.encoder_sparsity,
        }
    try:
        recipe = read_recipe(PruneRecipe, sweep.recipe, overrides)
    except RequestError as error:
        raise RequestError(f"recipe {path}, point {name}: {error}") from error
    return Point(id=name, method=method.name, shape=shape, seed=seed, recipe=recipe)


def _check_different(path: Path, points: list[Point]) -> None:
    """Refuse two methods that do the same: they would train one model twice and appear separately in the report."""
    known: dict[str, Point] = {}
    for point in points:
        what = point.recipe.model_copy(update={"alias": ""}).model_dump_json()
        if what in known:
            raise RequestError(
                f"recipe {path}: the methods {known[what].method!r} and {point.method!r} do the same at the point "
                f"{point.id}: let one of them set something else, or leave it out"
            )
        known[what] = point
