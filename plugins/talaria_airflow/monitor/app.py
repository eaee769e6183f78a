"""The server of the page "Training": the page, its data as JSON, and nothing to those whom Airflow shows no DAG.

Endpoints are plain functions: FastAPI runs them in threads, so that reading a file never stalls the api-server's loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathPart
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import FiniteFloat
from pydantic_core import to_json
from talaria.common.files import MANIFEST
from talaria.runs.catalog import RunCatalog, find_run, list_runs
from talaria.runs.folder import RunPath
from talaria.runs.history import CURVES, Axis, Curve
from talaria.store.store import Store

from talaria_airflow.monitor.dag_runs import trained_by
from talaria_airflow.monitor.mlflow_facts import MlflowFacts

DAG_ID = "sft"
STATIC = Path(__file__).parent / "static"
LISTED = 60
FOCUS_BUCKETS, SMALL_BUCKETS = 450, 80
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304 while it is the same
}


class Json(Response):
    """A JSON response with null for numbers that are not finite, which browsers cannot parse."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content, inf_nan_mode="null")


def store_root() -> Path:
    """Return TALARIA_STORE, or the command line's default store."""
    return Path(os.environ.get("TALARIA_STORE") or ".talaria/store").absolute()


def monitor_app() -> FastAPI:
    app = FastAPI(title="Talaria training monitor", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.catalog = RunCatalog(store_root())
    app.state.mlflow = MlflowFacts()
    app.include_router(router)
    app.exception_handler(RequestValidationError)(_refused)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.middleware("http")(_with_headers)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Answer 400 and one sentence where a query cannot be meant."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}."}, 400)


async def _with_headers(request: Request, respond: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await respond(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _reads_runs_of(dag_id: str | None) -> Any:
    return Depends(requires_access_dag("GET", DagAccessEntity.RUN, dag_id))


router = APIRouter(dependencies=[_reads_runs_of(DAG_ID)])


def _catalog(request: Request) -> RunCatalog:
    catalog: RunCatalog = request.app.state.catalog
    return catalog


def _run(request: Request, key: str) -> RunPath:
    run = find_run(_catalog(request).root, key)
    if run is None:
        raise HTTPException(404, "There is no such run in this store.")
    return run


Run = Annotated[RunPath, Depends(_run)]


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@router.get("/api/runs", dependencies=[_reads_runs_of(None)])
def runs(request: Request, session: SessionDep, dag_id: str | None = None, run_id: str | None = None) -> Json:
    """Return summaries of the latest runs, or of one DAG run's if `dag_id` and `run_id` name it."""
    catalog, now = _catalog(request), time.time()
    everything = list_runs(catalog.root)
    if (dag_id is None) != (run_id is None):
        raise HTTPException(400, "dag_id and run_id belong together.")
    if not (dag_id and run_id):
        cards = [catalog.summary(run, now) for run in everything[:LISTED]]
        return Json({"now": now, "runs": cards, "more": len(everything) - len(cards)})
    keys, itself = trained_by(session, dag_id, run_id), {"dag_id": dag_id, "run_id": run_id}
    cards = [catalog.summary(run, now) for run in everything if run.key in keys or not run.finished]
    return Json({"now": now, "runs": [card for card in cards if card["key"] in keys or card["dag_run"] == itself], "more": 0})


@router.get("/api/runs/{key}")
def training(request: Request, run: Run) -> Json:
    """Return a run's summary and its history without the curves."""
    catalog = _catalog(request)
    training = catalog.open(run)
    with training.lock, _readable(run):
        training.refresh()
        history = training.history()
    now = time.time()
    return Json({"now": now, **catalog.summary(run, now), **history})


@router.get("/api/runs/{key}/curves")
def curves(
    request: Request,
    run: Run,
    names: Annotated[list[Curve] | None, Query(alias="name", max_length=len(CURVES))] = None,
    focus: Curve = "loss",
    since: Annotated[str, Query(pattern=r"^([0-9]{1,16}@[0-9a-z.+-]{1,32})?$")] = "",
    axis: Axis = "step",
    start: Annotated[FiniteFloat | None, Query()] = None,
    stop: Annotated[FiniteFloat | None, Query()] = None,
    smooth: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Json:
    """Return curves thinned for drawing, `focus` finer and also smoothed; only points after the cursor `since`."""
    buckets: dict[str, int] = {name: FOCUS_BUCKETS if name == focus else SMALL_BUCKETS for name in names or CURVES}
    if (start is None) != (stop is None) or (start is not None and stop is not None and start > stop):
        raise HTTPException(400, "start and stop belong together, the lower one first.")
    between = None if start is None or stop is None else (start, stop)
    training = _catalog(request).open(run)
    with training.lock, _readable(run):
        training.refresh()
        return Json(
            training.series(buckets, since=since, axis=axis, between=between, smooth=(focus, smooth) if smooth > 1 else None)
        )


@router.get("/answers/{key}", include_in_schema=False)
def answers(request: Request, key: Annotated[str, PathPart(pattern=r"^[0-9a-f]{64}$")]) -> HTMLResponse:
    """Return the page of base and tuned model's answers that an output of evaluate holds."""
    from talaria.evaluation.compare.page import POLICY, page
    from talaria.evaluation.compare.rows import of_evaluation

    folder = Store(_catalog(request).root).place("evaluate", key)
    if not (folder / MANIFEST).is_file():
        raise HTTPException(404, "There is no such evaluation in this store.")
    own = {"Content-Security-Policy": f"{POLICY}; frame-ancestors 'self'"}
    return HTMLResponse(page(of_evaluation(folder), f"Answers, evaluation {key[:8]}"), headers=own)


@contextmanager
def _readable(run: RunPath) -> Iterator[None]:
    """Answer 503 and a sentence where the run's files cannot be read."""
    try:
        yield
    except OSError as error:
        raise HTTPException(503, f"{run.folder}: cannot be read: {error.strerror}.") from None


@router.get("/api/runs/{key}/registry")
def registry(request: Request, run: Run) -> Json:
    """Return MLflow's information on the run: links, versions, the gate's decision."""
    card = _catalog(request).summary(run, time.time())
    known: MlflowFacts = request.app.state.mlflow
    return Json(known.facts(card["mlflow_run_id"]))
