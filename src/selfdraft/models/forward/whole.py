"""Run the layers of a path inside the model's own forward, for families whose layers cannot be called one by one.

Families differ in what happens around their layers: learned positions, scaled embeddings, inputs of their own for every
layer, keys that layers share, scaled logits. So we call the decoder's own `forward`, on a light copy in which a `Place`
stands for each layer. A place runs the path's layer, or none if the path leaves it out. It gives the layer two things
of ours: the mask of a token tree, and the cache. Everything else is what the family computes.

Shapes: B rows of one forward, N tokens a row, n nodes of a tree, V vocabulary, C hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfdraft.models.cache.attention import NAME, PROBE, MaskRule, additive, visible_slots
from selfdraft.models.cache.block import Block
from selfdraft.models.families.anatomy import FULL, Anatomy, refuse, text_config
from selfdraft.models.families.dispatch import device_of
from selfdraft.models.families.lightcopy import light_copy, with_parts
from selfdraft.models.families.rotary import Rotary
from selfdraft.models.forward.places import Call, Called, Given, Lengths, Noting, Output, Place, States

WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention", "attention_chunk_size")


class WholeForward:
    """Calls the decoder of one model with the layers of any path.

    Attributes:
        rules: by layer, which positions a token may see there; None where it may see all before it.
        returned: by layer and sublayer, how many things it returns; 0: only a tensor.
        streams: how many times the width of the embedding the states between layers have (Gemma 3n: four streams).
        asks: whether layers ask the cache for its number of tokens; then every row is run by itself.
        slopes: (H,) by head, how much a bias grows from one position to the next; None: there is no such bias.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        """Learn how the family calls its layers.

        Raises:
            Exception: of any kind: the decoder's forward does not run like this.
        """
        assert anatomy.decoder is not None
        self._model, self._anatomy, self._decoder = model, anatomy, anatomy.decoder
        names = {id(module): name for name, module in model.named_modules()}
        # Some models call their base model, and others the decoder within it.
        self._base_name, _, self._inner_name = names[id(anatomy.decoder)].partition(".")
        self._within = {id(module): name for name, module in anatomy.decoder.named_modules()}
        self._stack = self._within[id(anatomy.layers[0])].rpartition(".")[0]
        self._head_name = names[id(anatomy.head)]
        self._signatures = [inspect.signature(layer.forward) for layer in anatomy.layers]
        self._takes = inspect.signature(anatomy.decoder.forward).parameters
        self._returned, self.asks = 0, False
        self.returned: dict[tuple[int, str], int] = {}
        self.slopes: Tensor | None = None
        self._learn()
        self.rules = self._mask_rules()

    def run(
        self,
        layers: Sequence[nn.Module],
        block: Block,
        device: torch.device,
        dtype: torch.dtype,
        rotary: Rotary,
        *,
        hidden: Tensor | None = None,
        embedded: Tensor | None = None,
        states: States = None,
        since: int = 0,
        normed: bool = True,
    ) -> Tensor:
        """Run layers over a block; see `Path.drive` for the arguments."""
        if self.asks and len(block.rows) > 1:
            return self._row_by_row(layers, block, device, dtype, rotary, hidden, embedded, states, since, normed)
        starts = [start + since for start in block.starts]
        width = block.tokens.shape[1] - since
        view = block.cache.window(block.rows, starts, width, key_block=block.key_block)
        positions = torch.tensor(block.first_positions)[:, None] + block.depths[:, since:]
        # `Driver.driven` marked them; a layer that does nothing (see `breakdown`) has no place.
        layers = [layer for layer in layers if "place" in layer.__dict__]
        places = [int(layer.__dict__["place"]) for layer in layers]
        made: dict[int, Tensor | None] = {}
        for rule in {id(self.rules[place]): self.rules[place] for place in places}.values():
            seen = visible_slots(
                block.starts,
                block.depths,
                block.sees,
                view.span,
                None,
                device,
                first_positions=block.first_positions,
                held=block.held,
                rule=rule,
            )
            if seen is None:  # some families add a mask to their scores without asking whether there is one
                seen = torch.ones(*block.tokens.shape, view.span, dtype=torch.bool, device=device)
            made[id(rule)] = additive(seen[:, since:], dtype)
        masks = {place: made[id(self.rules[place])] for place in places}
        call = Call(dict(zip(places, layers, strict=True)), masks, view, hidden=hidden, states=states)
        if places:
            call.first, call.last = places[0], places[-1]
        if self.slopes is not None:
            call.slopes, call.key_positions = self.slopes, key_positions(block, view.span).to(device)
        lengths = None
        if rotary.rules:
            prefilled_at = torch.tensor([block.cache.prefilled_at[row] for row in block.rows])
            lengths = torch.maximum(positions + 1, prefilled_at[:, None])
        swapped: dict[int, nn.Module] = {}
        if embedded is not None:
            swapped[id(self._anatomy.embed)] = Given(embedded, stock=self._anatomy.embed)
        if lengths is not None:
            swapped[id(self._anatomy.rotary)] = Lengths(rotary, lengths)
        view.before = (positions[0] - torch.arange(width)).to(device)
        final = self._forward(call, block.tokens[:, since:].to(device), positions.to(device), swapped)
        self.asks = self.asks or view.asked
        if normed:
            return final
        left = call.entered if call.left is None else call.left
        assert left is not None
        return left

    def _row_by_row(
        self,
        layers: Sequence[nn.Module],
        block: Block,
        device: torch.device,
        dtype: torch.dtype,
        rotary: Rotary,
        hidden: Tensor | None,
        embedded: Tensor | None,
        states: States,
        since: int,
        normed: bool,
    ) -> Tensor:
        """Run one row after the other, because the layers ask for one number of tokens and take it for all rows."""
        finals, kept = [], []
        for b in range(len(block.rows)):
            mine: list[Tensor] = []
            given = [None if tensor is None else tensor[b : b + 1] for tensor in (hidden, embedded)]
            final = self.run(
                layers, block.row(b), device, dtype, rotary,
                hidden=given[0], embedded=given[1], states=mine, since=since, normed=normed,
            )  # fmt: skip
            finals.append(final)
            kept.append(mine)
        if states is not None:
            states += [torch.cat(of_rows) for of_rows in zip(*kept, strict=True)]
        return torch.cat(finals)

    def logits(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the (n, V) logits of (n, C) final states by a head, scaled as the family does."""
        model, output = self._model, Output(last_hidden_state=hidden[None])
        module = head if isinstance(head, nn.Module) else Called(head)
        base, head_name = self._base_name, self._head_name

        def swap(name: str, stock: nn.Module) -> nn.Module | None:
            if name == base:
                return Given(output, self._inner_name)
            if name == head_name:
                return module
            return None if name == "" or head_name.startswith(f"{name}.") else stock

        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return cast("Any", light_copy(model, swap))(input_ids=ids, use_cache=False).logits[0]

    def _forward(
        self, call: Call, tokens: Tensor, positions: Tensor | None, swapped: Mapping[int, nn.Module]
    ) -> Tensor:
        """Call the decoder's own forward; return its (B, N, C) final states."""
        decoder = self._copy(call, swapped, NAME)
        given: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        given |= {name: v for name, v in (("return_dict", True), ("position_ids", positions)) if name in self._takes}
        out = decoder(**given)
        return out[0] if isinstance(out, tuple) else out.last_hidden_state

    def _copy(self, call: Call, swapped: Mapping[int, nn.Module], attention: str | None) -> nn.Module:
        """Return the decoder with places for layers.

        Args:
            swapped: modules that replace others of the decoder, by the identities of these.
            attention: the name of an attention function; None: the model's own.
        """
        stock_layers = zip(self._anatomy.layers, self._signatures, strict=True)
        places = [Place(i, layer, call, self._returned, how) for i, (layer, how) in enumerate(stock_layers)]
        parts: dict[str, nn.Module] = {self._stack: nn.ModuleList(places)}
        parts |= {self._within[key]: module for key, module in swapped.items() if key in self._within}
        decoder = with_parts(self._decoder, parts)
        if attention is not None:
            decoder.config = with_attention(cast("Any", decoder.config), attention)
        return decoder

    @torch.inference_mode()
    def _learn(self) -> None:
        """Run the stock layers once, and note what they and their sublayers return, and biases by distance."""
        names = [name for name in (self._anatomy.attention_name, self._anatomy.mlp_name) if name]
        layers = {}
        for index, stock in enumerate(self._anatomy.layers):
            layer = copy.copy(stock)
            layer._modules = dict(stock._modules)
            for name in names:
                note = partial(self.returned.__setitem__, (index, name))
                layer._modules[name] = Noting(cast("nn.Module", stock._modules[name]), note)
            layers[index] = layer
        call = Call(layers)
        self._try(call, None)
        width = call.entered.shape[-1] if call.entered is not None else 0
        self.streams = (
            width // self._anatomy.embed(torch.zeros(1, 1, dtype=torch.long, device=device_of(self._model))).shape[-1]
        )
        self._returned = call.returned
        if call.bias is not None:
            bias = call.bias.detach().float()
            self.slopes = bias[:, 0, 1] - bias[:, 0, 0]

    @torch.inference_mode()
    def _mask_rules(self) -> list[MaskRule | None]:
        """Run the decoder without layers, and with masks that only keep their rule; return the rules."""
        call = Call({})
        self._try(call, PROBE)
        found = [call.seen.get(place) for place in range(len(self._anatomy.layers))]
        windowed = any(isinstance(rule, MaskRule) and not rule.causal for rule in found)
        if not windowed and (name := _window_named(text_config(self._model))) is not None:
            raise refuse(self._model, f"it has a {name}, which its layers apply in a way of their own")
        return [rule if isinstance(rule, MaskRule) and not rule.causal else None for rule in found]

    def _try(self, call: Call, attention: str | None) -> None:
        tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(self._model))
        self._copy(call, {}, attention)(input_ids=tokens, use_cache=False)


def with_attention(config: Any, name: str) -> Any:
    """Return a copy of a configuration that names another attention function; parts that it shares stay as they are."""
    new = copy.copy(config)
    new.__dict__["_attn_implementation_internal"] = name
    return new


def _window_named(config: PreTrainedConfig) -> str | None:
    """Return the name of a window that a configuration says to be in use, or None."""
    if not getattr(config, "use_sliding_window", True) or set(getattr(config, "layer_types", None) or ()) == {FULL}:
        return None
    return next((name for name in WINDOWS if getattr(config, name, None) is not None), None)


def key_positions(block: Block, span: int) -> Tensor:
    """Return (B, K) the position of every slot's token: the prefix in order, or as it was selected, then the block."""
    positions = torch.arange(span).repeat(len(block.rows), 1)
    for row, start in enumerate(block.starts):
        if block.held is not None:
            positions[row, :start] = block.held[row]
        width = block.depths.shape[1]
        positions[row, start : start + width] = block.first_positions[row] + block.depths[row]
    return positions
