"""Retrieval: from embeddings to rankings, and from rankings to metrics per query.

`evaluation` measures every seed and protocol with every search (`searches`), using `ranking` and
`metrics`. `uncertainty` computes confidence intervals and tests, and `map_definitions` compares
the definitions of mAP@k. `feedback` moves a query by positive and negative examples and measures
the gain, and `projections` projects query embeddings to two dimensions. `engines` hold large
galleries, `scale` measures them, and `reranking` reorders results by the neighbours of the query.
"""
