"""The backends of ``torch.compile``: inductor with our passes and decompositions.

``step_backend`` is that of ``compile_step``, ``backend`` that of ``torch.compile(module,
backend="fcifar")``. On the CPU, ``lowering.fuse`` inserts the kernels; what it may replace is left
in the graph by ``Decompositions``. On an accelerator the passes are inductor's, with a gradient of
max-pools of our own.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fcifar.kernels import build, lowering, norm_gelu, pattern, threefry

aten = torch.ops.aten


def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """The backend of ``torch.compile(module, backend="fcifar")``: inductor with our kernels.

    They are inserted into the joint graph of the forward and backward pass, before it is
    partitioned. A ReLU between a convolution and its max-pool is moved behind the pool first, which
    changes no value: the maximum commutes with ``relu``, and so do their gradients.
    """
    pool_before_relu(graph.graph)
    graph.recompile()
    return _compile(graph, inputs, ["joint_custom_pre_pass", "post_grad_custom_pre_pass"])


def step_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """The backend of ``compile_step``, whose graph already contains the gradients."""
    return _compile(graph, inputs, ["post_grad_custom_pre_pass"])


def _compile(graph: fx.GraphModule, inputs: Sequence[Any], passes: Sequence[str]) -> Any:
    """Compile by inductor, with ``lowering.fuse`` as the custom passes named."""
    from torch._inductor.compile_fx import compile_fx

    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    return compile_fx(graph, inputs, **settings(passes, on_cpu=on_cpu))


def settings(
    passes: Sequence[str], *, on_cpu: bool = True, prepare: lowering.Prepare = lowering.load_now
) -> dict[str, Any]:
    """Return the arguments of ``compile_fx``, with ``lowering.fuse`` as the custom passes named.

    On another device, or on a machine without the kernels, they are inductor's own.
    """
    patches: dict[str, Any] = {"deterministic": torch.are_deterministic_algorithms_enabled()}
    patches |= build.prepare_cache()
    if not on_cpu:
        threefry.lower()
        # For its hash of this code, which the compiler's cache keys on.
        patches["post_grad_custom_pre_pass"] = make_pass(lambda graph: None)
        patches["post_grad_custom_post_pass"] = make_pass(split_sums)
        return {"config_patches": patches, "decompositions": Decompositions(on_cpu=False)}
    if build.why_not() is not None:
        return {"config_patches": patches}
    patches |= {
        name: make_pass(functools.partial(lowering.fuse, prepare=prepare)) for name in passes
    }
    patches["post_grad_custom_post_pass"] = make_pass(split_sums)
    return {"config_patches": patches, "decompositions": Decompositions()}


def pool_before_relu(graph: fx.Graph) -> int:
    """Move each ReLU between a convolution and a max-pool behind the pool; return their number."""
    moved = 0
    for pool in [node for node in graph.nodes if node.target in _MAX_POOLS]:
        relu: Any = pool.args[0] if pool.args else pool.kwargs["input"]
        if pool.kwargs.get("return_indices") or len(pool.args) > _RETURN_INDICES:
            continue
        if not _is_relu(relu) or len(relu.users) > 1:
            continue
        source: Any = relu.args[0] if relu.args else relu.kwargs["input"]
        if source.target not in _CONVOLUTIONS or len(source.users) > 1:
            continue
        pool.replace_input_with(relu, source)
        with graph.inserting_after(pool):
            behind = graph.call_function(F.relu, (pool,))
        pool.replace_all_uses_with(behind, delete_user_cb=lambda user, own=behind: user is not own)
        graph.erase_node(relu)
        moved += 1
    return moved


def _is_relu(node: fx.Node) -> bool:
    return node.target in ((F.relu, torch.relu) if node.op == "call_function" else ("relu",))


_MAX_POOLS = (F.max_pool2d, torch.max_pool2d)
_CONVOLUTIONS = (F.conv2d, torch.conv2d)
_RETURN_INDICES = 6  # the position of this argument of max_pool2d


def make_pass(change: Callable[[fx.Graph], Any]) -> Any:
    """Make a function that changes a graph a pass of inductor."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Pass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            change(graph)

        def uuid(self) -> Any:  # for the compiler's cache
            here = sorted(
                p for p in Path(__file__).parent.iterdir() if p.suffix in (".py", ".c", ".h")
            )
            return get_hash_for_files(tuple(map(str, here)))

    return Pass()


