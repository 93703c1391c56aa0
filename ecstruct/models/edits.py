"""Edits: replace the inputs or outputs of the sites of a block while it runs.

The heads' z is the input of `attn.o`. What attention and the MLP write, before any post-norm, is the output
of `attn.o` and of `mlp.out`. An edit is a function from the value that the block computed, in the graph of
its run, to the new one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ecstruct.models.sites import Site

Edit = Callable[[Tensor], Tensor]


@contextmanager
def editing(
    sites: Mapping[str, Site], inputs: Mapping[str, Edit], outputs: Mapping[str, Edit]
) -> Iterator[None]:
    """Edit the inputs and outputs of these sites of one block, by name, in every run of the block.

    Do not edit the input of `mlp.out` of an MLP without the usual projections (a mixture of experts): that
    site is an identity.
    """

    def before(edit: Edit) -> Callable[..., Any]:
        return lambda _module, args: (edit(args[0]), *args[1:])

    def after(edit: Edit) -> Callable[..., Any]:
        return lambda _module, _args, output: edit(output)

    with ExitStack() as stack:
        for name, edit in inputs.items():
            stack.callback(sites[name].component.register_forward_pre_hook(before(edit)).remove)
        for name, edit in outputs.items():
            stack.callback(sites[name].component.register_forward_hook(after(edit)).remove)
        yield
