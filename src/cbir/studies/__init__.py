"""Studies: their parameters (`params`), what a study is made of (`study`), what its report would
take (`plan`), and running its notebooks (`run`).
"""
