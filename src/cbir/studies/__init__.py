"""Studies: what is asked for, what it would take, and running it.

`params` reads a study's files in layers, checked against `limits` and what the parameters `cells`
of notebooks know. `study` is what the command line asked for, `plan` says what it would take,
`report` runs the notebooks.
"""
