"""Steering vectors: extraction from a persona pair, arithmetic, saving, and applying them with a dose per row.

Knows nothing of sampling, filters and training.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steer_heal.errors import InputError
from steer_heal.lm import LM, find_blocks, length_batches, pick_layers, text_config, unwrap
from steer_heal.recording import record, template_suffix

POSITIONS = ("last", "last_content", "reply")
SCOPES = ("all", "generated", "prompt")
_steered: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Provenance:
    """Where a vector comes from: enough to repeat the extraction and to refuse another model."""

    model: str
    n_blocks: int
    width: int
    pos: str
    neg: str
    contexts_sha256: str
    n_contexts: int
    position: str


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
        quality: block index -> figures that help to choose blocks; empty for derived vectors.
    """

    vectors: Mapping[int, Float[Tensor, " width"]]
    provenance: Provenance
    quality: Mapping[int, Quality] = field(default_factory=dict)

    def __post_init__(self):
        if not self.vectors:
            raise InputError("a steering vector needs at least one block")
        if not all(torch.isfinite(v).all() for v in self.vectors.values()):
            raise InputError("the steering vector is not finite: check the model's dtype and the contexts")

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.vectors))

    def flat(self) -> Float[Tensor, " entries"]:
        """All blocks' directions as one vector, in block order."""
        return torch.cat([self.vectors[i] for i in self.layers])

    def norm(self) -> float:
        """L2 norm over all blocks."""
        return float(self.flat().norm())

    def cosine(self, other: SteeringVector) -> float:
        """Cosine with another vector over the same blocks."""
        self._check_same_shape(other)
        return float(torch.cosine_similarity(self.flat(), other.flat(), dim=0))

    def projection(self, other: SteeringVector) -> SteeringVector:
        """The part of this vector that lies along `other`, block by block."""
        self._check_same_shape(other)
        along = {i: other.vectors[i] / other.vectors[i].norm() for i in self.layers}
        return self._derived({i: (v @ along[i]) * along[i] for i, v in self._items()})

    def unit(self) -> SteeringVector:
        """Each block's direction with L2 norm 1."""
        return self._derived({i: v / v.norm() for i, v in self._items()})

    def __mul__(self, factor: float) -> SteeringVector:
        return self._derived({i: v * factor for i, v in self._items()})

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        return self * -1.0

    def __add__(self, other: SteeringVector) -> SteeringVector:
        self._check_same_shape(other)
        return self._derived({i: v + other.vectors[i] for i, v in self._items()})

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + (-other)

    def random_like(self, seed: int) -> SteeringVector:
        """Random directions of the same norm per block: the control for "any push of this size does it"."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {i: torch.randn(v.shape, generator=generator) for i, v in self._items()}
        return self._derived({i: d / d.norm() * self.vectors[i].norm() for i, d in drawn.items()})

    def save(self, path: str | Path) -> None:
        """Write safetensors with the provenance in its metadata, then read it back and compare."""
        meta = {"provenance": asdict(self.provenance), "quality": {i: asdict(q) for i, q in self.quality.items()}}
        tensors = {f"block.{i}": v.contiguous() for i, v in self._items()}
        save_file(tensors, path, metadata={"steering_vector": json.dumps(meta)})
        back = SteeringVector.load(path)
        if back.layers != self.layers or not torch.equal(back.flat(), self.flat()):
            raise OSError(f"{path}: the vector read back differs from the one written")

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """The inverse of `save`. Raises InputError when the file is missing or no steering vector."""
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; save a vector there with SteeringVector.save")
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["steering_vector"])
                vectors = {int(key.removeprefix("block.")): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as problem:
            raise InputError(f"{path}: not a steering vector saved by steer_heal ({problem})") from problem
        quality = {int(i): Quality(**q) for i, q in meta["quality"].items()}
        return cls(vectors, Provenance(**meta["provenance"]), quality)

    @contextmanager
    def applied(
        self,
        model: nn.Module,
        dose: float | Sequence[float] | Float[Tensor, " batch"] = 1.0,
        scope: str = "all",
        prompt_lengths: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Within this context plain transformers calls on `model` are steered: block output + dose * vector.

        Args:
            model: a transformers model, PEFT-wrapped or not.
            dose: multiples of the vector; one for all rows or one per row. Rows repeated by `num_return_sequences`
                take their prompt's dose.
            scope: `all` positions; `generated`: those that produce a reply token, that is the last prompt token and
                every sampled one; `prompt`: the prompt's tokens. Pads are never steered.
            prompt_lengths: real prompt tokens per row of a teacher-forced pass (prompt and reply in one call), so
                that it steers exactly the positions that sampling steered. Without it a call with an empty cache is
                taken as a prompt.

        Raises:
            InputError: another width or number of blocks, an unknown scope, a nested use on the same model.
        """
        base = unwrap(model)
        self._check_fits(base)
        if scope not in SCOPES:
            raise InputError(f"scope {scope!r} is unknown: use {', '.join(SCOPES)}")
        if base in _steered:
            raise InputError("this model is steered already: leave the outer applied() first, doses would add up")
        injector = _Injector(self, base, dose, scope, prompt_lengths)
        blocks = base.get_submodule(find_blocks(base))
        # The backbone sees every call, whether it comes through the whole model, generate() or directly.
        handles = [base.base_model.register_forward_pre_hook(injector.before_forward, with_kwargs=True)]
        handles += [blocks[i].register_forward_hook(injector.block_hook(i)) for i in self.layers]
        _steered.add(base)
        try:
            yield
        finally:
            _steered.discard(base)
            for handle in handles:
                handle.remove()

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


