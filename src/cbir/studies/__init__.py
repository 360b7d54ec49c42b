"""Studies: parameters (`params`), the YAML files that set them (`configs`), a study with its runs
and pages (`study`), what its report would take (`plan`), and running its notebooks (`runner`, in
`kernels`).
"""
