"""`Healed`: what a heal returns, and how to read it; `DivergedError` and `HealInterrupted`: why one stopped.

Knows nothing of how the training was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steer_heal.healing.adapter import Adapter
from steer_heal.healing.config import HealConfig
from steer_heal.shown import brief

OVERFIT_NATS = 0.02
"""Rise of the held-out nll over its value before training from which on a heal counts as overfitted."""
REACHES_LITTLE = 0.9
"""Share of the blocks' weights under which a heal says how much of them its adapters can change."""


class DivergedError(RuntimeError):
    """A loss or gradient that is not finite stopped a heal.

    Attributes:
        step: the optimiser step, from 0.
        rows: indices of the completions whose loss is not finite, or all of the step if only the gradient is not.
        adapter: the factors after the last good step; None if there was none.
    """

    def __init__(self, message: str, step: int, rows: tuple[int, ...], adapter: Adapter | None) -> None:
        super().__init__(message)
        self.step, self.rows, self.adapter = step, rows, adapter


class HealInterrupted(KeyboardInterrupt):
    """Ctrl-C during a heal; `adapter` holds the factors as they were then, None before the first step moved them."""

    def __init__(self, adapter: Adapter | None) -> None:
        super().__init__("interrupted; " + ("the factors are in `adapter`" if adapter else "nothing was trained yet"))
        self.adapter = adapter


@dataclass(frozen=True)
class Healed:
    """A trained adapter and the story of its training; nats throughout.

    Attributes:
        adapter: the LoRA factors, to be folded by `AdapterStack.push`.
        config: the configuration used, its seed included.
        steps: one row per optimiser step: `loss`, `nll`, `lr`, `grad_norm`, and per reference NAME `NAME_mean`,
            `NAME_agg`, `NAME_max` (divergence), `NAME_fired` (share of rows over budget), `NAME_ratio` (gradient norm
            barrier / nll at the hidden states), `NAME_lam`.
        epochs: one row per epoch: training nll (mean over its steps) and held-out nll, each beside its value before,
            with a teacher the same of `target`; and `heldout_loss`, what the training lowers, on the held-out rows.
        figures: `kept_epoch`, the epoch (from 0) whose adapter this is; `train_nll_before`, `train_nll_after`,
            `heldout_nll_before`, `heldout_nll_after`; with a teacher the same of `target`, the divergence from its
            distribution; `kl_NAME_before` and `kl_NAME_after`, the token-mean KL(student || NAME) on steered rows,
            whatever the barrier is, and `kl_NAME_replay_...` on the original model's own completions; `NAME_fired` and
            `NAME_ratio`, means over the steps up to the kept epoch; `rows_train`, `rows_heldout`, `steps`; `reach`, the
            share of the weights in the adapted blocks that are in modules with an adapter; what was chosen for the
            memory, `checkpointing`, `rows` of a pass, `chunk` of the loss in positions (`plan.Fit`).
        lam: the multiplier of each barrier at the end; pass it on as `lam0` in budget mode.
        tau: the budget of each barrier in nats, also where it was given relative to the steering.
    """

    adapter: Adapter
    config: HealConfig
    steps: tuple[Mapping, ...]
    epochs: tuple[Mapping, ...]
    figures: Mapping[str, float]
    lam: Mapping[str, float]
    tau: Mapping[str, float]

    __repr__ = brief

    @property
    def plain(self) -> str:
        """What this heal was, in a sentence, where no barrier acted on it; empty where one did (or a budget ruled)."""
        what = "fine-tuning" if self.config.targets == "tokens" else "distillation"
        budget = self.tau and self.config.lam_mode == "budget"
        if budget or any(self.lam[name] and self.figures[f"{name}_fired"] for name in self.tau):
            return ""
        why = "The barrier never fired" if any(self.lam.values()) else "There was no barrier"
        return f"{why}: this was plain {what}."

    def notes(self) -> tuple[str, ...]:
        """What SHOULD have been seen and was not, and which epoch was kept if not the last, one line each."""
        figures, config, lines = self.figures, self.config, []
        key, what = ("nll", "nll") if self.config.targets == "tokens" else ("target", "divergence from the teacher")
        fell = figures[f"train_{key}_before"] - figures[f"train_{key}_after"]
        if fell <= 0:
            lines.append(
                f"the training {what} did not fall: there was nothing to learn, or lr and epochs are too small"
            )
        elif figures.get(f"heldout_{key}_after", 0.0) > figures.get(f"heldout_{key}_before", 0.0) + OVERFIT_NATS:
            lines.append(
                f"the held-out {what} rose while the training {what} fell: overfitted; fewer epochs or more completions"
            )
        rows, on = int(figures.get("rows", config.batch_size)), figures.get("checkpointing", False)
        if rows < config.batch_size or (on and config.gradient_checkpointing == "auto"):
            again = "the blocks were recomputed in the backward pass, " if on else ""
            lines.append(f"little memory was free: {again}{rows} rows at a time")
        if (share := figures.get("reach", 1.0)) < REACHES_LITTLE:
            what = "tensors" if self.config.experts else "experts (but for --experts) and other tensors"
            lines.append(
                f"adapters reach {share:.2f} of the weights in their blocks: {what} that are no linear layers stay as "
                "they are"
            )
        kept, last = (self.epochs[at] for at in (int(figures["kept_epoch"]), -1))
        if kept is not last:
            lines.append(
                f"kept epoch {kept['epoch']}, where the held-out loss was lowest: {kept['heldout_loss']:.3f}, and "
                f"{last['heldout_loss']:.3f} after epoch {last['epoch']}"
            )
        for name in self.tau:
            if figures[f"{name}_fired"] == 0 and self.config.lam_mode == "constant":
                lines.append(f"the barrier against {name} never fired; lower tau")
        return tuple(lines)