class _Injector:
    """The hooks of one `applied()`: what to add is worked out once per forward pass, each block makes one addition."""

    def __init__(self, vector: SteeringVector, base: nn.Module, dose, scope: str, prompt_lengths):
        like = next(base.parameters())
        self.scope, self.prompt_lengths = scope, prompt_lengths
        self.vectors = {i: vector.vectors[i].to(like.device) for i in vector.layers}
        self.dtype = like.dtype
        self.dose = torch.as_tensor(dose, dtype=torch.float32, device=like.device)
        if self.dose.ndim > 1 or not bool(torch.isfinite(self.dose).all()):
            raise InputError("a dose is a finite number or one finite number per row")
        self.per_rows: dict[int, dict[int, Tensor]] = {}
        self.mask: Tensor | None = None

    def before_forward(self, module: nn.Module, args, kwargs) -> None:
        """Work out which positions of this call are steered; None stands for all of them."""
        inputs = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        if inputs is None and args:
            inputs = args[0]
        n_new = inputs.shape[1]
        cache = kwargs.get("past_key_values")
        decoding = n_new == 1 and cache is not None and int(cache.get_seq_length()) > 0
        attention = kwargs.get("attention_mask")
        real = attention[:, -n_new:] if isinstance(attention, Tensor) and attention.ndim == 2 else None
        if decoding:
            self.mask = None if self.scope != "prompt" else torch.zeros_like(inputs[:, :1])
        elif self.scope == "all":
            self.mask = real
        else:
            every = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
            self.mask = self._prompt_or_reply(every if real is None else real)

    def _prompt_or_reply(self, real: Tensor) -> Tensor:
        order = real.cumsum(-1)  # 1 for a row's first real token
        given = self.prompt_lengths
        length = order[:, -1:] if given is None else torch.tensor(given, device=real.device)[:, None]
        if length.shape[0] != real.shape[0]:
            raise InputError(f"{length.shape[0]} prompt lengths for a batch of {real.shape[0]} rows: give one per row")
        return real * (order >= length if self.scope == "generated" else order <= length)

    def block_hook(self, layer: int) -> Callable:
        def add(module: nn.Module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            delta = self._delta(layer, hidden)
            if self.mask is not None:
                delta = delta * self.mask[:, :, None].to(hidden.device, hidden.dtype)
            hidden = hidden + delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    def _delta(self, layer: int, hidden: Tensor) -> Tensor:
        """dose * vector in the model's dtype: [width], or [batch, 1, width] for a dose per row; kept per batch size."""
        rows = hidden.shape[0]
        if layer not in self.per_rows.setdefault(rows, {}):
            vector = self.vectors[layer]
            if self.dose.ndim == 0:
                delta = self.dose * vector
            else:
                if rows % len(self.dose):
                    raise InputError(f"{len(self.dose)} doses for a batch of {rows} rows: give one dose or one per row")
                delta = (self.dose.repeat_interleave(rows // len(self.dose))[:, None] * vector)[:, None, :]
            self.per_rows[rows][layer] = delta.to(hidden.device, hidden.dtype)
        return self.per_rows[rows][layer]


def contexts_sha256(contexts: Sequence[str]) -> str:
    """Hash of the extraction contexts in their order."""
    return hashlib.sha256("\0".join(contexts).encode()).hexdigest()


@torch.no_grad()
def extract(
    lm: LM,
    pos: str,
    neg: str,
    contexts: Sequence[str],
    layers: Sequence[float] = (0.45, 0.55),
    position: str = "last",
    replies: Sequence[str] | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> SteeringVector:
    """Mean difference of hidden states between two opposite persona system prompts, over the same user turns.

    v_l = mean_c [h_l(pos, c) - h_l(neg, c)] at block l's output (contrastive activation addition: Turner et al. 2023,
    Panickssery et al. 2024). Differences are summed in float64 whatever the model's dtype; memory does not grow with
    the number of contexts.

    Args:
        pos, neg: system prompts, direct opposites on one axis, of the same length and form.
        contexts: user turns; diverse ones, from many domains, else the direction fits their format.
        layers: block indices, or a band of relative depth as two fractions.
        position: token the state is read at: `last` (the assistant tag, which produces the first reply token),
            `last_content` (the last token of the user turn) or `reply` (mean over the tokens of `replies`).
        replies: one assistant reply per context, for `position="reply"`.
        batch_tokens: padded tokens per forward pass.
        progress: called with (pairs done, pairs in all).

    Raises:
        InputError: fewer than 2 contexts, equal personas, a context longer than the model takes, unknown position.
    """
    if position not in POSITIONS:
        raise InputError(f"position {position!r} is unknown: use {', '.join(POSITIONS)}")
    if len(contexts) < 2:
        raise InputError(f"{len(contexts)} extraction contexts: give at least 2, better 200 diverse ones")
    if pos.strip() == neg.strip():
        raise InputError("both personas are the same text: the difference would be zero")
    if (replies is not None) != (position == "reply") or (replies is not None and len(replies) != len(contexts)):
        raise InputError("position 'reply' goes with one reply per context, the other positions with none")
    blocks = pick_layers(layers, len(lm.blocks))
    reader = _PairReader(lm, pos, neg, contexts, replies, position, batch_tokens)
    halves = [range(0, len(contexts), 2), range(1, len(contexts), 2)]
    done = 0
    sums: list[dict[int, Tensor]] = []
    scores: dict[int, list[Tensor]] = {i: [] for i in blocks}
    residual = {i: 0.0 for i in blocks}
    for half in halves:
        total = {i: torch.zeros(lm.width, dtype=torch.float64) for i in blocks}
        for n_pairs, states in reader.read(half, blocks):
            for i, (h_pos, h_neg) in states.items():
                total[i] += (h_pos - h_neg).sum(0)
                residual[i] += float(h_pos.norm(dim=-1).sum() + h_neg.norm(dim=-1).sum())
                if sums:  # the second half is held out from the first half's direction
                    scores[i].append(torch.stack([h_pos @ sums[0][i], h_neg @ sums[0][i]]))
            done += n_pairs
            if progress:
                progress(done, len(contexts))
        sums.append(total)
    vectors = {i: ((sums[0][i] + sums[1][i]) / len(contexts)).float() for i in blocks}
    quality = {
        i: Quality(
            norm=float(vectors[i].norm()),
            relative_norm=float(vectors[i].norm()) / (residual[i] / (2 * len(contexts))),
            split_half_cosine=float(torch.cosine_similarity(sums[0][i], sums[1][i], dim=0)),
            auc=_auc(torch.cat(scores[i], dim=1)),
        )
        for i in blocks
    }
    provenance = Provenance(
        lm.name, len(lm.blocks), lm.width, pos, neg, contexts_sha256(contexts), len(contexts), position
    )
    return SteeringVector(vectors, provenance, quality)


@dataclass(frozen=True)
class _PairReader:
    """Reads both personas' states for some of the contexts, batched by length."""

    lm: LM
    pos: str
    neg: str
    contexts: Sequence[str]
    replies: Sequence[str] | None
    position: str
    batch_tokens: int

    def read(self, indices: Sequence[int], blocks: Sequence[int]):
        """Yield (pairs in the batch, {block: (pos states, neg states)}), the states [pairs, width] in float64."""
        rows = [(self._row(i, self.pos), self._row(i, self.neg)) for i in indices]
        lengths = [max(len(p[0]), len(n[0])) for p, n in rows]
        for batch in length_batches(lengths, self.batch_tokens // 2):
            pairs = [rows[j] for j in batch]
            both = [p for p, _ in pairs] + [n for _, n in pairs]
            states = record(self.lm, [ids for ids, _ in both], [span for _, span in both], blocks)
            yield len(pairs), {i: (s[: len(pairs)], s[len(pairs) :]) for i, s in states.items()}

    def _row(self, i: int, persona: str) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Token ids, and the span (counted from the right end) over which the state is averaged."""
        ids = self.lm.chat_ids(self.contexts[i], persona)
        if self.position == "reply":
            reply = self.lm.tokenizer.encode(self.replies[i], add_special_tokens=False)
            if len(ids) + len(reply) > self.lm.context_length:
                raise InputError(f"context {i} with its reply does not fit the model's {self.lm.context_length} tokens")
            return (*ids, *reply), (len(reply), 0)
        suffix = 0 if self.position == "last" else template_suffix(self.lm)
        return ids, (suffix + 1, suffix)


def _auc(scores: Float[Tensor, "2 pairs"]) -> float:
    """Probability that a random pos state lies further along the direction than a random neg state (ties half)."""
    pos, neg = scores[0][:, None], scores[1][None, :]
    return float(((pos > neg).double() + 0.5 * (pos == neg).double()).mean())
