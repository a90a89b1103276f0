"""The panel of scores of a predicted graph against a true one, as plain functions of two graphs.

Each part is blind to something: shares of length to breaks, TLTS to what is predicted in excess, OPT-J and scores of
nodes to how they are joined, Betti numbers and lengths to place. No single one is to be reported alone.

What graphs without any length score is said in the modules that the scores come from; errors of Betti numbers are
always defined. Nothing depends on how nodes are numbered, or on nodes of degree 2.
"""

import math

import networkx as nx

from biocnn.data.graphs import loop_count, merge_chains, total_length
from biocnn.metrics.graph_junctions import junction_scores, node_scores
from biocnn.metrics.graph_lengths import length_scores
from biocnn.metrics.graph_paths import apls, tlts
from biocnn.metrics.graph_places import NO_LENGTH, check_pair


def graph_betti_errors(prediction: nx.MultiGraph, truth: nx.MultiGraph) -> dict[str, float]:
    """Errors of the Betti numbers of a graph, |b(prediction) - b(truth)|; lower is better.

    b0 counts components, single nodes among them, and b1 independent loops. The errors do not ask where, and cancel, as
    those of :mod:`biocnn.metrics.topology` do.

    Returns:
        For k of 0 and 1: `betti<k>_error_graph`, `betti<k>_prediction_graph` and `betti<k>_truth_graph`.
    """
    scores = {}
    for degree, count in ((0, nx.number_connected_components), (1, loop_count)):
        predicted, true = float(count(prediction)), float(count(truth))
        scores[f"betti{degree}_error_graph"] = abs(predicted - true)
        scores[f"betti{degree}_prediction_graph"] = predicted
        scores[f"betti{degree}_truth_graph"] = true
    return scores


def length_error(prediction: nx.MultiGraph, truth: nx.MultiGraph) -> float:
    """|length(prediction) - length(truth)| / length(truth), 0 or more; lower is better; nan where the truth has none.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
    """
    check_pair(prediction, truth)
    true = total_length(truth)
    return abs(total_length(prediction) - true) / true if true > NO_LENGTH else math.nan


def score_graph(
    prediction: nx.MultiGraph,
    truth: nx.MultiGraph,
    tolerance: float,
    snap: float,
    interval: float | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """All scores of a predicted graph, as one flat dictionary.

    Args:
        prediction: predicted graph.
        truth: true graph, of the same unit and number of axes.
        tolerance: how far a centreline, a branch point or an end point may be off, in the unit of the graphs.
        snap: how far APLS, TLTS and OPT-J look for a partner, in that unit.
        interval: largest distance of control points of APLS along a segment; None for 10 times `snap`.
        seed: of the draws of APLS, which are made beyond 1000 control points, and of the 1000 pairs of TLTS.

    Returns:
        With tolerance t and snap s, each with its unit, as `3px` or `2.5um`: `correctness_<t>`, `completeness_<t>`,
        `quality_<t>`, `branch_precision_<t>`, ..., `end_f1_<t>`; `apls_<s>`, `apls_truth_to_prediction_<s>`, ...,
        `tlts_correct_<s>`, ..., of pairs at least 2 `snap` apart, `opt_j_precision_<s>`, ...; `betti0_error_graph`,
        ...; `length_error`, relative, and `length_prediction_<unit>` and `length_truth_<unit>`.

    Raises:
        DataError: if units or numbers of axes of the graphs differ.
        ValueError: if a distance is not a finite length above 0.
    """
    check_pair(prediction, truth)
    unit = truth.graph["unit"]
    # Once: the parts do it again, which costs next to nothing then.
    prediction, truth = merge_chains(prediction), merge_chains(truth)
    near = length_scores(prediction, truth, tolerance) | node_scores(prediction, truth, tolerance)
    snapped = (
        apls(prediction, truth, snap, 10 * snap if interval is None else interval, seed=seed)
        | tlts(prediction, truth, snap, shortest=2 * snap, seed=seed)
        | junction_scores(prediction, truth, snap)
    )
    return {
        **{f"{name}_{tolerance:g}{unit}": value for name, value in near.items()},
        **{f"{name}_{snap:g}{unit}": value for name, value in snapped.items()},
        **graph_betti_errors(prediction, truth),
        "length_error": length_error(prediction, truth),
        f"length_prediction_{unit}": total_length(prediction),
        f"length_truth_{unit}": total_length(truth),
    }
