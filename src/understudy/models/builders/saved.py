"""`saved:FOLDER`: a model that understudy wrote, such as `saved:runs/demo/student/kd/seed-0`."""

from __future__ import annotations

from understudy.errors import ModelError
from understudy.models.build import Request, builders, refuse_reserved
from understudy.models.language_models import language_preprocess
from understudy.models.model import Model
from understudy.models.preprocess import adjusted, from_config


@builders.register("saved")
class SavedBuilder:
    """`saved:FOLDER` brings everything along: network, weights, preprocessing, class names."""

    language = True

    def names(self) -> list[str]:
        """Return nothing: any folder may stand there."""
        return []

    def build(self, request: Request) -> Model:
        """Load the folder and check it against the task."""
        from understudy.models.saved import load, read_description

        refuse_reserved(
            request, dict.fromkeys(request.keywords, "everything comes from the folder")
        )
        if request.weights is not None:
            raise ModelError(f"'{request.full_name}' has its own weights; leave out `weights`.")
        description = read_description(request.name)
        task = description.get("task", "classification")
        if task != request.task:
            raise ModelError(
                f"'{request.full_name}' was made for the task {task}, and is wanted for {request.task}."
            )
        if task == "classification" and description["classes"] != request.classes:
            raise ModelError(
                f"'{request.full_name}' has {description['classes']} classes, the task has {request.classes}."
            )
        model = load(request.name)
        model.name = request.full_name
        if not request.preprocess:
            return model
        tokenizer = getattr(model.preprocess, "tokenizer", None)
        if task == "classification":
            base = from_config(model.preprocess.config(), tokenizer=tokenizer)
            model.preprocess = adjusted(base, request.preprocess)
        else:
            settings = {**model.preprocess.config(), **request.preprocess}
            model.preprocess, notes = language_preprocess(
                model.name, task, model.module, tokenizer, settings
            )
            model.extra = {**model.extra, "notes": notes}
        return model
