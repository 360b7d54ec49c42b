"""Reporting: from metrics to tables, sentences, figures and pages.

`results` writes and reads the files of a run, in the rows of `tidy`; `estimates` are numbers with
their intervals. `comparison` makes tables of several runs, `answer` and `claims` sentences;
`origins` says what networks came from, `parameters` with what. Figures are `plots` of metrics,
`cost_plots`, `outcomes` of queries and pairs, `pictures` of images, `maps` of embeddings, and a
`diagram` of the system; `cases` chooses which queries are worth looking at, `story` what answers
the paper's figures. `explained` shows why images match, `refined` what marking results brings.
`grids` are runs over combinations of parameters, shown by `grid_report` and `grid_plots`. `pages`
turns notebooks into HTML, `published` keeps what the project itself publishes.
"""
