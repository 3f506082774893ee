"""Limits from a model's own completions, such that all gates together drop no more than a given share of them.

Knows nothing of texts and models: it works on tables of figures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from steer_heal.errors import InputError
from steer_heal.texts.coherence.rules import RULES, Rule, breaches

MIN_ROWS = 8
"""Fewer completions than this say nothing about what is usual."""
TEXT_SHARE = 0.5
"""Part of the budget that the fixed limits may use before they are widened."""
LENGTH_FACTOR = 3.0
"""A reply may be this many times shorter or longer than the model's own shortest and longest (2 % at each end):
a trait may be terse, so length only catches the absurd."""

Figures = Mapping[str, float]


def fit_limits(
    rows: Sequence[Figures], start: Mapping[str, float], budget: float, fixed: frozenset[str] = frozenset()
) -> tuple[dict[str, float], dict]:
    """Limits for all rules and a record of the fit.

    Args:
        rows: figures of the model's own completions, one mapping each.
        start: limits before the fit, by rule key.
        budget: largest share (0..1) of the rows that the gates may drop together.
        fixed: keys that stay as they are (the user's own limits).

    Rows that break a `content` rule (refusals are no measure of coherence) are set aside first. Raises InputError for
    an impossible budget or fewer than 8 rows that are left.
    """
    if not 0 <= budget < 1:
        raise InputError(f"false_drop {budget}: give the share of base completions that may be dropped, such as 0.05")
    content = frozenset(rule.gate for rule in RULES if rule.kind == "content")
    used = [row for row in rows if not breaches(row, start, content)]
    if len(used) < MIN_ROWS:
        raise InputError(
            f"calibration found {len(used)} usable completions of {len(rows)} and needs at least {MIN_ROWS}: "
            "raise n or give prompts that the model answers"
        )
    limits = dict(start)
    free = [rule for rule in RULES if rule.key not in fixed]
    text = [rule for rule in free if rule.kind == "text"]
    limits |= joint_limits(used, text, int(TEXT_SHARE * budget * len(used)), limits)
    widened = [rule.key for rule in text if limits[rule.key] != start[rule.key]]
    limits |= _length_limits(used, [rule for rule in free if rule.kind == "length"])
    settled = frozenset(rule.gate for rule in RULES if rule.kind in ("text", "length"))
    left = [row for row in used if not breaches(row, limits, settled)]
    model = [rule for rule in free if rule.kind == "model"]
    allowed = max(0, int(budget * len(used)) - (len(used) - len(left)))
    limits |= joint_limits(left, model, allowed, {rule.key: slack(rule) for rule in model})
    everything = frozenset(rule.gate for rule in RULES)
    dropped = sum(1 for row in used if breaches(row, limits, everything))
    record = {
        "completions": len(rows),
        "set_aside": len(rows) - len(used),
        "dropped": dropped,
        "false_drop": budget,
        "widened": widened,
    }
    return limits, record


def slack(rule: Rule) -> float:
    """The limit of a rule nothing passes: where a rule that is wholly set by data starts from."""
    return -math.inf if rule.side == "high" else math.inf


def joint_limits(
    rows: Sequence[Figures], rules: Sequence[Rule], allowed: int, least: Mapping[str, float]
) -> dict[str, float]:
    """Limits, never tighter than `least`, under which at most `allowed` of the rows break any of the rules.

    Every rule's limit is the value of its k-th most extreme row, with the largest k for which no more than `allowed`
    rows are among the k most extreme of any rule. As the k-th row itself passes, a NEW completion of the same model
    is dropped with probability about allowed / n and not more (split-conformal argument). k = 0, which small samples
    and small budgets lead to, puts the limit a tenth of the spread beyond the largest value seen.
    """
    rules = [rule for rule in rules if any(rule.figure in row for row in rows)]  # no data, no change
    columns = {rule.key: [_oriented(rule, row[rule.figure]) for row in rows if rule.figure in row] for rule in rules}
    least = {rule.key: _oriented(rule, least[rule.key]) for rule in rules}
    ranks = []
    for row in rows:
        own = [(rule.key, _oriented(rule, row[rule.figure])) for rule in rules if rule.figure in row]
        outside = [sum(v >= value for v in columns[key]) for key, value in own if value > least[key]]
        ranks.append(min(outside, default=len(rows) + 1))
    if sum(rank <= len(rows) for rank in ranks) <= allowed and all(v > -math.inf for v in least.values()):
        return {rule.key: _oriented(rule, least[rule.key]) for rule in rules}
    depth = max(k for k in range(len(rows) + 1) if sum(rank <= k for rank in ranks) <= allowed)
    out = {}
    for rule in rules:
        values = sorted(columns[rule.key], reverse=True)
        limit = _beyond(values) if depth == 0 else values[min(depth, len(values)) - 1]
        out[rule.key] = _oriented(rule, max(least[rule.key], limit))
    return out


def _oriented(rule: Rule, value: float) -> float:
    """A value with its sign such that larger is worse (its own inverse)."""
    return value if rule.side == "high" else -value


def _beyond(values: Sequence[float]) -> float:
    """A little more extreme than anything seen; values are sorted, largest first."""
    return values[0] + 0.1 * (values[0] - statistics.median(values))


def _length_limits(rows: Sequence[Figures], rules: Sequence[Rule]) -> dict[str, float]:
    lengths = sorted(row["tokens"] for row in rows if "tokens" in row)
    if not lengths:
        return {}
    low, high = lengths[int(0.02 * len(lengths))], lengths[-1 - int(0.02 * len(lengths))]
    return {rule.key: low / LENGTH_FACTOR if rule.side == "low" else high * LENGTH_FACTOR for rule in rules}
