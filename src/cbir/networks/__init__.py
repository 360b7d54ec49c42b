"""Networks: from images to embeddings.

`architecture` builds, trains and embeds as a study describes it: `models` builds a network of a
backbone, which starts from `weights`, `pooling`, embedding and classifier; `training` trains it;
`inference` computes its outputs in batches. `backbones` and `choices` are tables of what a study
can name, and `cnns` holds the project's own backbones. `embeddings` stores vectors, including those
of `baselines` and `vector_files`.
"""
