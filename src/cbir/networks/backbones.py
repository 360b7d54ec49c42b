"""The backbones that a study can name, one row each. To add a backbone, add a row.

A row names functions instead of importing them, so that checking parameters loads no Keras.
"""

from dataclasses import dataclass, field

KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"
# Models such as EfficientNet, ConvNeXt and MobileNetV3 preprocess RGB in [0, 255] themselves by
# default, whatever their weights.
INCLUDED = "included"


@dataclass(frozen=True)
class Imagenet:
    """The file of a backbone's ImageNet weights, without its classifier: its name in the cache of
    Keras, its folder below `KERAS_APPLICATIONS` and its MD5, None if Keras lists none.
    """

    file: str
    folder: str
    md5: str | None = None

    @property
    def address(self) -> str:
        return f"{KERAS_APPLICATIONS}/{self.folder}/{self.file}"


@dataclass(frozen=True)
class Backbone:
    """A row of `BACKBONES`.

    Attributes:
        constructor: name of a function in `keras.applications` or `cbir.networks.cnns`.
        blocks: the first layer of each block, from the input on; `train: last_blocks:n` counts
            them. Layers that Keras names by a number (`conv2d_2`) are numbered from 0, as in the
            first network of a process.
        rates: images per second at 32 pixels (training, embedding), measured with TensorFlow on
            two cores of an AMD EPYC; `make plan` estimates times from them.
        preprocess: the module of `keras.applications` whose `preprocess_input` turns RGB in
            [0, 255] into what the ImageNet weights expect; None for [-1, 1]; `INCLUDED` for a model
            that preprocesses itself.
        imagenet: the file of the ImageNet weights; None if there are none.
        arguments: further arguments of the constructor.
        initializer: the Keras initializer of the convolutions' random weights; the constructor's
            if empty.
    """

    constructor: str
    blocks: tuple[str, ...]
    rates: tuple[float, float]
    preprocess: str | None = None
    imagenet: Imagenet | None = None
    arguments: dict = field(default_factory=dict)
    initializer: str = ""

    def key_fields(self) -> dict:
        """The fields in the keys of cached steps, which have the SHA-256 of weights already."""
        names = ("constructor", "blocks", "preprocess", "arguments", "initializer")
        return {name: getattr(self, name) for name in names}


BACKBONES = {
    "cnn": Backbone(
        constructor="plain_cnn",
        blocks=("stage1_conv1", "stage2_conv1", "stage3_conv1"),
        rates=(980, 2300),
    ),
    "cnn_strong": Backbone(
        constructor="strong_cnn",
        blocks=("stem_conv", "stage1_conv1", "stage2_conv1", "stage3_conv1"),
        rates=(350, 1100),
    ),
    "mobilenet": Backbone(
        constructor="MobileNet",
        blocks=("conv1", *(f"conv_dw_{block}" for block in range(1, 14))),
        rates=(2100, 3500),
        preprocess="mobilenet",
        imagenet=Imagenet("mobilenet_2_5_224_tf_no_top.h5", "mobilenet"),
        arguments={"alpha": 0.25},
    ),
    "resnet50": Backbone(
        constructor="ResNet50",
        blocks=(
            "conv1_conv",
            *(f"conv2_block{block}_1_conv" for block in range(1, 4)),
            *(f"conv3_block{block}_1_conv" for block in range(1, 5)),
            *(f"conv4_block{block}_1_conv" for block in range(1, 7)),
            *(f"conv5_block{block}_1_conv" for block in range(1, 4)),
        ),
        rates=(145, 550),
        preprocess="resnet50",
        imagenet=Imagenet(
            "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "resnet",
            "4d473c1dd8becc155b73f8504c6f6626",
        ),
    ),
    "vgg16": Backbone(
        constructor="VGG16",
        blocks=tuple(f"block{block}_conv1" for block in range(1, 6)),
        rates=(95, 230),
        preprocess="vgg16",
        imagenet=Imagenet(
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "vgg16",
            "6d6bbae143d832006294945121d1f1fc",
        ),
        # With Keras' Glorot weights, each ReLU halves the variance, and training can stay at
        # chance level for hundreds of steps (He et al., "Delving deep into rectifiers",
        # 2015).
        initializer="he_normal",
    ),
}
