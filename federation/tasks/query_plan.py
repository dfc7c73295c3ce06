"""Parameters of the linear query as a manifest states them: chosen by the proposer, recomputed and
compared by everybody else."""

from __future__ import annotations

from collections.abc import Sequence

from federation.errors import Refused
from federation.objects import JobManifest, QueryParameters
from protocols.errors import ParameterError
from protocols.linear_query import Layout, Parameters
from protocols.parameters import choose_parameters


def finest(
    layouts: Sequence[Layout], customers: int, largest: Sequence[int], tokens: int, banks: int = 1
) -> Parameters:
    """The first of these bounds of v that goes into one limb; ParameterError if none does."""
    refusal: ParameterError | None = None
    for vmax in largest:
        try:
            found = choose_parameters(
                layouts, customers=customers, vmax=vmax, tokens=tokens, banks=banks
            )
        except ParameterError as error:
            refusal = error
            continue
        if found.limbs == 1:
            return found
    raise refusal or ParameterError("v would need several limbs")


def stated(query: Parameters) -> QueryParameters:
    """As a manifest says it."""
    return QueryParameters(t_bits=query.t_bits, reply_bits=query.reply_bits, vmax=query.vmax)


def require_stated(manifest: JobManifest, query: Parameters, tokens: int, between: int) -> None:
    """Raises Refused if the manifest says other parameters, or tokens, than follow from its job."""
    limits = manifest.limits
    found = (manifest.query, limits.tokens, limits.tokens_between)
    if found != (stated(query), tokens, between):
        raise Refused("the manifest's query parameters or token limits do not follow from its job")
