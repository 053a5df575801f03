"""Which columns of a table hold inputs and labels, by their names and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from understudy.errors import DataError, suggestion

Feature = Any
"""A column's description as `datasets` writes it: {"_type": "ClassLabel", "names": [...]}; nested columns are
mappings without "_type" or lists."""

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)


def find_inputs(
    features: Mapping[str, Feature],
    image: str | None,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    what: str,
) -> list[str]:
    """Settle which columns hold the inputs: one of images, one of texts, or two of texts."""
    if image is not None and (text is not None or text_pair is not None):
        raise DataError(f"{what}: give `image_column` or `text_column`, not both.")
    if image is not None:
        _check_type(features, image, "Image", what)
        return [image]
    if text is None and text_pair is None:
        images = [name for name, feature in features.items() if feature_type(feature) == "Image"]
        if len(images) == 1:
            return images
        if images:
            raise DataError(
                f"{what} has several columns of images: {', '.join(images)}. Choose with `image_column`."
            )
    strings = [name for name, feature in features.items() if name != label and _is_text(feature)]
    if text is None:
        pair = next((pair for pair in _PAIRS if set(pair) <= set(strings)), None)
        if text_pair is None and pair is not None:
            return list(pair)
        candidates = [name for name in strings if name != text_pair]
        usual = [name for name in ("text", "sentence") if name in candidates]
        if not usual and len(candidates) != 1:
            raise DataError(
                f"{what}: it is not clear which column holds the inputs. Its columns: {_listed(features)}. "
                "Choose with `image_column` or `text_column`."
            )
        text = usual[0] if usual else candidates[0]
    columns = [text] if text_pair is None else [text, text_pair]
    for name in columns:
        _check_type(features, name, "text", what)
    return columns


def find_label(features: Mapping[str, Feature], label: str | None, what: str) -> str:
    """Settle which column holds the labels."""
    if label is None:
        named = [name for name in ("label", "labels") if name in features]
        typed = [
            name for name, feature in features.items() if feature_type(feature) == "ClassLabel"
        ]
        candidates = named[:1] or typed
        if len(candidates) != 1:
            raise DataError(
                f"{what}: it is not clear which column holds the labels. Its columns: {_listed(features)}. "
                "Choose with `label_column`."
            )
        label = candidates[0]
    if label not in features:
        raise DataError(f"{what} has no column '{label}'. {suggestion(label, features)}")
    return label


def _check_type(
    features: Mapping[str, Feature], name: str, expected: Literal["Image", "text"], what: str
) -> None:
    if name not in features:
        raise DataError(f"{what} has no column '{name}'. {suggestion(name, features)}")
    feature = features[name]
    if not (_is_text(feature) if expected == "text" else feature_type(feature) == "Image"):
        raise DataError(
            f"The column '{name}' of {what} is of type {feature_type(feature)}, not {expected}."
        )


def _is_text(feature: Feature) -> bool:
    return feature_type(feature) in ("string", "large_string")


def feature_type(feature: Feature) -> str:
    """Return "Image", "ClassLabel", ..., and for plain values their type, such as "string"."""
    if not isinstance(feature, Mapping):
        return "list"
    name = str(feature.get("_type", "struct"))
    return str(feature.get("dtype", name)) if name == "Value" else name


def _listed(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name} ({feature_type(feature)})" for name, feature in features.items())
