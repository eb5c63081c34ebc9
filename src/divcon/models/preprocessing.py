"""How an image becomes a model's input, for those who prepare images without divcon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from divcon.config.image_size import height_width
from divcon.data.transforms import resize_sides

if TYPE_CHECKING:
    from divcon.models.embedding_model import EmbeddingModel


def about_preprocessing(model: EmbeddingModel) -> dict[str, Any] | None:
    """How an image becomes the model's input, of plain values (see `divcon.exports.program.about_model`); None for
    vectors."""
    if model.vector_dim is not None:
        return None
    preprocessing = model.preprocessing
    size, resize = (
        sides if isinstance(model.image_size, tuple) else sides[0]
        for sides in (list(height_width(model.image_size)), list(resize_sides(model.image_size)))
    )
    of_fit: dict[str, Any] = {"crop": {"resize": resize}, "squash": {}, "pad": {"fill": list(preprocessing.fill)}}
    built_in = {"fit": model.fit, **of_fit[model.fit], "interpolation": preprocessing.interpolation}
    values = model.pixel_range
    of_values = {} if values == "full" else {"pixel_range": values if isinstance(values, str) else list(values)}
    own = model.config.get("eval_transform")
    return {
        "size": size,
        **({} if model.channels == 3 else {"channels": model.channels}),
        **({"transform": own} if own else built_in),
        **of_values,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def processor_of(preprocessing: dict[str, Any] | None) -> dict[str, Any] | None:
    """``preprocessor_config.json``, in the format of transformers' image processors: of the one that resizes the
    shorter side and crops, or the one that resizes to a height and width. None where no processor does what the model
    needs: for vectors, a transform of one's own, a border, and a crop that is not square."""
    if preprocessing is None or "transform" in preprocessing or "channels" in preprocessing:
        return None
    square = isinstance(preprocessing["size"], int)
    height, width = (preprocessing["size"],) * 2 if square else preprocessing["size"]
    if preprocessing["fit"] == "squash":
        kind = "ViTImageProcessor"
        sizes = {"size": {"height": height, "width": width}}
    elif preprocessing["fit"] == "crop" and square:
        kind = "BitImageProcessor"
        crop_size = {"height": height, "width": width}
        sizes = {"size": {"shortest_edge": preprocessing["resize"]}, "do_center_crop": True, "crop_size": crop_size}
    else:
        return None
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        **sizes,
        "resample": Image.Resampling[preprocessing["interpolation"].upper()].value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing["mean"],
        "image_std": preprocessing["std"],
    }
