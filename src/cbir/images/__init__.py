"""Images and their roles.

`folders` lists files, `pictures` decodes them, and `dataset` splits them into training, validation,
gallery and query images. `protocols` provides other views of a data set, with other galleries and
queries. `leaks` detects copies: queries that are also in the gallery, and validation images in
training.
"""
