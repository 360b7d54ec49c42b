"""Networks: from images to embeddings.

`models` builds a network from a row of `backbones` (or one of the project's own `cnns`), its
`weights`, a way of `pooling` and the `precision` that the machine allows. `training` fits it with
what `optimisers` say, fed by `batches`, kept by `checkpoints`. `embeddings` turns images into
`vectors` of unit length, by `inference` from disk to disk; a `recipe` holds all of this as one
thing. `gradients` say which part of two images makes them alike. `baselines` are embeddings without
a network.
"""
