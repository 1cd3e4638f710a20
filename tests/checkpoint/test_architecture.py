"""Decoder layers are found by structure, whatever they are called."""

from __future__ import annotations

import pytest
from torch import nn

from precheck.checkpoint.architecture import find_architecture
from precheck.errors import UnsupportedModelError
from precheck.records.traces import Section
from tests.tiny_models import TINY, architectures, tiny

LISTS = {
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "bloom": "transformer.h",
    "t5": "decoder.block",
    "bert": "bert.encoder.layer",
}


@pytest.mark.parametrize("name", architectures(TINY))
def test_the_decoder_layers_are_found(name: str) -> None:
    found = find_architecture(tiny(name, num_layers=2))
    assert found.decoder_layers == LISTS.get(name, "model.layers")
    assert found.num_decoder_layers == 2
    main = [unit for unit in found.blocks if unit.name.startswith(f"{found.decoder_layers}.")]
    assert [unit.name for unit in main] == [f"{found.decoder_layers}.{i}" for i in (0, 1)]
    expected = Section.ENCODER if name == "bert" else Section.DECODER
    assert {unit.section for unit in main} == {expected}
    assert found.is_causal == (name != "bert")


@pytest.mark.parametrize("name", architectures(TINY))
def test_units_do_not_nest(name: str) -> None:
    names = [unit.name for unit in find_architecture(tiny(name, num_layers=2)).units]
    assert len(set(names)) == len(names)
    for one in names:
        assert not [other for other in names if other.startswith(f"{one}.")]


def test_an_encoder_and_a_decoder_are_told_apart() -> None:
    found = find_architecture(tiny("t5", num_layers=2))
    sections = {unit.name: unit.section for unit in found.units}
    assert sections["encoder.block.0"] is Section.ENCODER
    assert sections["decoder.block.1"] is Section.DECODER
    assert sections["encoder.final_layer_norm"] is Section.ENCODER
    assert sections["lm_head"] is Section.HEAD
    assert found.section_of("encoder.block.1.layer.0.SelfAttention") is Section.ENCODER
    assert found.section_of("lm_head") is Section.HEAD


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))


class Named(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def test_lists_of_other_things_are_no_decoder_layers() -> None:
    model = Named(
        heads=nn.ModuleList(nn.Linear(2, 2) for _ in range(9)),
        empty=nn.ModuleList(),
        zwiebel=nn.ModuleList(block() for _ in range(2)),
    )
    found = find_architecture(model)
    assert found.decoder_layers == "zwiebel"
    # a list cannot be called: what is in it can
    heads = [f"heads.{index}" for index in range(9)]
    assert [unit.name for unit in found.units] == [*heads, "zwiebel.0", "zwiebel.1"]


def test_a_list_within_a_decoder_layer_is_part_of_it() -> None:
    experts = Named(attn=nn.Linear(2, 2), experts=nn.ModuleList(block() for _ in range(4)))
    found = find_architecture(Named(layers=nn.ModuleList([experts, experts.__class__(a=block())])))
    assert [unit.name for unit in found.units] == ["layers.0", "layers.1"]


def test_a_module_that_decoder_layers_call_is_no_unit_of_its_own() -> None:
    shared = nn.Linear(2, 2)
    layers = nn.ModuleList(Named(own=block(), norm=shared) for _ in range(2))
    found = find_architecture(Named(layers=layers, norm=shared))
    assert [unit.name for unit in found.units] == ["layers.0", "layers.1"]


def test_the_larger_of_two_stacks_is_the_main_one() -> None:
    model = Named(
        small=nn.ModuleList(block() for _ in range(2)),
        large=nn.ModuleList(block() for _ in range(3)),
    )
    found = find_architecture(model)
    assert (found.decoder_layers, found.num_decoder_layers) == ("large", 3)
    assert len(found.blocks) == 5


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), Named(layers=nn.ModuleList([nn.Linear(2, 2)])), Named()]
)
def test_a_model_without_a_repeated_block_is_refused(model: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match="no decoder layers found"):
        find_architecture(model)
