"""`kd:` our own family of the small CIFAR networks that the field compares."""

from __future__ import annotations

from understudy.models.build import Request, builders, load_file
from understudy.models.model import Model


@builders.register("kd")
class KdBuilder:
    """`kd:resnet20` and its like; `width` and `in_channels` are free."""

    def names(self) -> list[str]:
        """Return the names of the family."""
        from understudy.models import kd

        return list(kd.names())

    def build(self, request: Request) -> Model:
        """Make the network; its input channels are those of the data unless `in_channels` is given."""
        from understudy.models import kd

        keywords = dict(request.keywords)
        drop_head = bool(keywords.pop("drop_head", False))
        keywords.setdefault("in_channels", request.image_channels())
        module = kd.build(request.name, classes=request.classes, **keywords)
        preprocess = request.plain(keywords["in_channels"])
        weights = load_file(module, request, drop_head, published=True)
        config = request.rebuilt_by(preprocess, **keywords)
        return Model(module, preprocess, request.full_name, config, weights, request.class_names)
