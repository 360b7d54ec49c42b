"""The answer in a few sentences, for whoever reads no further: who is ahead, and at what cost.

As in `claims`, something is said to be ahead only where a paired test, corrected for the number of
pairs, tells it apart.
"""

import pandas as pd

from cbir.reporting import estimates
from cbir.reporting.claims import chance
from cbir.reporting.estimates import Estimate


def in_short(table: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Who comes first, or who is not told apart at the top; what learning brought; what it costs.

    A sentence each.

    Args:
        table: from `cost_plots.points`.
        pairs: from `comparison.pairs` of the same runs.
    """
    networks = table[~table["is_control"]].sort_values("value", ascending=False, kind="stable")
    controls = table[table["is_control"]].sort_values("value", ascending=False, kind="stable")
    if networks.empty:
        return "No architecture has results: there are controls alone."
    first = networks.index[0]
    told = {name: _between(first, name, pairs) for name in networks.index[1:]}
    tied = [name for name, row in told.items() if not row.is_told_apart]
    said = [_who_is_first(networks, told, tied)]
    if len(controls):
        said.append(_against_control(first, controls.index[0], pairs))
    said.append(_what_it_costs(networks, tied))
    return " ".join(said)


def _who_is_first(networks: pd.DataFrame, told: dict, tied: list[str]) -> str:
    first, *others = networks.index
    said = f"**{first}** has the highest mAP, {estimates.of(networks.loc[first])}"
    if not others:
        return f"{said}; no other architecture has results."
    if not tied:
        lead = f"ahead of {others[0]}, the next, by {_apart(told[others[0]])}"
        return f"{said}, {lead}; the test tells it apart from {_all(others)}."
    parts = [f"{name} (by {_apart(told[name])})" for name in tied]
    said += f", but is not told apart from {_list(parts)}"
    if len(tied) < len(others):
        nearest = next(name for name in others if name not in tied)
        said += f"; the nearest that is told apart from it, {nearest}, is behind by "
        said += _apart(told[nearest])
    return f"{said}."


def _against_control(first: str, control: str, pairs: pd.DataFrame) -> str:
    row = _between(first, control, pairs)
    said = f"Of the controls, which learnt nothing, {control} has the highest mAP"
    if not row.is_told_apart:
        return f"{said}, and {first} is not told apart from it (by {_apart(row)})."
    return f"{said}, {_side(row, first)} {first} by {_apart(row)}."


def _what_it_costs(networks: pd.DataFrame, tied: list[str]) -> str:
    """The first against the next; where several are first, the one that embeds fastest of them."""
    first, *others = networks.index
    said = f"{first} takes {_costs(networks.loc[first])}"
    if tied:
        fastest = networks.loc[[first, *tied], "milliseconds"].idxmin()
        said = f"Of those that are not told apart at the top, {fastest} embeds fastest; {said}"
        others = [fastest] if fastest != first else tied
    if others:
        said += f", {others[0]} {_costs(networks.loc[others[0]])}"
    return f"{said}."


def _between(one: str, other: str, pairs: pd.DataFrame):
    """The row of a pair, whoever of the two is ahead."""
    is_it = [{row.ahead, row.behind} == {one, other} for row in pairs.itertuples()]
    return next(pairs[is_it].itertuples())


def _apart(row) -> str:
    """A difference, what it lies between, and how sure it is."""
    return f"{Estimate(row.difference, row.ci_low, row.ci_high)}, {chance(row.p_holm)}"


def _side(row, name: str) -> str:
    """On which side of an architecture the other one of its pair lies."""
    return "below" if row.ahead == name else "above"


def _costs(row: pd.Series) -> str:
    return (
        f"{row['milliseconds']:.3g} ms to embed an image and {row['bytes']:,.0f} bytes to keep it"
    )


def _all(others: list[str]) -> str:
    return "all others" if len(others) > 1 else others[0]


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
