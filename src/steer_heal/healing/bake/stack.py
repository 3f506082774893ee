"""`AdapterStack`: the rounds' adapters folded into a model's weights, or beside packed ones, and taken out again.

Knows nothing of training, data or divergences.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake.beside import Factors, factors_of, put_beside
from steer_heal.healing.bake.export import write_merged, write_peft
from steer_heal.healing.bake.guards import in_use
from steer_heal.model import LM, unwrap
from steer_heal.model.names import reference
from steer_heal.model.structure import bare, full_weight, takes_no_delta, weight_of

ROUNDING_WARNING = 0.3
"""Share of the intended change lost to the weights' dtype from which on a bake warns."""

Held = Tensor | Factors | None
"""What a stack puts into a module: a weight, or what is computed beside a quantised one."""
_STACKS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[AdapterStack]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class FoldReport:
    """What a push did to the weights, over all adapted modules together.

    Attributes:
        round: index of the pushed adapter in the stack.
        dose: its factor.
        rounding_loss: |realised - intended| / |intended| for the stack's change to the pushed adapter's modules
            (Frobenius norms): 1 minus the share that the weights' dtype captured. bf16 loses .8 / .5 / .17 / .05
            at a relative change of 1e-3 / 3e-3 / 1e-2 / 3e-2.
        gain: <realised, intended> / |intended|^2, 1 when nothing is lost.
        relative_change: |intended| / |pristine weights|.
    """

    round: int
    dose: float
    rounding_loss: float
    gain: float
    relative_change: float

    @property
    def warning(self) -> str | None:
        """One line when the dtype swallowed more than `ROUNDING_WARNING` of the change."""
        if self.rounding_loss <= ROUNDING_WARNING:
            return None
        return (
            f"round {self.round}: rounding to the weights' dtype loses {self.rounding_loss:.0%} of the change "
            f"(relative size {self.relative_change:.1e}); train longer, or load the model in float32"
        )


