"""Reporting: from the files of runs to tables, sentences, figures and pages.

Files: `runs` writes and reads what a run leaves, in the rows of `tidy`. Numbers: `estimates` are
values with their intervals, `tables` sets runs side by side, `examples` chooses queries worth
looking at, `provenance` says what a report was made from. Texts: `sentences`. Figures: `charts` of
numbers, `image_grids` of images, `projections` of embeddings, a `diagram` of the system;
`explanations` shows why images match, `feedback` what relevance feedback brings; both store their
rows with `effects`. `grids` compares the points of a grid of parameters. `display` shows tables and
figures in notebooks, `pages` turns notebooks into HTML, `publish` keeps the results that the
project itself publishes.
"""
