"""A frozen base that several processes hold together: FSDP2 splits its decoder layers.

Each process keeps its share of every layer and gathers the whole layer for as long as it computes
with it (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3). Embeddings, head and adapters, which
are added afterwards, stay whole everywhere: the fused head reads its weight in place, and the
gradients of adapters are small enough to be summed as they are.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lora.base.fingerprint import base_hash
from lora.base.layers import decoder_layers
from lora.base.loading import Base
from lora.base.rotary import rotary_by_rows

Shard = Literal["auto", "on", "off"]


def load_sharded(load: Callable[[], Base], skeleton: Any, device: torch.device) -> Base:
    """Return the base, frozen and in eval mode, its layers split over all processes.

    The first process alone calls `load`, for the whole model on the CPU, and hands out the shares,
    one weight at a time, so that no `device` ever holds more than its own. `skeleton` is the model
    on torch's meta device, in the dtype to compute in.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    whole = load() if dist.get_rank() == 0 else None
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(skeleton)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # The body owns no share; as their common root it lets layers be gathered ahead of time.
    stays = set(skeleton.parameters()) - set(layers.parameters())
    fully_shard(skeleton.base_model, mesh=mesh, reshard_after_forward=True, ignored_params=stays)
    model = skeleton.to_empty(device=device)
    model.tie_weights()
    state = whole.model.state_dict() if whole else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    # What is in no state: how to generate, buffers such as RoPE's frequencies, and what it is.
    beside: list[Any] = [None]
    if whole:
        buffers = dict(whole.model.named_buffers())
        about = whole._replace(model=None, hash=base_hash(whole.model))
        beside = [(about, whole.model.generation_config, buffers)]
    dist.broadcast_object_list(beside)
    base, model.generation_config, buffers = beside[0]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    rotary_by_rows(model)
    return cast(Base, base._replace(model=model.eval().requires_grad_(False)))


def take_part(model: Any, passes: int = 1) -> None:
    """Pass one token through the body, and back in training: others gather their layers from here.

    Adapters get gradients of zero. `passes` forward passes are made, the last of them trained.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    for number in range(passes):
        with torch.set_grad_enabled(torch.is_grad_enabled() and number == passes - 1):
            hidden = model.base_model(input_ids=token, use_cache=False).last_hidden_state
    if hidden.requires_grad:
        hidden.backward(torch.zeros_like(hidden))
