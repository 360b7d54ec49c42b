"""Reporting: from metrics to tables, sentences, figures and pages.

`results` writes and reads the files of a run, in the rows of `tidy`. `comparison` makes tables of
several runs, `claims` sentences, `plots` and `pictures` figures; `origins` says what networks came
from. `grids` are runs over combinations of parameters, shown by `grid_report` and `grid_plots`.
`pages` turns notebooks into HTML, `published` keeps what the project itself publishes.
"""