def split_sums(graph: fx.Graph) -> None:
    """Replace ``addmm`` of a whole matrix by a product and a sum.

    Inductor combines the momentum of a weight with its gradient, ``0.9 * m + x.T @ g``, into one
    call of the library. The scaled momentum is then written to memory before, and the new one read
    again for the update; a sum is part of the update's loop.
    """
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        added, left, right = node.args
        if node.kwargs or not isinstance(added, fx.Node):
            continue
        if added.meta["val"].shape != node.meta["val"].shape:
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, (left, right))
            total = graph.call_function(aten.add.Tensor, (added, product))
        product.meta, total.meta = {"val": node.meta["val"]}, dict(node.meta)
        node.replace_all_uses_with(total)
        graph.erase_node(node)


class Decompositions(dict[Any, Callable[..., Any]]):
    """Inductor's decompositions, except for pools: on the CPU, those that
    ``lowering.fuse`` may replace are
    left; on an accelerator, ``unpool`` is used where it can be.
    """

    def __init__(self, on_cpu: bool = True) -> None:
        from torch._inductor.decomposition import select_decomp_table

        table = select_decomp_table()
        super().__init__(table)
        self.on_cpu = on_cpu
        if on_cpu:
            left = dict.fromkeys(pattern.POOLING, lowering.may_be_pool) | dict.fromkeys(
                norm_gelu.GELUS, norm_gelu.supports
            )
            self.update({o: _decompose_others(table[o], f) for o, f in left.items() if o in table})
        else:
            op = aten.max_pool2d_with_indices_backward.default
            self[op] = _try(unpool, table.get(op))

    def __reduce__(self) -> tuple[Any, ...]:
        return Decompositions, (self.on_cpu,)  # the compiler's cache cannot pickle its functions


def unpool(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Any:
    """The gradient of a max-pool whose windows do not overlap, as one pass that writes it.

    Torch adds into a float32 tensor of zeros, of the size of the pool's input, and converts that:
    four times the memory traffic in bfloat16, with atomic additions. Here each element compares its
    position with that of the maximum of its window.

    Returns NotImplemented if windows overlap.
    """
    high, wide = window = [*kernel_size, *kernel_size][:2]
    steps = [*(stride or window), *(stride or window)][:2]
    if steps != window or any(padding) or any(d != 1 for d in dilation):
        return NotImplemented
    height, width = x.shape[-2:]

    def spread(values: Tensor) -> Tensor:
        """Repeat each value in its window; crop, or fill with zeros, to the pool's input."""
        *outer, m, n = values.shape
        each = values[..., :, None, :, None].expand(*outer, m, high, n, wide)
        whole = each.reshape(*outer, m * high, n * wide)
        return F.pad(whole, (0, width - n * wide, 0, height - m * high))

    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    positions = rows[:, None] * width + columns
    # The border that no window covers is filled with zeros: index 0 has its gradient elsewhere.
    return torch.where(spread(indices) == positions, spread(grad), 0.0)


def _try(decompose: Callable[..., Any], otherwise: Callable[..., Any] | None) -> Any:
    def tried(*arguments: Any, **settings: Any) -> Any:
        result = decompose(*arguments, **settings)
        if result is NotImplemented and otherwise is not None:
            return otherwise(*arguments, **settings)
        return result

    return tried


def _decompose_others(
    decompose: Callable[..., Any], may_be_fused: Callable[[Tensor], bool]
) -> Callable[..., Any]:
    def decompose_others(*arguments: Any, **settings: Any) -> Any:
        left = may_be_fused(arguments[0])
        return NotImplemented if left else decompose(*arguments, **settings)

    return decompose_others
