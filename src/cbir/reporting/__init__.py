"""Reporting: from the files of runs to tables, sentences, figures and pages.

Files: `runs` writes and reads the files of a run, whose rows are `measurements`. Numbers: `tables`
compares runs, `examples` selects queries worth looking at, `provenance` records what a report was
made from; `numbers` prints values with their intervals. Texts: `sentences`, and `claims` of the
paper. Figures: `charts` of numbers, `montages` of images, and a `diagram` of the system.
`explanations` shows why images match, and `feedback` what marking results gains; both store their
rows with `gains`. `grids` compares the points of a grid.
`display` shows tables and figures in notebooks, `notebook_html` turns notebooks into HTML, `export`
writes embeddings for other programs, and `publish` keeps the results that the project publishes.
A page of a report is a notebook in notebooks/, with its title in `studies.study.PAGES`.
"""
