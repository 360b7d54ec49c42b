"""Images, and what each of them is used for.

`pictures` lists and decodes files, and `dataset` splits them into training, validation, gallery
and query images. `protocols` gives other views of a data set, in which other images are searched.
`leaks` reports queries that are also in the gallery.
"""
