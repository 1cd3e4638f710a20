"""Where the tensors of a checkpoint and the parameters of a model do not match, and why."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from precheck.checkpoint.architecture import token_embedding
from precheck.checkpoint.faults.renamings import find_renamings
from precheck.checkpoint.faults.scale_audit import audit_scales
from precheck.checkpoint.faults.scales import unread_scales, unscaled_weights
from precheck.measure.models.ties import stored_twice, tied_parameters
from precheck.records.stored import Renaming, ScaleAudit, ShapeFault, Tie

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.checkpoint.quantization import Quantization
    from precheck.checkpoint.triage.small import SmallParts
    from precheck.checkpoint.weights import Weights
    from precheck.records.stored import CheckpointAudit


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Where checkpoint and model do not match, by the names the model uses.

    The fields are those of ``CheckpointAudit``, where each is described.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    shapes: tuple[ShapeFault, ...] = ()
    renamings: tuple[Renaming, ...] = ()
    untied: tuple[Tie, ...] = ()
    tieable: tuple[Tie, ...] = ()
    unscaled: tuple[str, ...] = ()
    unread_scales: tuple[str, ...] = ()
    scales: ScaleAudit = field(default_factory=ScaleAudit)

    @classmethod
    def of(cls, info: dict[str, Any]) -> Loading:
        """From transformers' ``output_loading_info``."""
        shapes = {
            str(name): ShapeFault(name=str(name), stored=tuple(stored), expected=tuple(expected))
            for name, stored, expected in info.get("mismatched_keys", ())
        }
        return cls(
            missing=tuple(sorted(set(info.get("missing_keys", ())) - set(shapes))),
            unexpected=tuple(sorted(info.get("unexpected_keys", ()))),
            mismatched=tuple(sorted(shapes)),
            shapes=tuple(shapes[name] for name in sorted(shapes)),
        )

    def explained(
        self,
        model: nn.Module,
        stored: Weights,
        quantization: Quantization | None,
        *,
        parts: SmallParts | None = None,
    ) -> Loading:
        """The same, with what can be told of the causes from names, shapes, scales and ties.

        Args:
            model: with or without its weights.
            stored: the checkpoint's tensors; of two that the config ties, the values are compared.
            quantization: what the config names.
            parts: what may be read, besides some rows of what the config ties; None: everything.
        """
        dtypes = stored.stored_dtypes()
        packed = unscaled_weights(dtypes, quantization, decoded_from=stored.decoded_from)
        unscaled = tuple(name for name in packed if self._is_used(name))
        scales = unread_scales(dtypes, unexpected=set(self.unexpected), unscaled=set(unscaled))
        return replace(
            self,
            renamings=self._renamings(model, stored),
            untied=tuple(_untied(model, stored, is_sampled=parts is not None)),
            tieable=tuple(self._tieable(model)),
            unscaled=unscaled,
            unread_scales=tuple(scales),
            scales=audit_scales(
                stored, quantization, owned=_owned(model, quantization), parts=parts
            ),
        )

    def added_to(self, audit: CheckpointAudit, model: nn.Module) -> CheckpointAudit:
        """The audit of the model's tensors with what this says of their names and shapes."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        # those of scales that lie among the weights were found while these were read
        faults = (*self.scales.faults, *audit.scales.faults)
        found["scales"] = replace(self.scales, faults=faults)
        # a table of types that nobody looks up may be zero; that of tokens may not
        idle = {
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) and module is not token_embedding(model)
        }
        all_zero = tuple(name for name in audit.all_zero if name not in idle)
        return replace(audit, all_zero=all_zero, **found)

    def _is_used(self, packed: str) -> bool:
        """Whether the model takes a packed weight, or lacks what it would be unpacked to."""
        module = packed.rpartition(".")[0]
        return packed not in self.unexpected or f"{module}.weight" in self.missing

    def _renamings(self, model: nn.Module, stored: Weights) -> tuple[Renaming, ...]:
        if not self.missing:
            return ()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return find_renamings(
            [name for name in self.missing if name in shapes],
            [name for name in self.unexpected if name in stored],
            fits=lambda name, parameter: stored.shape(name) == shapes[parameter],
        )

    def _tieable(self, model: nn.Module) -> Iterator[Tie]:
        """The head that is missing, if the class can tie it to an embedding of its shape."""
        embedding = token_embedding(model)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if not getattr(model, "_tied_weights_keys", None) or embedding is None or head is None:
            return
        names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
        name, source = names[id(head)], names[id(embedding)]
        if name not in self.missing or source in {*self.missing, *self.mismatched}:
            return
        if head.weight.shape == embedding.weight.shape:
            yield Tie(name=name, source=source)


def _owned(model: nn.Module, quantization: Quantization | None) -> frozenset[str]:
    """Names that the model has whatever the format; what decodes it as a whole adds scales."""
    if quantization is not None and not quantization.is_decoded_here:
        return frozenset()
    tensors = (*model.named_parameters(), *model.named_buffers())
    return frozenset(name for name, _ in tensors)


def _untied(model: nn.Module, stored: Weights, *, is_sampled: bool) -> Iterator[Tie]:
    """Parameters that the config ties, and that are stored with different values."""
    tied = tied_parameters(model)
    for pair in stored_twice(model, stored, tied, is_sampled=is_sampled):
        if not pair.is_equal:
            yield Tie(name=pair.name, source=pair.source)
