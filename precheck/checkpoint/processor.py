"""The processor of a checkpoint: its tokenizer, and what turns images or sounds into tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from precheck.checkpoint.source import Checkpoint

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(checkpoint: Checkpoint) -> ProcessorMixin:
    """The processor, as transformers loads it.

    Raises:
        Exception: whatever its code raises; TypeError if it takes only text.
    """
    settings: dict[str, Any] = {
        "trust_remote_code": checkpoint.trust_remote_code,
        "local_files_only": True,
    }
    try:
        loaded: Any = AutoProcessor.from_pretrained(checkpoint.folder, **settings)
    except (ImportError, OSError) as error:
        # the part for videos needs torchvision, or is missing; images work without it
        config_class = type(checkpoint.config)
        if "video" not in str(error).lower() or config_class not in PROCESSOR_MAPPING:
            raise
        processor_class: Any = PROCESSOR_MAPPING[config_class]
        loaded = without_video(processor_class).from_pretrained(checkpoint.folder, **settings)
    if not hasattr(loaded, "image_processor") and not hasattr(loaded, "feature_extractor"):
        raise TypeError(f"{type(loaded).__name__} takes neither images nor sound")
    processor: ProcessorMixin = loaded
    return processor


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor without its part for videos."""
    names = [name for name in processor_class.get_attributes() if "video" not in name]
    return type(
        processor_class.__name__,
        (processor_class,),
        {"get_attributes": classmethod(lambda _: names)},
    )
