"""`SteeringVector`: one direction per block with its origin and quality figures; arithmetic, saving, applying.

Knows nothing of tokens and of how a vector is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steer_heal.arguments import check_fields, checked, fits
from steer_heal.errors import InputError, library, writing
from steer_heal.ledger.files import readable
from steer_heal.model import LM, GivenLM, as_lm, text_config, unwrap
from steer_heal.reading import from_json, reachable
from steer_heal.shown import LONGEST, plot, table
from steer_heal.steering.injector import Steering, steered


@dataclass(frozen=True)
class Provenance:
    """Where a vector comes from: enough to repeat the extraction and to refuse another model.

    Attributes:
        contexts_sha256: hash of the contexts as they were given, in their order.
        n_contexts: contexts that entered the vector; `n_skipped` were too long for the model and left out.
        position: token the states were read at.
        reason: why these blocks: as asked for, or what `layers="auto"` found.
    """

    model: str
    n_blocks: int
    width: int
    pos: str
    neg: str
    contexts_sha256: str
    n_contexts: int
    position: str
    n_skipped: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Quality:
    """How good a direction is at one block.

    Attributes:
        norm: L2 norm of the mean difference.
        relative_norm: norm over the mean L2 norm of the residual stream at the read position.
        split_half_cosine: cosine between the mean differences of two halves of the contexts (reliability).
        auc: share of (pos, neg) pairs of states ranked rightly along the vector, on contexts that did not enter it.
    """

    norm: float
    relative_norm: float
    split_half_cosine: float
    auc: float


@dataclass(frozen=True)
class SteeringVector:
    """One direction per decoder block, added to that block's output times a dose.

    Attributes:
        vectors: block index -> raw (unnormalised) mean difference, float32 on the CPU.
        provenance: model, personas and contexts it was read from.
        quality: block index -> figures that help to choose blocks, of every block that was measured (all of them
            with `layers="auto"`); empty for derived vectors.
    """

    vectors: Mapping[int, Float[Tensor, " width"]]
    provenance: Provenance
    quality: Mapping[int, Quality] = field(default_factory=dict)

    def __post_init__(self):
        if not self.vectors:
            raise InputError("a steering vector needs at least one block")
        if not all(v.is_floating_point() and torch.isfinite(v).all() for v in self.vectors.values()):
            raise InputError("the steering vector is not finite: check the model's dtype and the contexts")
        n, width = self.provenance.n_blocks, self.provenance.width
        for i, v in self.vectors.items():
            if not 0 <= i < n or v.shape != (width,):
                raise InputError(
                    f"block {i} of shape {tuple(v.shape)}: the model has blocks 0 to {n - 1} of width {width}"
                )

    @classmethod
    def from_tensors(cls, vectors: Mapping[int, object] | object, lm: GivenLM) -> SteeringVector:
        """A direction per block that another tool found on this model: tensors or arrays of its width, by block.

        A `steering_vectors.SteeringVector` or a `repeng.ControlVector` is taken as it is.
        """
        lm = as_lm(lm)
        vectors = getattr(vectors, "layer_activations", getattr(vectors, "directions", vectors))
        if not isinstance(vectors, Mapping) or not all(fits(i, int) for i in vectors):
            raise InputError(
                f"from_tensors takes tensors by block, not {type(vectors).__name__}: give {{block: tensor}}"
            )
        made = {int(i): torch.as_tensor(v).detach().cpu().float().clone() for i, v in vectors.items()}
        origin = Provenance(lm.name, len(lm.blocks), lm.width, "", "", "", 0, "", reason="given as tensors")
        return cls(made, origin)

    def to_steering_vectors(self) -> object:
        """The same as a `steering_vectors.SteeringVector`; its multiplier is the dose. Raises InputError without it."""
        vectors = {i: v.clone() for i, v in self._items()}
        return library("steering_vectors", "steering-vectors").SteeringVector(vectors, layer_type="decoder_block")

    @checked
    def to_repeng(self, model_type: str) -> object:
        """The same as a `repeng.ControlVector` for `model.config.model_type`; its strength is the dose.

        Raises InputError without repeng.
        """
        return library("repeng", "repeng").ControlVector(model_type, {i: v.numpy().copy() for i, v in self._items()})

    def __eq__(self, other: object) -> bool:
        """Equal blocks, origin and bits; quality figures do not count."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        same = (self.layers, self.provenance) == (other.layers, other.provenance)
        return same and torch.equal(self.flat(), other.flat())

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"SteeringVector(blocks {self.layers} of {self.provenance.model}, norm {self.norm():.3g})"[:LONGEST]

    def _repr_html_(self) -> str:
        """Each measured block's figures, as a table and over the depth; a derived vector's norms."""
        if not self.quality:
            return table(("block", "norm"), [(i, float(v.norm())) for i, v in self._items()], repr(self))
        names = ("relative_norm", "split_half_cosine", "auc")
        rows = [(i, *(getattr(q, name) for name in names)) for i, q in sorted(self.quality.items())]
        series = {name.replace("_", " "): [row[place] for row in rows] for place, name in enumerate(names, 1)}
        return table(("block", *series), rows, repr(self)) + plot(series, [row[0] for row in rows], "by block")

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.vectors))

    def check(self) -> SteeringVector:
        """The same. Raises InputError when it is zero everywhere: it would steer nowhere, without a word."""
        if not any(v.any() for v in self.vectors.values()):
            raise InputError(
                f"the steering vector is zero at all of its blocks {self.layers}: the two sides do not differ"
            )
        return self

    def flat(self) -> Float[Tensor, " entries"]:
        """All blocks' directions as one vector, in block order."""
        return torch.cat([self.vectors[i] for i in self.layers])

    def norm(self) -> float:
        """L2 norm over all blocks."""
        return float(self.flat().norm())

    @checked
    def cosine(self, other: SteeringVector) -> float:
        """Cosine with another vector over the same blocks."""
        self._check_same_shape(other)
        return float(torch.cosine_similarity(self.flat(), other.flat(), dim=0))

    def unit(self) -> SteeringVector:
        """Each block's direction with L2 norm 1. Raises InputError where one is zero."""
        if zero := [i for i, v in self._items() if not v.any()]:
            raise InputError(f"the steering vector is zero at block {zero[0]}: it has no direction there")
        return self._derived({i: v / v.norm() for i, v in self._items()})

    @checked
    def scaled_like(self, other: SteeringVector) -> SteeringVector:
        """Each block's direction with the L2 norm that `other` has there."""
        self._check_same_shape(other)
        return self._derived({i: v * other.vectors[i].norm() for i, v in self.unit()._items()})

    def __mul__(self, factor: float) -> SteeringVector:
        return self._derived({i: v * factor for i, v in self._items()})

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        return self * -1.0

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """The sum at blocks that both have, either's own at the others: both at once."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        if (self.provenance.n_blocks, self.provenance.width) != (other.provenance.n_blocks, other.provenance.width):
            raise InputError(f"vectors of {self.provenance.model} and {other.provenance.model} do not combine")
        both = {i: self.vectors[i] + other.vectors[i] for i in self.vectors.keys() & other.vectors.keys()}
        return self._derived({**self.vectors, **other.vectors, **both})

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + (-other) if isinstance(other, SteeringVector) else NotImplemented

    @checked
    def random_like(self, seed: int) -> SteeringVector:
        """Random directions of the same norm per block: the control for "any push of this size does it"."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {i: torch.randn(v.shape, generator=generator) for i, v in self._items()}
        return self._derived(drawn).scaled_like(self)

    @checked
    def save(self, path: str | Path) -> None:
        """Write safetensors with the provenance in its metadata, then read it back and compare."""
        meta = {"provenance": asdict(self.provenance), "quality": {i: asdict(q) for i, q in self.quality.items()}}
        tensors = {f"block.{i}": v.contiguous() for i, v in self._items()}
        with writing(path):
            save_file(tensors, path, metadata={"steering_vector": json.dumps(meta)})
        readable(path)
        back = SteeringVector.load(path)
        if back.layers != self.layers or not torch.equal(back.flat(), self.flat()):
            raise OSError(f"{path}: the vector read back differs from the one written")

    @checked
    def to_gguf(self, path: str | Path) -> None:
        """Write a control vector for llama.cpp: `direction.N` is added to the output of block N, times its scale.

        Raises InputError without the package `gguf` and for a vector at block 0, which llama.cpp cannot steer.
        """
        if 0 in self.vectors:
            raise InputError("the vector steers block 0, and llama.cpp blocks 1 and up: extract it at others (layers=)")
        try:
            from gguf import GGUFWriter
        except ImportError as problem:
            raise InputError("a control vector needs the package gguf: pip install 'steer-heal[gguf]'") from problem
        writer = GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", self.provenance.model)
        writer.add_uint32("controlvector.layer_count", len(self.layers))
        for i, v in self._items():
            writer.add_tensor(f"direction.{i}", v.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    @classmethod
    @checked
    def load(cls, path: str | Path) -> SteeringVector:
        """The inverse of `save`. Raises InputError when the file is missing or no steering vector."""
        if not reachable(path).is_file():
            raise InputError(f"{path}: no such file; save a vector there with SteeringVector.save")
        try:
            with safe_open(reachable(path), framework="pt") as file:
                meta = from_json((file.metadata() or {})["steering_vector"])
                vectors = {int(key.removeprefix("block.")): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            quality = {int(i): Quality(**q) for i, q in meta["quality"].items()}
            origin = Provenance(**meta["provenance"])
            for part in (origin, *quality.values()):
                check_fields(part)
            return cls(vectors, origin, quality)
        except (SafetensorError, LookupError, ValueError, TypeError, AttributeError) as problem:
            raise InputError(f"{path}: not a steering vector saved by steer_heal ({problem})") from problem

    @checked
    @contextmanager
    def applied(
        self,
        model: nn.Module | LM,
        dose: float | Sequence[float] | Float[Tensor, " batch"] = 1.0,
        scope: str = "all",
        prompt_lengths: Sequence[int] | None = None,
        operator: str = "add",
        positions: Int[Tensor, "batch position"] | Bool[Tensor, "batch position"] | None = None,
        min_token: int = 0,
    ) -> Iterator[Steering]:
        """Within this context plain transformers calls on `model` are steered: block output + dose * vector.

        The hooks run before others on the blocks, which therefore see the steered output, `output_hidden_states` too.
        `keep_rows` of what the context gives takes rows, each with its dose, out of a batch that is under way.

        Args:
            model: an `LM`, or a transformers model, PEFT-wrapped or not.
            dose: multiples of the vector; one for all rows or one per row. Rows repeated by `num_return_sequences`
                take their prompt's dose.
            scope: `all` positions; `generated`: those that produce a reply token, that is the last prompt token and
                every sampled one; `prompt`: the prompt's tokens. Pads are never steered.
            prompt_lengths: real prompt tokens per row of a teacher-forced pass (prompt and reply in one call), so
                that it steers exactly the positions that sampling steered. Without it a call with an empty cache is
                taken as a prompt.
            operator: `add`, or `project_out`: block output h - dose * (h . u) u with u the vector at norm 1, so that
                dose 1 leaves nothing of the direction (ablation; Arditi et al. 2024, arXiv 2406.11717).
            positions: 1 for each token of a prompt or a teacher-forced pass that is steered, 0 for the others, in the
                shape of `input_ids`; it narrows the scope. Sampled tokens follow the scope alone.
            min_token: index in its row, from 0 and without pads, of the first token that is steered.

        Raises:
            InputError: a zero vector, another width or number of blocks, an unknown scope, positions of another shape,
                a nested use on one model.
        """
        base = unwrap(model)
        self.check()._check_fits(base)
        with steered(base, self.vectors, dose, scope, prompt_lengths, operator, positions, min_token) as steering:
            yield steering

    def _items(self):
        return ((i, self.vectors[i]) for i in self.layers)

    def _derived(self, vectors: Mapping[int, Tensor]) -> SteeringVector:
        return replace(self, vectors=vectors, quality={})

    def _check_same_shape(self, other: SteeringVector) -> None:
        if self.layers != other.layers or self.provenance.width != other.provenance.width:
            raise InputError(f"vectors of blocks {self.layers} and {other.layers} (or other widths) do not combine")

    def _check_fits(self, base: nn.Module) -> None:
        config = text_config(base)
        have, want = (config.num_hidden_layers, config.hidden_size), (self.provenance.n_blocks, self.provenance.width)
        if have != want:
            raise InputError(
                f"vector of {self.provenance.model} ({want[0]} blocks, width {want[1]}) does not fit a model with "
                f"{have[0]} blocks, width {have[1]}: extract one on this model"
            )