class AdapterStack:
    """The rounds' adapters folded into a model: weight = cast(pristine + sum over rounds of dose * delta).

    The deltas are summed in round order in float64 and cast once, so no error grows with the number of rounds. The
    forward pass is plain weights, without hooks. Pristine tensors are kept by reference, never copied; the stack must
    outlive its folds, and a model can have one non-empty stack at a time.

    A quantised weight takes no delta, nor does one of which FSDP keeps a share in each process: the sum is computed
    beside it, exactly as `export_peft` writes it.
    """

    def __init__(self, model: nn.Module | LM) -> None:
        self.model = unwrap(model)
        refuse_folded(self.model)
        self._rounds: list[tuple[Adapter, float]] = []
        self._pristine: dict[str, Held] = {}
        self._folded: dict[str, Held] = {}
        self._depth = 0
        _STACKS[self.model] = weakref.ref(self)

    def __len__(self) -> int:
        return len(self._rounds)

    def __repr__(self) -> str:
        return f"AdapterStack({type(self.model).__name__}, {len(self)} folded, doses {self.doses[:9]})"

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The folded adapters in round order."""
        return tuple(adapter for adapter, _ in self._rounds)

    @property
    def doses(self) -> tuple[float, ...]:
        """The factor of each folded adapter."""
        return tuple(dose for _, dose in self._rounds)

    @checked
    def push(self, adapter: Adapter, dose: float = 1.0) -> FoldReport:
        """Fold one more adapter in, `dose` times its delta.

        Raises InputError for an empty adapter, a delta that is not finite in the weights' dtype, one made for another
        model, and a dose that is no number; the stack and the weights are then as before, whatever is raised.
        """
        self._refuse_while_open("push")
        if not math.isfinite(dose):
            raise InputError(f"dose {dose} is not a finite number")
        adapter.check()
        for name in adapter.modules:
            self._check_module(adapter, name)
        if len({id(self._weight(name)) for name in adapter.modules}) < len(adapter.modules):
            raise InputError("the adapter changes one shared weight through two modules: adapt untied modules only")
        before = {name: self._held(name) for name in adapter.modules}
        kept = self._rounds.copy(), self._pristine.copy(), self._folded.copy()
        try:
            for name, held in before.items():
                self._pristine.setdefault(name, held)
            self._rounds.append((adapter, dose))
            return self._refold(adapter.modules)
        except BaseException:  # whatever stops it: too little memory, Ctrl-C, a delta out of range
            self._rounds, self._pristine, self._folded = kept
            self._place(before)
            raise

    def pop(self) -> Adapter:
        """Take the last adapter out again; the weights are those of before its push, bit for bit."""
        self._refuse_while_open("pop")
        if not self._rounds:
            raise InputError("the stack is empty: there is nothing to pop")
        adapter, _ = self._rounds.pop()
        self._refold(adapter.modules)
        return adapter

    def clear(self) -> None:
        """Take all adapters out; the weights are the original ones, bit for bit."""
        while self._rounds:
            self.pop()

    @contextmanager
    def unfolded(self) -> Iterator[None]:
        """The original weights, bit for bit, inside the block; the folded ones are back after it, also on an exception.

        Pointers are swapped, nothing is copied, and nesting is harmless. Do not enter it between a forward pass and
        its backward pass: autograd does not notice the swap and would return gradients at the wrong weights. Within
        `heal` that is refused; in a training loop of your own it cannot be seen.
        """
        if in_use(self.model):
            raise RuntimeError(
                "unfolded() inside a running heal would falsify its gradients: compute references before"
            )
        self._check_untouched()
        self._depth += 1
        if self._depth == 1:
            self._place(self._pristine)
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._place(self._folded)

    def summed_delta(
        self, name: str, device: torch.device | str = "cpu", part: int | EllipsisType = ...
    ) -> Float[Tensor, "*expert rows columns"]:
        """Sum over rounds of dose * delta for one module (one expert: `part`), in round order, float64."""
        parts = [dose * adapter.delta(name, device, part) for adapter, dose in self._rounds if name in adapter.a]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    @contextmanager
    def scaled(self, c: float) -> Iterator[None]:
        """Inside the block every round counts `c` times its dose; the weights are as before after it, bit for bit."""
        self._refuse_while_open("scaled")
        kept, names = self._rounds, tuple({name for adapter in self.adapters for name in adapter.modules})
        try:
            self._rounds = [(adapter, c * dose) for adapter, dose in kept]
            self._refold(names)
            yield
        finally:
            self._rounds = kept
            self._refold(names)

    @checked
    def compress(self, rank: int) -> Adapter:
        """Replace the rounds by one adapter, the nearest of this rank to their sum, and return it.

        Raises InputError for an empty stack and a rank under 1.
        """
        if rank < 1:
            raise InputError(f"rank {rank}: give at least 1")
        whole = self.concatenated()
        adapter = whole.compressed(rank) if rank < whole.rank else whole
        while len(self):
            self.pop()
        self.push(adapter)
        return adapter

    @checked
    def export_peft(
        self, folder: str | Path, lm: LM | None = None, *, base: str | None = None, card: str | None = None
    ) -> Adapter:
        """Write one PEFT adapter for the whole stack and return it.

        The rounds' factors are concatenated along the rank (A stacked, dose * alpha / r * B side by side), which is
        exact; a linear combination of factors would have cross terms. The folder counts as written only after plain
        `peft` loaded it beside the original weights and the logits matched the baked model's.

        Args:
            lm: the model of this stack, whose tokenizer and chat template are written beside the adapter.
            base: hub id or folder that the adapter names as its base; default: what the model was loaded by, a
                folder as an absolute path.
            card: text of the folder's README.md.

        Raises InputError for an empty stack, and when `lm` is not its model.
        """
        self._refuse_while_open("export_peft")
        self._check_own(lm)
        adapter = self.concatenated()
        adapter = replace(adapter, base_model=base or reference(adapter.base_model))
        write_peft(adapter, folder, self.model, self.unfolded, lm and lm.tokenizer, card)
        return adapter

    def concatenated(self) -> Adapter:
        """One adapter whose delta is the stack's sum. InputError for an empty stack.

        Its rank is the sum of the ranks, or else the least at which every module can have any delta.
        """
        if not self._rounds:
            raise InputError("the stack is empty: there is no adapter to export")
        return self._concatenated(sorted({name for adapter in self.adapters for name in adapter.modules}))

    def _concatenated(self, names: Sequence[str]) -> Adapter:
        first, rank = self.adapters[0], sum(adapter.rank for adapter in self.adapters)
        a, b = {}, {}
        for name in names:
            like_a, like_b = next((x.a[name], x.b[name]) for x in self.adapters if name in x.a)
            rows, columns = [], []
            for adapter, dose in self._rounds:
                # A module that a round did not train gets zeros, so that one rank serves every module.
                rows.append(adapter.a.get(name, like_a.new_zeros(*like_a.shape[:-2], adapter.rank, like_a.shape[-1])))
                factor = adapter.b.get(name, like_b.new_zeros(*like_b.shape[:-1], adapter.rank))
                columns.append((dose * adapter.scaling * factor.double()).float())
            a[name], b[name] = torch.cat(rows, dim=-2), torch.cat(columns, dim=-1)
        named = (name.replace(".base_layer", "") for name, _ in self.model.named_parameters())
        experts = tuple(name for name in named if any(name in adapter.experts for adapter in self.adapters))
        transposed = any(adapter.experts_transposed for adapter in self.adapters)
        whole = Adapter(a, b, rank, float(rank), first.base_model, first.fan_in_fan_out, experts, transposed)
        return whole if rank <= whole.full_rank else whole.compressed(whole.full_rank)

    @checked
    def export_merged(self, folder: str | Path, lm: LM, *, card: str | None = None) -> None:
        """Write the baked model with its tokenizer as a plain transformers folder.

        The folder counts as written only after it was loaded again and its logits matched. Raises InputError when
        `lm` is not the model of this stack.

        Args:
            card: text of the folder's README.md.
        """
        self._refuse_while_open("export_merged")
        self._check_own(lm)
        write_merged(lm, folder, card)

    def _refold(self, names: tuple[str, ...]) -> FoldReport | None:
        """Fold the rounds into the named modules anew; None when no round is left."""
        error = intended = product = size = 0.0
        for name in names:
            if not any(name in adapter.a for adapter in self.adapters):
                self._folded.pop(name, None)
                self._place({name: self._pristine.pop(name)})
                continue
            packed = self._left_alone(name)
            stored = self._pristine[name] if packed is None else full_weight(self.model, name)
            folded = torch.empty_like(stored)
            # An expert at a time: in float64, all of them may not fit the memory.
            for part in range(len(stored)) if stored.ndim == 3 else (...,):
                # MPS has no float64.
                pristine = (stored[part].cpu() if stored.device.type == "mps" else stored[part]).double()
                wanted = self.summed_delta(name, pristine.device, part)
                rounded = (pristine + wanted).to(stored.dtype)
                if stored[part].isfinite().all() and not rounded.isfinite().all():
                    raise InputError(f"the adapter takes {name} out of the range of {stored.dtype}: lower its delta")
                change = wanted if packed is not None else rounded.double() - pristine
                error += (change - wanted).square().sum().item()
                intended += wanted.square().sum().item()
                product += (change * wanted).sum().item()
                size += pristine.square().sum().item()
                folded[part] = rounded
            if packed is None:
                self._folded[name] = folded
            else:
                whole = self._concatenated([name])
                self._folded[name] = whole.a[name].to(stored.device), whole.b[name].to(stored.device)
        self._place(self._folded)
        if not self._rounds:
            return None
        loss, gain = (math.sqrt(error / intended), product / intended) if intended else (0.0, 1.0)
        relative = math.sqrt(intended / size) if size else 0.0
        return FoldReport(len(self) - 1, self.doses[-1], loss, gain, relative)

    def _left_alone(self, name: str) -> nn.Linear | None:
        """The layer of this name if its weight is packed or sharded."""
        module = bare(self.model.get_submodule(name.rpartition(".")[0]))
        module = bare(getattr(module, name.rpartition(".")[2]))
        return module if takes_no_delta(module) else None

    def _held(self, name: str) -> Held:
        packed = self._left_alone(name)
        return self._weight(name).data if packed is None else factors_of(packed)

    def _place(self, held: dict[str, Held]) -> None:
        for name, what in held.items():
            if (packed := self._left_alone(name)) is not None:
                put_beside(packed, what)
            else:
                self._weight(name).data = what

    def _weight(self, name: str) -> nn.Parameter:
        return weight_of(self.model, name)[0]

    def _check_module(self, adapter: Adapter, name: str) -> None:
        made_for = f"the adapter (made for {adapter.base_model or 'an unnamed model'}) does not fit this model"
        what = "parameter" if name in adapter.experts else "module"
        try:
            weight, transposed = weight_of(self.model, name)
        except AttributeError as problem:
            raise InputError(f"{made_for}: there is no {what} {name} in {type(self.model).__name__}") from problem
        packed = self._left_alone(name)
        if packed is None and (isinstance(weight, DTensor) or not weight.is_floating_point()):
            raise InputError(f"{made_for}: {what} {name} has no weight that an adapter can change")
        if transposed != adapter.is_transposed(name):
            raise InputError(f"{made_for}: {what} {name} stores its weight the other way round")
        here = tuple(weight.shape) if packed is None else (packed.out_features, packed.in_features)
        if here != (there := adapter.shape_of(name)):
            raise InputError(f"{made_for}: {what} {name} is {here} here and {there} in the adapter")

    def _check_own(self, lm: LM | None) -> None:
        if lm is not None and lm.base is not self.model:
            raise InputError("the LM given is not the one this stack folds into")

    def _refuse_while_open(self, what: str) -> None:
        if self._depth:
            raise RuntimeError(f"{what} inside unfolded() would lose track of the weights: leave the block first")
        if in_use(self.model):
            raise RuntimeError(f"{what} inside a running heal would falsify its gradients: wait until it is done")
        self._check_untouched()

    def _check_untouched(self) -> None:
        for name, held in (self._pristine if self._depth else self._folded).items():
            if _place_in_memory(self._held(name)) != _place_in_memory(held):
                raise RuntimeError(f"the weight of {name} was replaced since it was folded (model moved or reloaded)")


def _place_in_memory(held: Held) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in ((held,) if isinstance(held, Tensor) else held or ()))


def refuse_folded(model: nn.Module) -> None:
    """Raises InputError for a model that has adapters folded in by a stack that is still there."""
    other = stack_of(model)
    if other is not None and len(other):
        raise InputError(f"the model already has a stack of {len(other)} folded adapters: use it, or pop them first")


def stack_of(model: nn.Module) -> AdapterStack | None:
    """The live stack of a model, if it has one."""
    found = _STACKS.get(unwrap(model))
    return found() if found is not None else None
