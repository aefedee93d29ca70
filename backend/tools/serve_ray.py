"""A Ray Serve application: replicas of the service, each with a queue of its own, on one models folder.

    serve run backend.tools.serve_ray:application min_replicas=2 max_replicas=8

Settings come from the environment, as always. Every machine of the cluster must see the same MODELS_DIR.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve

from backend.app import create_app


class Replicas(BaseModel):
    """How many replicas there are, and what each of them takes. Ray adds some while more requests are under way."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    ongoing_requests: float = Field(2, gt=0, description="Requests under way in a replica that Ray aims at.")
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)


def application(given: Replicas) -> Any:
    """The application that `serve run` and `serve deploy` build."""
    deployment = serve.deployment(
        name="inspection",
        autoscaling_config={
            "min_replicas": given.min_replicas,
            "max_replicas": max(given.min_replicas, given.max_replicas),
            "target_ongoing_requests": given.ongoing_requests,
        },
        max_ongoing_requests=64,
        graceful_shutdown_timeout_s=40,
        health_check_period_s=2,
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": given.gpus},
    )
    return deployment(serve.ingress(_build)(Replica)).bind()


class Replica:
    """What Ray starts, watches and replaces; it answers with an app of its own."""


def _build() -> FastAPI:
    """One app in each replica: neither its locks nor its extractor can travel between processes."""
    return create_app()
