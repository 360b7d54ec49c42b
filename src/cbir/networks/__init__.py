"""Networks: from images to embeddings.

- `backbones`: a table with a row for each backbone that a study can name.
- `choices`: the same for poolings, embeddings, optimizers, schedules and augmentations.
- `cnns`: the project's own networks, in addition to those of `keras.applications`.
- `pooling`: feature maps to one vector per image.
- `models`: builds a network of backbone, pooling, embedding and classifier, and its precision.
- `weights`: the weights that a backbone starts from.
- `training`: trains a network: optimizer, loss, augmentation, checkpoints.
- `embeddings`: stored embeddings, unit length, whitening.
- `inference`: a network's outputs for many images, in batches; encoders for further images.
- `architecture`: builds, trains and embeds as a study describes it.
- `baselines`: embeddings without a network.
- `vector_files`: embeddings that another program made.
- `gradients`: maps of the parts of two images that make them similar.
"""
