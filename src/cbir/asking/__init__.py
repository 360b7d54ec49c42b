"""Asking a finished study: a picture of one's own in, what resembles it out.

`engine` opens what a study left, `galleries` are folders of one's own pictures, embedded by such a
study, `answers` is what comes out: a table for the terminal, JSON, a page.
"""
