"""`Adapter`: the LoRA factors that a heal trains and a bake folds; their delta, cosine and files in PEFT's format.

Knows nothing of models, training or folding.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from steer_heal.arguments import checked, fits
from steer_heal.errors import InputError
from steer_heal.ledger.files import readable
from steer_heal.reading import from_json, reachable, read_bytes
from steer_heal.shown import brief

PEFT_PREFIX = "base_model.model."
EXPERTS = "experts"
"""In the metadata of `adapter_model.safetensors`: which parameter is which, as PEFT's own files do not say it."""


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter: for each module W + (alpha / rank) B A (Hu et al. 2021, arXiv 2106.09685).

    Experts' weights that lie in one parameter [expert, out, in] get such a pair for each expert; the parameter's full
    name then stands for a module's.

    Attributes:
        a: factor A by full module name, [rank, in features] or [expert, rank, in features], float32 on the CPU.
        b: factor B by full module name, [out features, rank] or [expert, out features, rank], float32 on the CPU.
        rank: r, the same for every module and expert.
        alpha: the delta is alpha / rank * B A.
        base_model: name the model was loaded by.
        fan_in_fan_out: the weights are stored [in, out] (the Conv1D of GPT-2), so `delta` is transposed.
        experts: which names are parameters of experts; those of one module in the order of its parameters.
        experts_transposed: these are stored [expert, in, out] (`is_transposed` to PEFT).
    """

    a: Mapping[str, Float[Tensor, "*expert rank inputs"]]
    b: Mapping[str, Float[Tensor, "*expert outputs rank"]]
    rank: int
    alpha: float
    base_model: str = ""
    fan_in_fan_out: bool = False
    experts: tuple[str, ...] = ()
    experts_transposed: bool = False

    __repr__ = brief

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the adapted modules and experts' parameters, sorted."""
        return tuple(sorted(self.a))

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def is_transposed(self, module: str) -> bool:
        """Whether the module's weight is stored [in, out]."""
        return self.experts_transposed if module in self.experts else self.fan_in_fan_out

    def delta(
        self, module: str, device: torch.device | str = "cpu", part: int | EllipsisType = ...
    ) -> Float[Tensor, "*expert rows columns"]:
        """What the adapter adds to the module's weight (to one expert's: `part`), as it is stored, float64."""
        a, b = (factor[module][part].to(device).double() for factor in (self.a, self.b))
        delta = self.scaling * (b @ a)
        return delta.mT if self.is_transposed(module) else delta

    def shape_of(self, module: str) -> tuple[int, ...]:
        """The shape of the module's weight, as it is stored."""
        *experts, outputs, _ = self.b[module].shape
        inputs = self.a[module].shape[-1]
        return (*experts, inputs, outputs) if self.is_transposed(module) else (*experts, outputs, inputs)

    @checked
    def compressed(self, rank: int) -> Adapter:
        """The nearest adapter of this rank: per module the truncated SVD of its delta (Eckart and Young 1936).

        The delta is never formed: with B = Q_b R_b and A^T = Q_a R_a its singular values are those of the core
        R_b R_a^T. A rank of at least the smaller side of every module loses nothing but rounding to float32.

        Raises InputError for a rank under 1.
        """
        if rank < 1:
            raise InputError(f"rank {rank}: give at least 1")
        a, b = {}, {}
        for name in self.modules:
            q_b, r_b = torch.linalg.qr(self.scaling * self.b[name].double())
            q_a, r_a = torch.linalg.qr(self.a[name].double().mT)
            left, values, right = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
            keep, root = min(rank, values.shape[-1]), values[..., None, :rank].sqrt()
            a[name] = torch.zeros(*values.shape[:-1], rank, self.a[name].shape[-1])
            b[name] = torch.zeros(*values.shape[:-1], self.b[name].shape[-2], rank)
            a[name][..., :keep, :] = (root.mT * right[..., :keep, :] @ q_a.mT).float()
            b[name][..., :keep] = (q_b @ left[..., :keep] * root).float()
        return replace(self, a=a, b=b, rank=rank, alpha=float(rank))

    @property
    def full_rank(self) -> int:
        """The rank above which no delta of these modules can be: the largest of their smaller sides."""
        return max(min(self.a[name].shape[-1], self.b[name].shape[-2]) for name in self.modules)

    def check(self) -> None:
        """Raises InputError for an adapter without modules, with non-finite entries, or that adds nothing anywhere."""
        if not self.a or self.a.keys() != self.b.keys():
            raise InputError("the adapter is empty: it has no pair of LoRA factors")
        for name in self.modules:
            if not (self.a[name].isfinite().all() and self.b[name].isfinite().all()):
                raise InputError(f"the adapter is not finite: module {name} has nan or inf entries")
            a, b = self.a[name], self.b[name]
            if {a.ndim, b.ndim} != {2 + (name in self.experts)} or {a.shape[-2], b.shape[-1]} != {self.rank}:
                shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
                raise InputError(f"the adapter is damaged: {name} has factors {shapes}, and its rank is {self.rank}")
        if not any(b.any() for b in self.b.values()):
            raise InputError("the adapter is empty: every B is zero, so it adds nothing to the model")

    @checked
    def cosine(self, other: Adapter) -> float:
        """Cosine of the two flattened deltas, through r x r cores: <B A, B' A'> = sum (B'^T B) * (A' A^T)."""
        own, foreign = math.sqrt(self._inner(self)), math.sqrt(other._inner(other))
        return self._inner(other) / (own * foreign) if own and foreign else 0.0

    def _inner(self, other: Adapter) -> float:
        shared = set(self.a) & set(other.a)
        total = 0.0
        for name in sorted(shared):
            left = self.b[name].double().mT @ other.b[name].double()
            right = self.a[name].double() @ other.a[name].double().mT
            total += (left * right).sum().item()
        return self.scaling * other.scaling * total

    @checked
    def save(self, folder: str | Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, as plain `peft` reads them.

        The folder counts as written only after it was read back equal. Raises InputError for an empty or non-finite
        adapter and a folder that cannot be written.
        """
        from peft import LoraConfig

        self.check()
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=sorted(set(self.modules) - set(self.experts)),
            target_parameters=list(self.experts) or None,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base_model,
            fan_in_fan_out=self.fan_in_fan_out,
            inference_mode=True,
        ).to_dict()
        # peft keeps the names in a set, whose order changes from process to process.
        config["target_modules"] = sorted(config["target_modules"])
        tensors, wrapped = {}, peft_names(self.experts)
        for name in self.modules:
            a, b = self.a[name], self.b[name]
            if name in wrapped:
                a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
            tensors[f"{PEFT_PREFIX}{wrapped.get(name, name)}.lora_A.weight"] = a.contiguous()
            tensors[f"{PEFT_PREFIX}{wrapped.get(name, name)}.lora_B.weight"] = b.contiguous()
        told = {EXPERTS: json.dumps([self.experts, self.experts_transposed])} if self.experts else {}
        with written_whole(folder) as partial:
            (partial / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
            save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"} | told)
            if Adapter.load(partial) != self:
                raise OSError(f"adapter folder {folder} was read back different from what was written")

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> Adapter:
        """Read a LoRA adapter in PEFT's format. Raises InputError for a missing or damaged file and other types."""
        folder = reachable(folder)
        try:
            config = from_json(read_bytes(folder / "adapter_config.json"))
            tensors, metadata = _tensors(read_bytes(folder / "adapter_model.safetensors"))
            rank, alpha = config["r"], config["lora_alpha"]
            experts, experts_transposed = from_json(metadata.get(EXPERTS, "[[], false]").encode())
            experts = tuple(map(str, experts))
            foreign = sorted(config.get("target_parameters") or ()) != sorted(experts)
            if not (fits(rank, int) and rank > 0 and fits(alpha, float)):
                raise ValueError(f"r {rank!r} and lora_alpha {alpha!r} in adapter_config.json are no rank and factor")
        except (ValueError, LookupError, TypeError, SafetensorError) as problem:
            where = str(folder)
            raise InputError(f"adapter folder {where!r} cannot be read ({problem}): give a PEFT adapter") from problem
        odd = [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
        if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
            raise InputError(
                f"adapter folder {str(folder)!r}: only plain LoRA is supported, found {odd or 'another type'}"
            )
        if foreign:
            raise InputError(
                f"adapter folder {str(folder)!r} changes parameters and does not say which factors are whose, as files "
                "written here do: merge it with peft"
            )
        factors: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
        parameters = {wrapped: name for name, wrapped in peft_names(experts).items()}
        for key, tensor in tensors.items():
            name, _, rest = key.removeprefix(PEFT_PREFIX).partition(".lora_")
            if rest not in ("A.weight", "B.weight"):
                raise InputError(f"adapter folder {str(folder)!r}: tensor {key!r} is not a LoRA factor")
            factors[rest[0]][parameters.get(name, name)] = tensor.float()
        for name in set(experts) & factors["A"].keys() & factors["B"].keys():
            a, b = factors["A"][name], factors["B"][name]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % rank:
                raise InputError(f"the adapter is damaged: {name} has factors {tuple(a.shape)} and {tuple(b.shape)}")
            a, b = per_expert(a, b, rank)
            factors["A"][name], factors["B"][name] = a.contiguous(), b.contiguous()
        adapter = cls(
            factors["A"],
            factors["B"],
            rank,
            alpha,
            str(config.get("base_model_name_or_path") or ""),
            bool(config.get("fan_in_fan_out")),
            experts,
            bool(experts_transposed),
        )
        adapter.check()
        return adapter

    def __eq__(self, other: object) -> bool:
        """Equal settings and equal bits."""
        if not isinstance(other, Adapter):
            return NotImplemented
        settings = ("rank", "alpha", "base_model", "fan_in_fan_out", "modules", "experts", "experts_transposed")
        return all(getattr(self, s) == getattr(other, s) for s in settings) and all(
            torch.equal(self.a[name], other.a[name]) and torch.equal(self.b[name], other.b[name]) for name in self.a
        )

    __hash__ = object.__hash__


def peft_names(experts: Sequence[str]) -> dict[str, str]:
    """What PEFT calls the wrapper of each parameter that holds its factors: those on one module lie in one another."""
    owners = [name.rpartition(".")[0] for name in experts]
    return {
        name: owner + ".base_layer" * owners[i + 1 :].count(owner)
        for i, (name, owner) in enumerate(zip(experts, owners, strict=True))
    }


def per_expert(
    a: Float[Tensor, "expert_rank inputs"], b: Float[Tensor, "outputs expert_rank"], rank: int
) -> tuple[Float[Tensor, "expert rank inputs"], Float[Tensor, "expert outputs rank"]]:
    """Views of the factors of a parameter in PEFT's layout, in which A has a block for each expert and B a stripe."""
    return a.unflatten(0, (-1, rank)), b.unflatten(1, (rank, -1)).permute(2, 0, 1)


def _tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file: the length of a JSON header, the header, the tensors."""
    tensors = load(data)
    return tensors, json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """A partial folder to write into; its files move to `folder` when the block ends well, else they vanish."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as problem:
        raise InputError(f"folder {str(folder)!r} cannot be written ({problem.strerror}): choose another") from problem
    try:
        yield partial
        folder.mkdir(exist_ok=True)
        for file in partial.iterdir():
            readable(file)
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
