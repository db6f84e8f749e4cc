"""KServe's first protocol over HTTP, ``/v1/models/{model}:predict``, for whatever data plane there is behind.

The lists of models under ``/v1`` are OpenAI's, too: ``penstock.http.openai`` answers them for both. Decides nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Generic, NotRequired, TypedDict

from penstock.http.oip import DataPlane, Ticket
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, refusal
from penstock.policy.access import Action
from penstock.rest.predict import decode_predict, encode_prediction
from penstock.wire.context import timeout_s_of


class PredictBody(TypedDict):
    """Rows (``instances``) or columns (``inputs``), one of the two."""

    instances: NotRequired[list[Any]]
    inputs: NotRequired[Any]


class Prediction(TypedDict):
    """Rows where rows were asked, columns where columns were."""

    predictions: NotRequired[list[Any]]
    outputs: NotRequired[Any]
    parameters: NotRequired[dict[str, Any]]


_PREDICT = Operation(
    summary="Predict, by KServe's first protocol",
    group="KServe v1",
    asks={JSON: PredictBody},
    answers={JSON: Prediction},
)


class KServe(Generic[Ticket]):
    """Answers the protocol's requests from one data plane."""

    def __init__(self, plane: DataPlane[Ticket], *, queue_full_status: int = 503) -> None:
        """``queue_full_status``: 503, or 429 for clients that only back off on that."""
        self._plane = plane
        self._refuse = partial(refusal, queue_full=queue_full_status)

    def routes(self) -> list[Route]:
        """List the rows, for a model's default version and for one that is named."""
        model = "/v1/models/{model}"
        return [
            Route("POST", f"{path}:predict", self._predict, Action.INFER, self._refuse, _PREDICT)
            for path in (model, model + "/versions/{version}")
        ]

    async def _predict(self, request: Request) -> Reply:
        plane, names = self._plane, request.names
        model, version = names["model"], names.get("version", "")
        with plane.admit(request.context, model, version, request.body.size_bytes) as ticket:
            context = request.context.within(timeout_s_of(request.headers))
            body = await request.body.read(context)
            call = decode_predict(body, plane.metadata(model, version).inputs, model=model, version=version)
            response = await plane.infer(ticket, context, call.request)
            return Reply(body=encode_prediction(response, call), headers={"Content-Type": JSON})
