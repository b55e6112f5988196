"""Which linear is the output head (LM head): the one that targets="linear" leaves alone."""

from __future__ import annotations

from s24compile.passes.linears import Linear
from s24compile.passes.match import Nodes
from s24compile.passes.provenance import module_path
from s24compile.passes.scope import uses
from s24compile.passes.spelling import general_name

HEAD_NAMES = frozenset({"lm_head", "embed_out", "output_projection", "unembed", "unembedding"})


def output_head(nodes: Nodes, linear: Linear) -> str:
    """A sentence if this linear makes the logits of a language model, else "".

    It does if its weight is also an embedding's (tied), if its module is called like a head, or if the graph embeds
    tokens and this is the only linear whose result reaches the graph's output past no other linear.
    """
    if linear.weight is not None and any(
        general_name(user) == "embedding" for _, user, _ in uses(linear.scope, linear.weight)
    ):
        return "it is the output head, and its weight is tied with the embedding"
    path = module_path(linear.scope, linear.node, linear.weight)
    if path.rpartition(".")[2] in HEAD_NAMES:
        return "it is the output head by name; heads stay dense"
    scope = linear.scope
    if scope.calls or not any(general_name(node) == "embedding" for node in scope.graph.nodes):
        return ""
    if not _reaches_output(nodes, linear) or any(
        _reaches_output(nodes, o) for o in nodes.by_node.values() if o is not linear
    ):
        return ""
    return "it is the output head: the graph embeds tokens, and this is its only linear that no other follows"


def _reaches_output(nodes: Nodes, linear: Linear) -> bool:
    stack, seen = [linear.node], {linear.node}
    while stack:
        for user in stack.pop().users:
            if user.op == "output":
                return True
            if user not in seen and nodes.at(user) is None and user not in nodes.scope.children:
                seen.add(user)
                stack.append(user)
    return False
