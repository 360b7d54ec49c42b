"""Reporting: from the files of runs to tables, sentences, figures and pages.

Files: `runs` writes and reads the files of a run, with the rows of `tidy`. Numbers: `estimates` are
values with their intervals, `tables` compares runs, `examples` selects queries worth looking at,
and `provenance` records what a report was made from. Texts: `sentences`. Figures: `charts` of
numbers, `montages` of images, `projections` of embeddings, and a `diagram` of the system.
`explanations` shows why images match, and `feedback` the gains of relevance feedback; both store
their rows with `effects`. `grids` compares the points of a grid. `display` shows tables and figures
in notebooks, `pages` turns notebooks into HTML, `export` writes embeddings for other programs, and
`publish` keeps the results that the project publishes.
"""
