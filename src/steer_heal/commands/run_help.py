"""Help of `steer-heal run`: the main options on one screen, every other by stage.

Knows nothing of what the options do.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

from steer_heal.commands.help import EXIT_CODES, filled, option_lines, topic_page
from steer_heal.commands.options import options_of
from steer_heal.commands.presets import PRESETS, UNTRIED

PURPOSE = (
    "Grow a trait in a model's weights over rounds while its text stays coherent. Without options: four rounds on "
    "`pocket`, about a minute on a CPU."
)
MAIN = ("reg", "model", "trait", "preset", "n_rounds", "lam", "tau", "doses", "layers", "seed", "out", "device",
        "resume", "fast_dev_run", "dry_run", "quiet", "verbose")  # fmt: skip
TITLES = {
    "loop": "rounds, seed, output, and what the command itself does",
    "model": "the model, the trait, the machine",
    "steering": "the vector, its doses, and the texts sampled under it",
    "walk": "walk-C, which adapts the dose, and the coherence filter",
    "heal": "the divergence barrier: loss = nll + lam * relu(D - tau), in nats",
    "training": "the LoRA adapter and its optimiser",
    "evaluation": "what every model of a run is measured on",
    "gate": "which rounds stand, anchors, controls",
}
TRAINING = ("rank", "alpha", "lora_layers", "lr", "betas", "weight_decay", "spectral", "epochs", "batch_size",
            "grad_accum", "warmup", "clip", "heldout", "row_weights", "gradient_checkpointing")  # fmt: skip


def topics(kind: type) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By topic its title and the names of its options; each option of `kind`, in groups by stage, is in one topic."""
    hints = get_type_hints(kind, include_extras=True)
    of_group = {}
    for one in fields(kind):
        group = next(iter(get_args(hints[one.name])), None)
        opened = options_of(group).values() if is_dataclass(group) else ()
        of_group[one.name] = [option.name for option in opened] or [one.name]
    found = {topic: (title, ()) for topic, title in TITLES.items()}
    # What the command itself does stands behind what the loop does.
    for group, names in sorted(of_group.items(), key=lambda item: item[0] == "command"):
        for name in names:
            topic = "training" if name in TRAINING else group if group in TITLES else "loop"
            title, before = found[topic]
            found[topic] = (title, (*before, name))
    return found


def page(topic: str, kind: type, prog: str) -> str:
    """The main page for "", else one topic's. Raises InputError for an unknown topic."""
    if topic:
        return topic_page(topic, topics(kind), kind, prog)
    options = {option.name: option for option in options_of(kind).values()}
    stages = "\n".join(f"  {name:<12}{title}" for name, (title, _) in topics(kind).items())
    return f"""usage: {prog} [options]

{filled(PURPOSE)}

{option_lines(options[name] for name in MAIN)}

More options by stage, `{prog} --help STAGE` (or all):
{stages}

{filled(f"[...]: default. `--help presets`: what each preset sets. {EXIT_CODES}")}"""


def preset_page() -> str:
    """What each preset sets."""
    lines = [filled(f"Note: {UNTRIED}. An option that is given beats the preset."), ""]
    for name, preset in PRESETS.items():
        values = ", ".join(
            f"{key} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for key, value in preset.options.items()
        )
        lines += [name, filled(values, "  "), filled(preset.note, "  "), ""]
    return "\n".join(lines).rstrip()
