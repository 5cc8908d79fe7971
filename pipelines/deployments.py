"""The flows on Prefect's pages: on demand with other settings, nightly, a sweep, and teachers again when their data change."""

import os
from typing import Annotated, cast

import httpx
import typer
from prefect import serve
from prefect.deployments.runner import RunnerDeployment

from pipelines.flow import refresh, repro, sweep

NIGHTLY, WEEKLY = "0 2 * * *", "0 1 * * 0"


def deployments(nightly: str = NIGHTLY, weekly: str = WEEKLY) -> list[RunnerDeployment]:
    """The deployments that are served; `nightly` and `weekly` are cron lines."""
    made = [
        repro.to_deployment("on-demand", description="The pipeline; with other settings as a DVC experiment."),
        repro.to_deployment("nightly", cron=nightly, description="What has changed, every night."),
        sweep.to_deployment(
            "sweep",
            parameters={"grid": {"settings.kd.temperature": [1, 2, 4]}},
            description="One DVC experiment per point of a grid.",
        ),
        refresh.to_deployment("teachers", cron=weekly, description="Teachers again where their data have changed."),
    ]
    return cast(list[RunnerDeployment], made)  # a coroutine is returned in coroutines only


def main(
    nightly: Annotated[str, typer.Option(help="cron line of the pipeline")] = NIGHTLY,
    weekly: Annotated[str, typer.Option(help="cron line of the refresh of data and teachers")] = WEEKLY,
) -> None:
    """Serve the deployments from this working tree, one run at a time."""
    api = os.environ.get("PREFECT_API_URL", "")
    try:
        httpx.get(f"{api}/health").raise_for_status()
    except (httpx.HTTPError, httpx.UnsupportedProtocol) as error:
        raise SystemExit(f"no Prefect server at PREFECT_API_URL={api}: start it with `make ui` ({error})") from error
    serve(*deployments(nightly, weekly), limit=1)


if __name__ == "__main__":
    typer.run(main)
