"""Search finished studies with your own pictures.

`searchers` opens a finished study: its trained network and its gallery. `galleries` makes further
galleries of folders. `answers` searches a gallery with a picture. `cli` holds the commands
`cbir search` and `cbir index`, `explorer` the widgets for JupyterLab. See docs/search.md.
"""
