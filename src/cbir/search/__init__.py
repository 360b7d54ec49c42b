"""Asking a finished study: a picture of one's own in, what resembles it out.

`engine` opens what a study left, with its own `gallery`; `folders` of one's own pictures become
galleries too. `answers` finds what resembles a picture, and what marks change in it. What comes
out is for a terminal, a program or a page (`showing`, by the `commands`) or for JupyterLab
(`explorer`).
"""
