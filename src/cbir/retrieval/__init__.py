"""Retrieval: from embeddings to rankings, and from rankings to metrics per query.

`evaluation` measures every seed and protocol in every way of searching (`searches`), with `ranking`
and `metrics`. `uncertainty` computes confidence intervals and tests, and `map_definitions` compares
the definitions of mAP@k. `feedback` moves a query by positive and negative examples and measures
what that brings, and `projections` places queries in two dimensions.
"""
