"""The parameters that a run is known to have are those that are in its model."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.source import open_checkpoint
from precheck.measure.models.streamed import StreamedModels
from precheck.records.precision import Dtype
from tests.tiny_models import save_checkpoint
from tests.zoo.build import Kind, build

if TYPE_CHECKING:
    from pathlib import Path

OWNED_OUTSIDE_UNITS = Kind("image-text", "molmo2", "Molmo2ForConditionalGeneration")
"""Its vision tower has position embeddings of its own, which stay in memory."""


def test_a_stand_in_that_is_gone_leaves_no_identity_behind(tmp_path: Path) -> None:
    """Another tensor may get it: a key that did was taken for a weight, and put down to the MLP."""
    folder = save_checkpoint(build(OWNED_OUTSIDE_UNITS), tmp_path, tokenizer=False)
    checkpoint = open_checkpoint(str(folder), observe=lambda _: None)
    with closing(StreamedModels(checkpoint, device="cpu")) as models:
        skeleton = models.skeleton(Dtype.FLOAT32, models.default_attention())
        models.plan_memory(find_architecture(skeleton.model), limit=1 << 34, used=0)
        models.presence(skeleton)
        in_model = (*skeleton.model.parameters(), *skeleton.model.buffers())
        assert skeleton.parameters.names.keys() <= {id(tensor) for tensor in in_model}
