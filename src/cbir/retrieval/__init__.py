"""Retrieval: from embeddings to rankings, from rankings to a row of metrics per query.

`searches` are the ways of searching, `ranking` ranks the gallery for each query, `metrics` scores
the rankings, `evaluation` does all of it for every seed and protocol. `feedback` moves a query by
marks on its results, `simulation` measures what that brings. `uncertainty` has intervals and tests,
`definitions` what mAP@k means elsewhere.
"""
