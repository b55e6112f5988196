"""What the policy decided, as rows of the report: where a layer is, what became of it, and why."""

from __future__ import annotations

from s24compile.graphs.marks import mark_of
from s24compile.passes.hidden import EXISTS, is_candidate
from s24compile.passes.linears import Linear
from s24compile.passes.match import Match
from s24compile.passes.provenance import common_path, module_path, module_paths, parameter_name, user_line
from s24compile.passes.state import LinearOptions, State
from s24compile.report import Site

EIGHT_BIT_NOTE = (
    "all its GEMMs multiply eight-bit floats, weights and activations in e4m3 and gradients in e5m2, with one scale a "
    "tensor from its own largest number"
)


def site_of(match: Match, state: State) -> Site:
    """The report's row of a match."""
    linears = match.linears
    paths = [module_path(n.scope, n.node, n.weight) for n in linears]
    reasons = [match.refusal] if match.refusal else _reasons(match, paths)
    if match.taken:
        options = state.options_for(mark_of(match.taken[0].node))
        reasons += _exact_gradients(match, paths, options)
        reasons += [f"trains dense {options.dense_when}"] if options.dense_when else []
    if is_candidate(match) and not state.config_for(mark_of(linears[-1].node)).hidden:
        reasons.append(EXISTS)
    reasons += _precision(match, paths, state)
    places = [path for n in linears for path in module_paths(n.scope, n.node, n.weight)]
    names = [parameter_name(top) for n in linears for top in n.weight_inputs if top.op == "placeholder"]
    return Site(
        path=common_path(paths),
        family=match.family,
        shape=_shape(linears),
        status="rewritten" if match.taken else "refused",
        reason="; ".join(reasons),
        source=user_line(linears[-1].node),
        weights=tuple(dict.fromkeys(names)),
        linears_at=tuple(dict.fromkeys(places)),
        linears=len(match.taken),
        rule=match.rule,
        decorated=any(mark_of(linear.node) is not None for linear in linears),
    )


def _reasons(match: Match, paths: list[str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for linear, path in zip(match.linears, paths, strict=True):
        if linear in match.stays:
            by_reason.setdefault(match.stays[linear], []).append(path or linear.node.name)
    if len(match.stays) == len(match.linears) and len(by_reason) == 1:
        return list(by_reason)
    return [
        f"{' and '.join(where)} {'stays' if len(where) == 1 else 'stay'} dense: {why}"
        for why, where in by_reason.items()
    ]


def _exact_gradients(match: Match, paths: list[str], options: LinearOptions) -> list[str]:
    """Which of the taken linears gradient="auto" gives their exact weight gradient, and why."""
    where = [
        path or linear.node.name
        for linear, path in zip(match.linears, paths, strict=True)
        if linear in match.taken and options.dw_of(linear.in_features) == "dense"
    ]
    if options.dw != "auto" or not where:
        return []
    names = " and ".join(where)
    return [f"exact weight gradient in {names}: pruning it pays from {options.mvue_from} input features"]


def _precision(match: Match, paths: list[str], state: State) -> list[str]:
    """What the GEMMs multiply where that is neither of the model's nor of autocast's choice, and by which scales."""
    narrow = [path or n.node.name for n, path in zip(match.linears, paths, strict=True) if n in match.narrow]
    found = []
    if match.taken and state.options_for(mark_of(match.taken[0].node)).eight_bit:
        found.append(EIGHT_BIT_NOTE)
    if narrow:
        names, many = " and ".join(narrow), len(narrow) > 1
        found.append(
            f"{names} {'multiply' if many else 'multiplies'} eight-bit floats, too, though "
            f"{'they are' if many else 'it is'} dense"
        )
    return found


def _shape(linears: list[Linear]) -> str:
    first, last = linears[0], linears[-1]
    if not first.out_features:
        return ""
    if first is last:
        return f"{first.in_features} -> {first.out_features}"
    return f"{first.in_features} -> {last.in_features} -> {last.out_features}"
